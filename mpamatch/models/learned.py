"""The part of a module's state that training changes and a checkpoint holds; frozen encoders stay in their files."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mpamatch.errors import InputError
from mpamatch.models.adapters import MARK
from mpamatch.models.network import Network
from mpamatch.models.weights import digest, sha256


def learned_state(module: nn.Module) -> dict[str, Tensor]:
    """Returns the state of `module` without the weights of encoders that never change; adapters are part of it."""
    given = tuple(
        f"{name}.encoder." if name else "encoder."
        for name, part in module.named_modules()
        if isinstance(part, Network) and part.keeps_encoder
    )
    return {name: value for name, value in module.state_dict().items() if not name.startswith(given) or MARK in name}


def load_learned(module: nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    """Loads what `learned_state` returned. Raises InputError if names, shapes or dtypes do not fit."""
    wanted = learned_state(module)
    if set(wanted) != set(state) or any(_form(wanted[name]) != _form(state[name]) for name in wanted):
        wrong = sorted(set(wanted) ^ set(state)) or [n for n in wanted if _form(wanted[n]) != _form(state[n])]
        raise InputError(f"{source}: does not fit this configuration; the first difference is {wrong[0][:200]}.")
    with torch.no_grad():
        for name, value in wanted.items():
            value.copy_(state[name])


def _form(value: Tensor) -> tuple[torch.Size, torch.dtype]:
    return value.shape, value.dtype


def encoder_identity(network: Network) -> dict[str, str] | None:
    """Returns name and source of the weights of an encoder that never changes, and the SHA-256 of their file.

    Of weights that are no file of the user's it is the SHA-256 of the tensors. None for an encoder that is trained,
    whose weights the checkpoint holds.
    """
    if not network.keeps_encoder:
        return None
    weights = str(network.config.encoder_weights)
    file = Path(weights)
    found = {"sha256": sha256(file)} if file.is_file() else {"tensors": _digest(network)}
    return {"name": network.config.encoder, "weights": weights, **found}


def _digest(network: Network) -> str:
    """Computes the SHA-256 of the encoder's own weights, without adapters."""
    state = {
        name.replace(".base_layer", ""): value
        for name, value in network.encoder.state_dict().items()
        if MARK not in name
    }
    return digest(state)


def check_identity(identity: dict[str, str], source: Path) -> None:
    """Raises InputError if the file of a frozen encoder's weights has changed or is missing, before it is loaded."""
    weights = Path(identity["weights"])
    if "sha256" in identity and not weights.is_file():
        raise InputError(f"{source}: needs the frozen encoder's file {weights}, which is not there.")
    if "sha256" in identity and sha256(weights) != identity["sha256"]:
        raise InputError(f"{source}: was trained on another version of {weights} (its SHA-256 differs).")


def check_tensors(identity: dict[str, str], network: Network, source: Path) -> None:
    """Raises InputError if the weights of a frozen encoder that are no file of the user's have changed."""
    if "tensors" in identity and identity["tensors"] != _digest(network):
        raise InputError(f"{source}: was trained on another version of the weights {identity['weights']!r}.")
