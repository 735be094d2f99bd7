"""The error for bad input and the warning for what is done otherwise than asked: one sentence each."""

import difflib
import reprlib
from collections.abc import Iterable
from typing import Any

SHOWN = 60  # letters of a value that a sentence shows
REASON = 300  # letters of what a library says of its error


class InputError(ValueError):
    """Bad input: one sentence that names the file or field, what is wrong and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


class WriteError(InputError):
    """A file or folder that cannot be written: whatever is done next meets the same disk, so nothing is skipped."""


class Note(UserWarning):
    """Something that works, but otherwise than one would expect. The command line prints it after "note:"."""


def unknown(kind: str, word: str, choices: Iterable[str]) -> InputError:
    """Builds the error for a `word` that is none of `choices`: it names the nearest choice, or all if none is near."""
    known = sorted(choices)
    near = difflib.get_close_matches(word[:SHOWN], known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}."
    return InputError(f"unknown {kind} {shown(word)}: {hint}")


def shown(value: Any) -> str:
    """Formats a value from a file for a sentence: as Python writes it, shortened to about 60 letters.

    Args:
        value: whatever JSON or YAML holds; of lists in lists, which may be millions by YAML's aliases, a few are shown.
    """
    try:
        text = _brief.repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return "a number of thousands of digits"
    return text if len(text) <= SHOWN + 3 else f"{text[:SHOWN]}…"


def reason(error: BaseException | str) -> str:
    """Returns what a library says of its error, to stand in brackets: in one line, at most REASON letters of it.

    Args:
        error: as it was raised; without words of its own its class is named.
    """
    told = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return told if len(told) <= REASON else f"{told[:REASON]}…"


def is_out_of_memory(error: BaseException) -> bool:
    """Tells whether Python, numpy, or torch (on the CPU or a GPU) raised `error` for want of memory."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, without its import
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: " in str(error)


class _Brief(reprlib.Repr):
    """Writes a text as repr does, cut at its end and not in its middle."""

    def repr_str(self, value: str, level: int) -> str:
        return repr(value) if len(value) <= SHOWN else f"{value[:SHOWN]!r}…"


_brief = _Brief()
_brief.maxlevel, _brief.maxlong = 3, SHOWN
