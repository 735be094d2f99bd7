"""Threads beside a loop: order, bounds, errors in their place."""

import threading
import time

import pytest

from mpamatch.ahead import ahead


def test_results_come_in_order_whatever_takes_longest():
    def slow_first(number: int) -> int:
        time.sleep(0.03 if number == 0 else 0)
        return number * number

    assert list(ahead(slow_first, range(20), threads=4)) == [number * number for number in range(20)]


def test_calls_run_beside_each_other():
    """Each waits until all three are there: one thread alone would never end."""
    together = threading.Barrier(3, timeout=10)
    assert list(ahead(lambda _: together.wait() >= 0, range(3), threads=3)) == [True] * 3


def test_one_more_is_begun_than_there_are_threads():
    begun = []
    results = ahead(begun.append, range(100), threads=3)
    next(results)
    time.sleep(0.05)
    assert begun == [0, 1, 2, 3]


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_stands_in_the_place_of_its_result(threads):
    begun = []

    def fails_at_five(number: int) -> int:
        begun.append(number)
        if number == 5:
            raise ValueError("five")
        return number

    results, found = ahead(fails_at_five, range(100), threads=threads), []
    with pytest.raises(ValueError, match="five"):
        found.extend(results)
    assert found == [0, 1, 2, 3, 4]
    assert max(begun) <= 5 + threads


def test_an_error_of_the_items_comes_after_all_before_it():
    def items():
        yield 1
        yield 2
        raise ValueError("no third")

    results, found = ahead(lambda number: number, items(), threads=2), []
    with pytest.raises(ValueError, match="no third"):
        found.extend(results)
    assert found == [1, 2]


def test_a_loop_that_stops_leaves_no_thread():
    before = threading.active_count()
    for result in ahead(lambda number: number, range(100), threads=4):
        if result == 2:
            break
    assert threading.active_count() == before
