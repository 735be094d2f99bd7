"""Files and folders that are written whole or not at all, and files of JSON and YAML.

What is being written lies beside its place as `.NAME.RANDOM.mpamatch-unfinished`, and its process holds a lock on it.
The system frees the lock when that process ends, however it ends: so the next one that writes into the folder knows
what a kill has left, and removes it, while it never touches what another is writing.
"""

import csv
import errno
import fcntl
import functools
import io
import json
import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mpamatch.errors import InputError, WriteError, reason, shown

UNFINISHED = ".mpamatch-unfinished"
LETTERS = 40  # of the name that a temporary file bears: a name of 255 bytes leaves no room for more
MOST_VALUES = 1_000_000  # of a YAML file, aliases written out: the longest recipe has 100


@contextmanager
def replacing(path: Path, *, alone: bool = False) -> Iterator[Path]:
    """Yields a temporary file beside `path`; on success it replaces `path` by one rename, on any error it is removed.

    Args:
        path: the file.
        alone: whether the temporary file lies in a folder of its own, and is still to be made: for writers that make
            temporary files beside theirs.

    Raises:
        WriteError: the disk is full or the folder cannot be written; what stood at `path` before is kept.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_once(path.parent.absolute(), os.getpid())
        place, lock = _begin(path, is_folder=alone)
    except OSError as error:
        raise WriteError(f"{path}: cannot be written ({error.strerror}).") from error
    temporary = place / path.name if alone else place
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise WriteError(
            f"{path}: could not be written ({error.strerror or error}); what stood there before is kept."
        ) from error
    finally:
        _remove(place)
        os.close(lock)


@contextmanager
def making(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `folder`, which becomes it by one rename; on any error it is removed.

    Raises WriteError if the disk is full, the place cannot be written, or something else came to stand there.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        clear_unfinished(folder.parent)
        temporary, lock = _begin(folder, is_folder=True)
    except OSError as error:
        raise WriteError(f"{folder}: cannot be written ({error.strerror}).") from error
    try:
        yield temporary
        temporary.chmod(0o755)
        temporary.replace(folder)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise InputError(f"{folder}: another command made it meanwhile: choose another folder.") from error
        raise WriteError(f"{folder}: could not be written ({error.strerror or error}).") from error
    finally:
        _remove(temporary)
        os.close(lock)


def clear_unfinished(folder: Path) -> None:
    """Removes what killed processes were writing in `folder`, not what living ones are.

    On a disk without locks the two look alike, and nothing is removed.
    """
    for left in folder.glob(f".*{UNFINISHED}"):
        with suppress(OSError):  # it is another's, or gone by now
            if left.is_dir():
                lock = os.open(left, os.O_RDONLY)
            else:
                lock = os.open(left, os.O_RDWR)  # over NFS a lock needs a file that can be written
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(left)
            finally:
                os.close(lock)


def is_unfinished(path: Path) -> bool:
    """Tells by its name whether a file or folder is one that is being written, or was at a kill."""
    return path.name.startswith(".") and path.name.endswith(UNFINISHED)


@functools.cache
def _clear_once(folder: Path, process: int) -> None:
    """Calls `clear_unfinished` once in a process: a folder may come to hold a hundred thousand masks."""
    clear_unfinished(folder)


def _remove(place: Path) -> None:
    """Removes a file or a folder with all that is in it, if it is there."""
    if place.is_dir():
        shutil.rmtree(place, ignore_errors=True)
    else:
        place.unlink(missing_ok=True)


def _begin(path: Path, *, is_folder: bool = False) -> tuple[Path, int]:
    """Makes a temporary file or folder beside `path`; returns it with the descriptor that holds its lock."""
    prefix = f".{path.name[:LETTERS]}."
    while True:
        if is_folder:
            name = tempfile.mkdtemp(prefix=prefix, suffix=UNFINISHED, dir=path.parent)
            try:
                lock = os.open(name, os.O_RDONLY)
            except FileNotFoundError:  # as below
                continue
        else:
            lock, name = tempfile.mkstemp(prefix=prefix, suffix=UNFINISHED, dir=path.parent)
        with suppress(OSError):  # a disk without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        if Path(name).exists():
            return Path(name), lock
        os.close(lock)  # another process took it for left behind, before it was locked


def write_json(path: Path, content: Any) -> None:
    """Writes `content` as indented JSON, whole or not at all. Raises WriteError as `replacing` does."""
    text = json_bytes(content)
    with replacing(path) as temporary:
        temporary.write_bytes(text)


def json_bytes(content: Any) -> bytes:
    """Formats `content` as indented JSON in UTF-8."""
    # A byte of a file name that is no UTF-8 is a lone surrogate in Python; \udcff is JSON for it too.
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode("utf-8", errors="backslashreplace")


def read_json(path: Path) -> Any:
    """Reads a JSON file in UTF-8.

    Raises InputError if the file is missing, cannot be read or is no JSON, or if an object in it has a key twice: all
    but the last would be lost.
    """
    data = _bytes_of(path)
    try:
        return json.loads(data.decode(), object_pairs_hook=_with_each_key_once)
    except RecursionError:
        raise InputError(f"{path}: is no JSON file (it is nested too deeply).") from None
    except ValueError as error:  # no JSON, no UTF-8, or a number of thousands of digits
        raise InputError(f"{path}: is no JSON file ({reason(error)}).") from error


def _bytes_of(path: Path) -> bytes:
    """Reads a file. Raises InputError if it is missing or the system does not let us read it."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file.") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from error


