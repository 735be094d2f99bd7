"""The one way a command talks: plain sentences, in which a name such as runs/[1] stays what it is."""

from rich.console import Console


def new_console(*, quiet: bool = False) -> Console:
    """Makes a console of standard output that reads no markup in names and folds no sentence.

    Args:
        quiet: whether it prints nothing.
    """
    return Console(markup=False, highlight=False, quiet=quiet)


def say(console: Console, sentence: str) -> None:
    """Prints a sentence as it is, in one line."""
    console.print(sentence, markup=False, highlight=False, soft_wrap=True)
