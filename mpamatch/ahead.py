"""Work done in threads beside a loop, in order and with a bound on what waits."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Input = TypeVar("Input")
Output = TypeVar("Output")


def ahead(function: Callable[[Input], Output], items: Iterable[Input], *, threads: int) -> Iterator[Output]:
    """function(item) of each item, in the order of the items, computed in `threads` threads ahead of who asks.

    One item more than there are threads is begun, so that none is idle while a result is used. An error, of `function`
    or of `items`, is raised in the place of its result; no item after it is begun then.
    """
    waiting: deque[Future[Output]] = deque()
    failed: list[Exception] = []  # items: what was begun before is still handed over

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
