"""The one way a command talks: plain sentences, in which a name such as runs/[1] or :x: stays what it is.

Every console and every column of a progress bar is made here, as rich reads markup and emoji in what it prints.
"""

from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

from mpamatch.environment import show_all

T = TypeVar("T")


def new_console(*, quiet: bool = False, errors: bool = False, width: int | None = None) -> Console:
    """Makes a console of standard output that reads no markup in names and folds no sentence.

    Args:
        quiet: whether it prints nothing.
        errors: whether it prints on standard errors instead, so that what a command prints can be piped.
        width: in columns; None: that of the terminal.
    """
    show_all()
    return Console(markup=False, emoji=False, highlight=False, quiet=quiet, stderr=errors, width=width)


def say(console: Console, sentence: str) -> None:
    """Prints a sentence as it is, in one line."""
    console.print(sentence, markup=False, emoji=False, highlight=False, soft_wrap=True)


def text_column(form: str = "{task.description}") -> TextColumn:
    """Makes a column of a progress bar that shows text as it is."""
    return TextColumn(form, markup=False)


def new_bar(
    *columns: ProgressColumn, shown: bool = True, transient: bool = False, console: Console | None = None
) -> Progress:
    """Makes a progress bar.

    Args:
        columns: of the bar.
        shown: whether it is drawn.
        transient: whether it goes away at the end.
        console: where; None: on standard errors.
    """
    return Progress(*columns, console=console or new_console(errors=True), disable=not shown, transient=transient)


def with_progress(items: Iterable[T], what: str, total: int | None) -> Iterable[T]:
    """Yields `items` and shows a progress bar on stderr if that is a terminal; the bar goes away at the end."""
    shown = new_console(errors=True).is_terminal
    columns = (text_column(), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with new_bar(*columns, shown=shown, transient=True) as bar:
        yield from bar.track(items, total=total, description=what)
