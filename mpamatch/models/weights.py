"""Reads checkpoints of other projects: no pickle is executed, and what does not fit is refused with the differences."""

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mpamatch.errors import InputError, reason
from mpamatch.names import in_utf8

SHOWN = 4  # differences
LONGEST = 200  # letters of a name


def sha256(path: Path) -> str:
    """Computes the SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a .safetensors file or a torch checkpoint (weights_only), to the CPU.

    Entries under `state_dict` or `model` are unpacked, and the prefix `module.` of DistributedDataParallel is dropped.
    Raises InputError if the file is missing or holds something else.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint file.")
    if _is_torchscript(path):
        raise InputError(
            f"{path}: is a TorchScript archive, which is code (OpenAI publishes CLIP so): save its state_dict(), "
            "or take the tag openai of the open_clip model."
        )
    try:
        with in_utf8(path) as place:
            content = (
                load_file(place)
                if path.suffix == ".safetensors"
                else torch.load(place, map_location="cpu", weights_only=True)
            )
    except SafetensorError as error:
        raise InputError(f"{path}: is no readable safetensors file ({reason(error)}).") from error
    except Exception as error:  # torch.load raises whatever its unpickler meets in a foreign file
        raise InputError(f"{path}: is no checkpoint of plain tensors ({type(error).__name__}).") from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"{path}: holds no state dict of tensors.")
    return {name.removeprefix("module."): value for name, value in content.items()}


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except Exception:  # zipfile raises half a dozen kinds for what is no archive, or a damaged one
        return False


def load_checked(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Loads `state` strictly. Raises InputError with the first differences if names, shapes or dtypes do not fit."""
    wanted = module.state_dict()
    missing = [f"{name} is missing" for name in wanted if name not in state]
    extra = [f"{name[:LONGEST]} is unknown to the model" for name in state if name not in wanted]
    shapes = [
        f"{name} is {tuple(state[name].shape)}, the model has {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]
    kinds = [
        f"{name} holds {state[name].dtype}, the model {value.dtype}"
        for name, value in wanted.items()
        if name in state and not _holds_alike(state[name], value)
    ]
    differences = shapes + kinds + missing + extra
    if differences:
        more = f" and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
        raise InputError(f"{source}: does not fit {type(module).__name__}: {'; '.join(differences[:SHOWN])}{more}.")
    module.load_state_dict(dict(state))


def _holds_alike(given: Tensor, wanted: Tensor) -> bool:
    """Tells whether one tensor's numbers can be those of another: counts were cast too where all of a file was."""
    if wanted.is_floating_point():
        return given.is_floating_point()
    return not given.is_floating_point() or bool((given == given.round()).all())


def without_classifier(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drops the classifier (`head.`) of a backbone's state dict."""
    return {name: value for name, value in state.items() if not name.startswith("head.")}


def digest(state: Mapping[str, Tensor]) -> str:
    """Computes the SHA-256 over the names and values of tensors, in hexadecimal digits."""
    total = hashlib.sha256()
    for name, value in state.items():
        total.update(name.encode())
        total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
