"""Times, memory and ceilings: the tools themselves."""

import subprocess
import time
import timeit

import pytest
import torch

from mpamatch.benchmarks import measure
from mpamatch.benchmarks.measure import Ceilings, Timed
from mpamatch.malloc import can_be_set


def test_variants_take_turns_and_the_first_use_is_not_timed():
    order = []
    timed = {name: Timed(lambda name=name: order.append(name)) for name in "abc"}
    found = measure.interleaved(timed, seconds=0.0, rounds=(4, 9))
    assert "".join(order) == 3 * "abc" + "abc" + "bca" + "cab" + "abc"
    assert {name: timing.rounds for name, timing in found.items()} == dict.fromkeys("abc", 4)


def test_a_median_is_that_of_the_samples():
    timing = measure.summary([5.0, 1.0, 2.0, 3.0, 4.0], "wall")
    assert (timing.median, timing.p20, timing.p80, timing.rounds) == pytest.approx((3.0, 1.8, 4.2, 5))


@pytest.mark.serial
def test_the_slower_call_takes_longer():
    timed = {"short": Timed(lambda: time.sleep(0.001)), "long": Timed(lambda: time.sleep(0.03))}
    found = measure.interleaved(timed, seconds=0.0)
    assert found["long"].median > 2 * found["short"].median


def test_peak_memory_is_measured_without_the_result():
    elements = 8 * 2**20

    def call():
        hidden = torch.full((elements,), 2.0)  # 32 MiB, gone at the end
        return hidden[: elements // 2] + 1  # 16 MiB, the result

    peak = measure.peak_extra_bytes(Timed(call), "cpu")
    assert peak == pytest.approx(4 * elements, rel=0.1)


def test_a_result_that_needs_nothing_else_has_no_extra_memory():
    peak = measure.peak_extra_bytes(Timed(lambda: torch.full((8 * 2**20,), 1.0)), "cpu")
    assert peak is not None
    assert peak < 2**20


def test_storages_are_counted_once():
    rows = torch.zeros(100, 10)
    assert measure.held_bytes((rows, rows[3], {"x": rows.T})) == 4000


FAULTS = """
import resource, torch
from mpamatch.benchmarks import measure
def faults(allocation):
    with measure.memory(allocation):
        counts = []
        for _ in range(8):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            torch.full((16 * 2**20,), 1.0)
            counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        return sorted(counts)[4]
print(faults("fresh"), faults("warm"))
"""


@pytest.mark.skipif(not can_be_set(), reason="malloc of this system has no such setting")
@pytest.mark.slow
def test_kept_memory_is_not_touched_anew(warm_python):
    """In a process of its own, of 64 MiB: 16,384 pages of 4 KiB."""
    done = subprocess.run([warm_python, "-c", FAULTS], capture_output=True, text=True, check=True)
    fresh, warm = map(int, done.stdout.split())
    assert fresh > 1000 + 10 * warm


def test_the_roofline_is_the_higher_of_two_floors():
    ceilings = Ceilings(copy=10.0, matmul={"float32": 100.0})
    assert ceilings.fraction(2.0, moved=10, flops=10, dtype="float32") == pytest.approx(0.5)
    assert ceilings.fraction(2.0, moved=1, flops=150, dtype="float32") == pytest.approx(0.75)


def test_the_quickest_call_counts_and_the_first_does_not(monkeypatch):
    calls = []
    monkeypatch.setattr(timeit, "repeat", lambda call, number, repeat: [3.0, 1.0, 2.0, *[4.0] * (repeat - 3)])
    assert measure._quickest(lambda: calls.append(None), "cpu") == 1.0
    assert len(calls) == 1


def test_half_precision_has_the_ceiling_of_float32_on_a_cpu(monkeypatch):
    monkeypatch.setattr(measure, "_quickest", lambda call, device: 1.0)
    ceilings = measure.measure_ceilings("cpu", ["bfloat16", "float32"])
    assert ceilings.matmul["bfloat16"] == ceilings.matmul["float32"] == 2 * 2048**3
