"""The error for bad input and the warning for what is done otherwise than asked: one sentence each."""

import difflib
from collections.abc import Iterable


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
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}."
    return InputError(f"unknown {kind} {word!r}: {hint}")
