"""Folders that one process has for itself: two commands that start in the same moment never share one."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from mpamatch.errors import InputError, WriteError

LOCK = ".lock"  # in the folder


def claim(folder: Path, otherwise: str = "give another folder") -> Path:
    """Makes `folder`, which must not exist.

    Args:
        folder: to make, with those above it.
        otherwise: what to do if it exists, for the sentence.

    Raises:
        InputError: it exists; a WriteError if it cannot be made.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.mkdir()
        except FileExistsError:
            raise InputError(f"{folder}: exists already; {otherwise}.") from None
    except OSError as error:
        raise WriteError(f"{folder}: cannot be made ({error.strerror}).") from error
    return folder


def claim_numbered(parent: Path, stem: str) -> Path:
    """Makes the first of parent/STEM-001, -002, … that does not exist. Raises InputError if none can be made."""
    number = 1
    while True:
        folder = parent / f"{stem}-{number:03d}"
        if not folder.exists():
            try:
                return claim(folder)
            except InputError:
                if not folder.exists():
                    raise
        number += 1


@contextmanager
def alone(path: Path, held: str, patience: float = 0.0) -> Iterator[None]:
    """Holds a lock on the file at `path`, which is made with its folder and removed in the end.

    The system unlocks it when this process ends, however it ends; what is left of it then is no obstacle. (filelock
    would leave the file, as it cannot tell whether another process removed it meanwhile.) Threads of one process do not
    exclude each other.

    Args:
        path: of the lock.
        held: the sentence to raise if another process has it.
        patience: seconds to wait for it.

    Raises:
        InputError: `held`; a WriteError if the file cannot be written.
    """
    deadline = time.monotonic() + patience
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while (file := _locked(path)) is None:
            if time.monotonic() > deadline:
                raise InputError(held)
            time.sleep(0.02)
    except OSError as error:
        raise WriteError(f"{path.parent}: cannot be written ({error.strerror}).") from error
    with file:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _locked(path: Path) -> IO[bytes] | None:
    """Opens the file at `path` and locks it, if the file system has locks; None if another process has it."""
    while True:
        file = path.open("ab")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock: forked loaders would hold it after a kill
        except (BlockingIOError, PermissionError):
            file.close()
            return None
        except OSError:  # no locks here: nothing can be told
            return file
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # the process that held it removed it in between: this one is nobody's any more
