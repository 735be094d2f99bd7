"""Names of files: which of a folder count, how one is shown, which two are the same, and how long one may be.

On Linux a name is bytes. Python holds a byte that is no UTF-8 as a lone surrogate, which no file in UTF-8 can hold.
"""

import hashlib
import os
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mpamatch.errors import InputError

LONGEST = 255  # bytes of a name, on every file system in wide use
SHOWN = 3  # names that a sentence lists

# What macOS, Windows and Synology's NAS put into folders, beside names that begin with a dot (.DS_Store, ._image.png).
_CLUTTER = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "$recycle.bin", "@eadir"}


def is_hidden(name: str) -> bool:
    """Tells whether a name is of a hidden file or of what a system put there, which is no data."""
    return name.startswith(".") or name.casefold() in _CLUTTER


def is_file_name(name: Any) -> bool:
    """Tells whether `name` is text that a file may be called by: without folders, so that it leads out of none."""
    if not isinstance(name, str) or name in ("", "..") or "\0" in name or Path(name).name != name:
        return False
    try:
        return len(os.fsencode(name)) <= LONGEST
    except UnicodeEncodeError:  # half of a pair of surrogates stands for no byte
        return False


def visible(folder: Path) -> list[Path]:
    """Lists the files and folders in `folder`, by name, without hidden ones; a folder that is not there is empty."""
    return sorted(path for path in folder.iterdir() if not is_hidden(path.name)) if folder.is_dir() else []


def visible_below(folder: Path) -> Iterator[Path]:
    """Yields the files and folders at any depth, a folder before what is in it, without hidden ones and theirs."""
    for path in visible(folder):
        yield path
        if path.is_dir() and not path.is_symlink():  # a link may lead back up
            yield from visible_below(path)


def readable(name: str) -> str:
    """Returns a name as UTF-8 and a picture can hold it: what they cannot is written as JSON writes it, caf\\udce9."""
    shown = name.encode(errors="backslashreplace").decode()
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in shown)


def same(name: str) -> str:
    """Returns what two names share that look the same: macOS may store é as e and an accent."""
    return unicodedata.normalize("NFC", name)


def fitting(name: str, ending: str) -> str:
    """Returns `name`, or if a file name + ending would be too long, its beginning and eight digits of its SHA-256."""
    most = LONGEST - len(os.fsencode(ending))
    if len(os.fsencode(name)) <= most:
        return name
    digits = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
    kept = name
    while len(os.fsencode(kept)) > most - 9:
        kept = kept[:-1]
    return f"{kept}-{digits}"


def listed(names: Sequence[str], most: int = SHOWN) -> str:
    """Lists the first names, and says how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def passed_over(folder: Path, suffixes: Collection[str]) -> tuple[str, ...]:
    """Says, in one sentence or none, which files straight in a folder have an ending that is not in `suffixes`."""
    left = [path.name for path in visible(folder) if path.suffix.lower() not in suffixes and not path.is_dir()]
    if not left:
        return ()
    were = "1 file was" if len(left) == 1 else f"{len(left):,} files were"
    return (f"{folder}: {were} passed over, as no image ends so: {listed(left)}.",)


def _is_utf8(name: str) -> bool:
    return name.encode(errors="backslashreplace").decode() == name


@contextmanager
def in_utf8(path: Path) -> Iterator[Path]:
    """Yields a path in UTF-8 to a file or folder that is there, for libraries that take no other.

    On Linux its open descriptor has one; elsewhere file systems know no other names, and `path` is yielded as it is.
    """
    if _is_utf8(str(path)) or not Path("/proc/self/fd").is_dir():
        yield path
        return
    opened = os.open(path, os.O_RDONLY)
    try:
        yield Path(f"/proc/self/fd/{opened}")
    finally:
        os.close(opened)


def check_link(path: Path) -> None:
    """Raises InputError if `path` is a link to something that is not there."""
    if path.is_symlink() and not path.exists():
        raise InputError(f"{path}: links to {path.readlink()}, which is not there: mend the link or remove it.")
