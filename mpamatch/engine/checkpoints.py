"""The checkpoint that resumes, RUN/checkpoints/last.safetensors: the method, the optimizer and the step.

Frozen towers are not in it, only their source and SHA-256.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mpamatch.errors import InputError, shown
from mpamatch.methods import Method
from mpamatch.models.encoders import Preset
from mpamatch.models.learned import learned_state, load_learned
from mpamatch.tensors import as_written, read_about, read_tensors, write_tensors

METHOD, OPTIMIZER = "method/", "optimizer/"


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        step: steps done.
        best: highest validation mDice so far, 0 to 1; −1 before the first validation, NaN without validation labels.
        best_step: the step that it was reached at; −1 before the first validation.
    """

    step: int = 0
    best: float = -1.0
    best_step: int = -1


def save_last(
    path: Path,
    method: Method,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    frozen: dict[str, dict[str, str]],
    images: str,
) -> None:
    """Writes all that resuming needs to one file, which replaces a former one by one rename.

    Args:
        path: of the checkpoint.
        method: that is trained.
        optimizer: of its parameters.
        progress: how far the run has come.
        frozen: the identities of frozen weights, which are not in it.
        images: a digest of the training images, which are not in it either.
    """
    tensors = {METHOD + name: value for name, value in learned_state(method).items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"{OPTIMIZER}{index}/{name}": value for name, value in state.items() if isinstance(value, Tensor)}
    about = {
        "progress": dataclasses.asdict(progress),
        "encoder": method.model.encoder.preset.record(),
        "frozen": frozen,
        "images": images,
    }
    write_tensors(path, tensors, about)


def images_digest(labelled: Sequence[str], unlabelled: Sequence[str], class_names: Sequence[str]) -> str:
    """Digests what the draws count in: the names of the training images, labelled and not, and of the classes."""
    return hashlib.sha256(json.dumps([labelled, unlabelled, class_names]).encode()).hexdigest()


def encoder_built_from(path: Path) -> Preset | None:
    """Returns what the encoder of a checkpoint was built from; None for one of version 0.1.0, which does not say."""
    record = read_about(path).get("encoder")
    with as_written(path):
        return Preset.from_record(record) if record else None


def load_last(
    path: Path, method: Method, optimizer: torch.optim.Optimizer, frozen: dict[str, dict[str, str]], images: str
) -> Progress:
    """Restores method and optimizer in place and returns how far the run had come.

    Raises InputError if the file is for something else, does not fit, or the frozen weights or the training images have
    changed (a checkpoint of version 0.1.0 does not name the images).
    """
    tensors, about = read_tensors(path)
    if "progress" not in about:
        raise InputError(f"{path}: holds no state to resume from; it was written for something else.")
    if about.get("frozen") != frozen:
        raise InputError(
            f"{path}: was trained on other frozen weights ({shown(about.get('frozen'))}); here are {shown(frozen)}."
        )
    if about.get("images", images) != images:
        raise InputError(
            f"{path}: was trained on other images or classes than the set and split have now: bring them back as they "
            "were, or train anew."
        )
    load_learned(method, _under(tensors, METHOD), path)
    with as_written(path):
        progress = _progress(about["progress"])
        states = _states(_under(tensors, OPTIMIZER), optimizer)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                # a fused step walks through memory: the moments of a channels-last weight must lie as the weight does
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    return progress


def _progress(values: Mapping[str, Any]) -> Progress:
    """Reads how far a run had come. Raises TypeError or ValueError for other values."""
    progress = Progress(**values)
    if not (type(progress.step) is type(progress.best_step) is int and type(progress.best) in (int, float)):
        raise TypeError("progress is counted in numbers")
    if progress.step < 0 or progress.best > 1:
        raise ValueError(f"step {progress.step}, best mDice {progress.best}")
    return progress


def _states(tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Tensor]]:
    """Sorts the optimizer's tensors by parameter. Raises ValueError if they are of another optimizer or network."""
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition("/")
        states.setdefault(int(index), {})[name] = value
    shapes = [parameter.shape for group in optimizer.param_groups for parameter in group["params"]]
    kept = {"momentum_buffer"} if isinstance(optimizer, torch.optim.SGD) else {"step", "exp_avg", "exp_avg_sq"}
    for at, state in states.items():
        if not 0 <= at < len(shapes) or set(state) != kept:
            raise ValueError(f"the optimizer has {len(shapes)} parameters with {', '.join(sorted(kept))}")
        if any(value.shape not in (shapes[at], torch.Size()) for value in state.values()):
            raise ValueError(f"the optimizer's parameter {at} has the shape {tuple(shapes[at])}")
    return states


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
