"""Checkpoints: one safetensors file each, written whole or not at all; no pickle.

`last` holds the method, the optimizer and the step, to resume from; `best` holds the network that predicts, with what
it takes to use it. Frozen towers are in neither: their source and SHA-256 are.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mpamatch.errors import InputError
from mpamatch.files import replacing
from mpamatch.inference.segmenter import Segmenter, precision_on, to_predict
from mpamatch.methods import Method
from mpamatch.models.adapters import MARK, merge_adapters
from mpamatch.models.build import build_model
from mpamatch.models.transunet import ModelConfig, TransUNet
from mpamatch.models.weights import sha256

METHOD, OPTIMIZER = "method/", "optimizer/"


@dataclass
class Progress:
    """Where a run stands: steps done, the best validation score and its step."""

    step: int = 0
    best: float = -1.0
    best_step: int = -1


def learned_state(module: nn.Module) -> dict[str, Tensor]:
    """The state of `module` without the encoders' own weights where these never change; adapters are learned."""
    given = tuple(
        f"{name}.encoder." if name else "encoder."
        for name, part in module.named_modules()
        if isinstance(part, TransUNet) and part.keeps_encoder
    )
    return {name: value for name, value in module.state_dict().items() if not name.startswith(given) or MARK in name}


def load_learned(module: nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    """Loads what `learned_state` gave. Raises InputError where names or shapes do not fit."""
    wanted = learned_state(module)
    if set(wanted) != set(state) or any(wanted[name].shape != state[name].shape for name in wanted):
        wrong = sorted(set(wanted) ^ set(state)) or [n for n in wanted if wanted[n].shape != state[n].shape]
        raise InputError(f"{source}: does not fit this configuration; the first difference is {wrong[0]}.")
    with torch.no_grad():
        for name, value in wanted.items():
            value.copy_(state[name])


def save_last(
    path: Path,
    method: Method,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    frozen: dict[str, dict[str, str]],
) -> None:
    """Everything to resume from, in one file that replaces the former one in one rename."""
    tensors = {METHOD + name: value for name, value in learned_state(method).items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"{OPTIMIZER}{index}/{name}": value for name, value in state.items() if isinstance(value, Tensor)}
    _save(path, tensors, {"progress": dataclasses.asdict(progress), "frozen": frozen})


def load_last(
    path: Path, method: Method, optimizer: torch.optim.Optimizer, frozen: dict[str, dict[str, str]]
) -> Progress:
    """Restores both in place. Raises InputError where the file does not fit or frozen weights changed."""
    tensors, about = _load(path)
    if "progress" not in about:
        raise InputError(f"{path}: holds no state to resume from; it was written for something else.")
    if about.get("frozen") != frozen:
        raise InputError(f"{path}: was trained on other frozen weights ({about.get('frozen')}); here are {frozen}.")
    load_learned(method, _under(tensors, METHOD), path)
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in _under(tensors, OPTIMIZER).items():
        index, _, name = key.partition("/")
        states.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
    return Progress(**about["progress"])


def save_best(path: Path, model: TransUNet, segmenter: Segmenter, frozen: dict[str, dict[str, str]]) -> None:
    """The deployed network and all it takes to predict with it."""
    about = {
        "model": dataclasses.asdict(model.config),
        "class_names": segmenter.class_names,
        "colours": segmenter.colours,
        "mean": segmenter.mean,
        "std": segmenter.std,
        "window": segmenter.window,
        "scale": segmenter.scale,
        "overlap": segmenter.overlap,
        "precision": segmenter.precision,
        "microns_per_pixel": segmenter.microns_per_pixel,
        "frozen": {key: value for key, value in frozen.items() if key == "encoder"},
    }
    _save(path, learned_state(model), about)


def load_segmenter(run: Path, device: str = "auto") -> Segmenter:
    """The trained network of a run folder (its best checkpoint), ready to predict.

    Raises InputError where `run` is no run folder, has no checkpoint yet, or needs a frozen encoder's file that has
    changed or gone.
    """
    path = run / "checkpoints" / "best.safetensors"
    if not run.is_dir():
        raise InputError(f"{run}: no such run folder.")
    if not path.is_file():
        raise InputError(f"{run}: is no run folder with a trained model (it has no checkpoints/best.safetensors).")
    tensors, about = _load(path)
    if "model" not in about:
        raise InputError(f"{path}: holds no network to predict with; it was written for something else.")
    config = ModelConfig(**about["model"])
    if config.tuning != "full":
        _same_frozen(about["frozen"]["encoder"], path)
        model = build_model(config, len(about["class_names"]))
    else:
        model = build_model(dataclasses.replace(config, encoder_weights=None), len(about["class_names"]))
    if about["precision"] == "64":
        model.double()
    load_learned(model, tensors, path)
    if config.tuning == "lora":
        merge_adapters(model.encoder)
    place = choose_device(device)
    return Segmenter(
        to_predict(model, place),
        class_names=about["class_names"],
        colours=[tuple(colour) for colour in about["colours"]],
        mean=about["mean"],
        std=about["std"],
        window=about["window"],
        scale=about["scale"],
        overlap=about["overlap"],
        precision=precision_on(place, about["precision"]),
        microns_per_pixel=about["microns_per_pixel"],
    )


def choose_device(device: str) -> torch.device:
    """auto: the GPU where there is one. Raises InputError for cuda where there is none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("engine.device: cuda was asked for, but torch sees no GPU here; take auto or cpu.")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def _same_frozen(identity: dict[str, str], path: Path) -> None:
    weights = Path(identity["weights"])
    if "sha256" in identity and not weights.is_file():
        raise InputError(f"{path}: needs the frozen encoder's file {weights}, which is not there.")
    if "sha256" in identity and sha256(weights) != identity["sha256"]:
        raise InputError(f"{path}: was trained on another version of {weights} (its SHA-256 differs).")


def _save(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    with replacing(path) as temporary:
        try:
            save_file(plain, temporary, metadata={"mpamatch": json.dumps(about)})
        except SafetensorError as error:  # a full disk comes as this, not as OSError
            raise OSError(None, str(error)) from error


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise InputError(f"{path}: is no readable checkpoint ({error}).") from error
    if "mpamatch" not in metadata:
        raise InputError(f"{path}: was not written by mpamatch.")
    return tensors, json.loads(metadata["mpamatch"])


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
