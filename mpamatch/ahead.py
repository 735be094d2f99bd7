"""Work in threads ahead of a loop, in order and with a bound on what waits."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Input = TypeVar("Input")
Output = TypeVar("Output")


def ahead(function: Callable[[Input], Output], items: Iterable[Input], *, threads: int) -> Iterator[Output]:
    """Computes function(item) for each item in `threads` threads, ahead of the loop that takes the results in order.

    One item more than there are threads is begun, so that no thread is idle while a result is used. An error, of
    `function` or of `items`, is raised in the place of its result; no item after it is begun then.
    """
    waiting: deque[Future[Output]] = deque()
    failed: list[Exception] = []  # of items: the results begun before it still come first

    def begun() -> Iterator[Future[Output]]:
        try:
            for item in items:
                yield pool.submit(function, item)
        except Exception as error:
            failed.append(error)

    with ThreadPoolExecutor(threads) as pool:
        try:
            for future in begun():
                waiting.append(future)
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
    if failed:
        raise failed[0]
