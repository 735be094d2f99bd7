"""How far prediction is: a bar on a terminal, a line now and then in a log."""

import time
from types import TracebackType
from typing import Protocol

from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TimeRemainingColumn
from rich.text import Text

from mpamatch.console import new_bar, new_console, say, text_column

EVERY = 30.0  # seconds between two lines of a log


class Progress(Protocol):
    """What prediction tells of itself."""

    def begin(self, name: str, windows: int) -> None:
        """A slide begins, of which so many windows are to be run."""

    def advance(self, windows: int) -> None:
        """So many windows more are done and kept."""


class Silent:
    """Says nothing."""

    def begin(self, name: str, windows: int) -> None: ...

    def advance(self, windows: int) -> None: ...


class Shown:
    """Windows done, windows a second and the time that is left, on stderr, so that what a command prints can be piped.

    Use it in a `with`.

    Args:
        slides: how many there are to do.
        shown: False: says nothing.
    """

    def __init__(self, slides: int, shown: bool = True) -> None:
        columns = (text_column(), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
        self._console = new_console(errors=True, quiet=not shown)
        self._bar = new_bar(*columns, shown=self._on_terminal)
        self._slides, self._at = slides, 0
        self._task = self._bar.add_task("", total=None)
        self._name, self._windows, self._done = "", 0, 0
        self._began = self._told = time.monotonic()

    @property
    def _on_terminal(self) -> bool:
        return self._console.is_terminal and not self._console.quiet

    def begin(self, name: str, windows: int) -> None:
        self._at += 1
        self._name, self._windows, self._done = f"{name} ({self._at} of {self._slides})", windows, 0
        self._began = self._told = time.monotonic()
        self._bar.reset(self._task, total=windows, description=self._name)

    def advance(self, windows: int) -> None:
        self._done += windows
        self._bar.advance(self._task, windows)
        now = time.monotonic()
        if not self._on_terminal and now - self._told > EVERY:
            self._told = now
            rate = self._done / (now - self._began)
            left = (self._windows - self._done) / rate if rate else float("inf")
            line = f"{self._name}: {self._done:,} of {self._windows:,} windows, {rate:.1f}/s, {left:,.0f} s left"
            say(self._console, line)

    def __enter__(self) -> "Shown":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


class _Rate(ProgressColumn):
    """Windows a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:.1f} windows/s")
