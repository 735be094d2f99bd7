"""Tensors in a file: safetensors with one JSON object in its metadata, written whole or not at all; no pickle."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mpamatch.errors import InputError, reason
from mpamatch.files import replacing
from mpamatch.names import in_utf8

KEY = "mpamatch"  # of the JSON in the file's metadata


def write_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Writes `tensors` and `about` (values that JSON has) to one file, which replaces a former one by one rename.

    Raises InputError if the file cannot be written.
    """
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    with replacing(path, alone=True) as temporary:  # safetensors writes beside it, and a kill would leave that
        try:
            save_file(plain, temporary, metadata={KEY: json.dumps(about)})
        except SafetensorError as error:  # a full disk comes as this, not as OSError
            raise OSError(None, str(error)) from error


def read_about(path: Path) -> dict[str, Any]:
    """Reads the values beside the tensors of a file of `write_tensors`. Raises InputError as `read_tensors` does."""
    return _opened(path, lambda file: None)[1]


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a file of `write_tensors`: the tensors, on the CPU, and the values beside them.

    Raises InputError if there is no such file, it cannot be read, or something else wrote it.
    """
    return _opened(path, lambda file: {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - no mapping


def _opened(path: Path, read: Callable[[Any], Any]) -> tuple[Any, dict[str, Any]]:
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint.")
    try:
        with in_utf8(path) as place, safe_open(place, framework="pt") as file:
            metadata = file.metadata() or {}
            found = read(file)
    except (SafetensorError, OSError, MemoryError, RuntimeError, ValueError) as error:  # a size of more than there is
        raise InputError(f"{path}: is no readable checkpoint ({reason(error)}).") from error
    if KEY not in metadata:
        raise InputError(f"{path}: was not written by mpamatch.")
    with as_written(path):
        about = json.loads(metadata[KEY])
        if not isinstance(about, dict):
            raise TypeError("no object")
    return found, about


@contextmanager
def as_written(path: Path) -> Iterator[None]:
    """Reads, within the context, values that this package wrote beside tensors.

    Raises InputError, which names `path`, for whatever values of another form raise: the file is damaged or of another
    version.
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except Exception as error:  # what libraries raise for a wrong value in the end is of any kind
        told = f"{type(error).__name__}: {reason(error)}"
        raise InputError(
            f"{path}: holds other values than mpamatch writes ({told}): it is damaged, or of another version."
        ) from error