def _with_each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"an object has the key {shown(twice)} twice")
    return found


def read_objects(path: Path) -> list[dict[str, Any] | None]:
    """Reads a file with a JSON object in each line, such as metrics.jsonl; empty if there is no file.

    A line that is no object, as a kill or a damaged disk leaves it, is None.
    """
    if not path.is_file():
        return []
    return [_object(line) for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]


def _object(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def read_table(path: Path) -> list[list[str]]:
    """Reads the rows of a CSV file in UTF-8, with or without a mark at its beginning; empty ones are left out.

    Raises InputError if the file cannot be read or is no such table.
    """
    data = _bytes_of(path)
    try:
        rows = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""))
        return [[cell.strip() for cell in row] for row in rows if any(row)]
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no text in UTF-8 ({reason(error)}): save it as CSV in UTF-8.") from error
    except csv.Error as error:
        raise InputError(f"{path}: is no table with commas ({reason(error)}): save it as CSV in UTF-8.") from error


def read_yaml(path: Path) -> Any:
    """Reads a YAML file in UTF-8, of plain values alone: nothing in it is executed.

    Raises InputError if the file is missing, cannot be read or is no YAML, or if its aliases make it endless or large.
    """
    import yaml  # here alone: JSON is read on machines that have no YAML too

    data = _bytes_of(path)
    try:
        content = yaml.safe_load(data.decode())
    except RecursionError:
        raise InputError(f"{path}: cannot be read as YAML (it is nested too deeply).") from None
    except Exception as error:  # PyYAML raises a dozen kinds for values that are not what their tag says
        raise InputError(f"{path}: cannot be read as YAML ({reason(error)}).") from error
    if _values(content, {}) > MOST_VALUES:
        raise InputError(f"{path}: holds over {MOST_VALUES:,} values by its aliases (*name): write them out.")
    return content


def _values(content: Any, known: dict[int, float]) -> float:
    """Counts the values, those of an alias as often as it stands there; one that is within itself counts as endless."""
    inside = [*content, *content.values()] if isinstance(content, dict) else content
    if not isinstance(inside, list | tuple | set):
        return 1
    if id(content) not in known:
        known[id(content)] = math.inf  # until all inside of it are counted
        known[id(content)] = 1 + sum(_values(one, known) for one in inside)
    return known[id(content)]


def check_free(dest: Path) -> None:
    """Raises InputError if `dest` is there and not an empty folder."""
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise InputError(f"{dest}: is there already: choose another folder, or remove it first.")
