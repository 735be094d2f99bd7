"""Where an encoder's weights come from: a file, a package, timm's, a hub's; and what is at hand without a network."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import huggingface_hub
import timm
import torch
from huggingface_hub.errors import GatedRepoError
from timm.models import PretrainedCfg
from torch import Tensor

from mpamatch.errors import InputError
from mpamatch.models.encoders.preset import Offline, Preset, preset_of, presets, timm_preset
from mpamatch.models.encoders.timm_state import KEY_MAPS
from mpamatch.models.towers import first_line
from mpamatch.models.weights import read_state_dict, sha256

AUTO, OFFLINE, TIMM, SMP, PRESET_HUB, HUB = "auto", "offline", "timm", "smp", "hub", "hf-hub:"
HERE = (OFFLINE, PRESET_HUB, SMP, TIMM)  # what "auto" looks for, in this order
HUB_PAGE = "https://huggingface.co/"
EXTRA = "pip install 'mpamatch[pretrained-offline]'"
# Validation mDice, EBHI-Seg glands: small_hybrid from scratch against tf_efficientnet_lite0 with these weights.
WORTH = "worth 4 to 7 mDice with four labelled patients (docs/ENCODERS.md)"
FILES = ("model.safetensors", "pytorch_model.bin")  # what a hub's repository calls its weights


def settled(name: str, weights: str | None) -> str | None:
    """Chooses the weights that "auto" stands for; any other word is returned as it is.

    Args:
        name: of the encoder.
        weights: as of `build_encoder`.

    Returns:
        "offline", "hub", "smp" or "timm", the first of which is at hand without a network; None if none is.

    Raises:
        InputError: an unknown name.
    """
    if weights != AUTO:
        return weights
    return next((word for word in HERE if at_hand(preset_of(name), word)), None)


def at_hand(preset: Preset, weights: str) -> bool:
    """Tells whether "offline", "hub", "smp" or "timm" have weights of `preset` on this machine."""
    if weights == OFFLINE:
        return preset.offline is not None and _package_file(preset.offline) is not None
    if weights == PRESET_HUB:
        return preset.hub is not None and _cached(preset.hub)
    if weights == SMP:
        return preset.family == "mit" and _cached(_smp_settings(preset)["repo_id"])
    published = _published(preset)
    if published is None:
        return False
    if published.hf_hub_id:
        return _cached(published.hf_hub_id)
    return bool(published.url) and _downloaded(published.url).is_file()


def preset_for(name: str, weights: str | None) -> Preset:
    """Returns what an encoder with these weights is built from.

    It is the preset or timm's backbone called `name`; with an hf-hub id the architecture and constants that its
    repository states, whatever the name.

    Raises:
        InputError: an unknown name, weights that its family does not have, or a repository that cannot be read.
    """
    preset = preset_of(name)
    _check_has(preset, weights)
    published = _published(preset)
    if weights == TIMM and published is not None:
        return timm_preset(name, preset.arguments, published)
    if weights is None or not weights.startswith(HUB):
        return preset
    known = next((one for one in presets().values() if one.hub == weights), None)
    if known is not None:
        return known
    repository = weights.removeprefix(HUB)
    try:
        with _fetching(weights, name):
            published, model_name, given = timm.models.load_model_config_from_hf(repository)
    except KeyError:  # a configuration of another library
        model_name = ""
    if not timm.is_model(model_name):
        raise InputError(
            f"model.encoder_weights: {weights!r} states no architecture of timm; give its file for a preset."
        )
    of_name = preset.arguments if preset.arguments.get("model_name") == model_name else {}
    arguments = {**(given or {}), **of_name, "model_name": model_name}
    for unwanted in ("num_classes", "global_pool", "features_only", "dynamic_img_size"):
        arguments.pop(unwanted, None)
    stated = PretrainedCfg(
        **{key: published[key] for key in ("mean", "std", "input_size", "license") if key in published}
    )
    return timm_preset(name if of_name else model_name, arguments, stated)


def published_state(preset: Preset, weights: str) -> tuple[dict[str, Tensor], str]:
    """Reads weights; returns them by their publisher's names, and where they came from.

    Args:
        preset: of `preset_for`.
        weights: as of `build_encoder`, but neither None nor "auto".

    Raises:
        InputError: weights that are missing, damaged or cannot be fetched.
    """
    if weights == OFFLINE:
        return _from_package(preset)
    if weights == SMP:
        return _from_smp(preset), weights
    if weights == TIMM:
        return _from_timm(preset), f"timm's weights of {preset.name}"
    if weights == PRESET_HUB or weights.startswith(HUB):
        repository = str(preset.hub if weights == PRESET_HUB else weights)
        with _fetching(repository, preset.name, gated=preset.gated):
            return timm.models.load_state_dict_from_hf(repository.removeprefix(HUB)), repository
    return read_state_dict(Path(weights)), weights


def missing(name: str, weights: str | None) -> str:
    """Says which weights an encoder lacks that no network will bring; "" if none. It asks no network.

    Args:
        name: of the encoder.
        weights: as of `build_encoder`.

    Returns:
        What is missing: a file that is not there, or weights on request where nobody is logged in.

    Raises:
        InputError: an unknown name.
    """
    preset = preset_of(name)
    if weights is None or weights in (AUTO, OFFLINE, TIMM, SMP) or weights.startswith(HUB):
        return ""
    if weights != PRESET_HUB:
        return "" if Path(weights).exists() else f"{weights}: no such checkpoint file"
    if not preset.gated or at_hand(preset, PRESET_HUB) or huggingface_hub.get_token():
        return ""
    return f"weights of {name} are {_on_request(str(preset.hub))}, or download the file"


def origin(preset: Preset) -> str:
    """Says in a few words where the weights of a preset come from."""
    if preset.hub is not None:
        return f"{'on request' if preset.gated else 'hub'}: {preset.hub.removeprefix(HUB)}"
    if preset.offline is not None:
        return f"package: {preset.offline.install}"
    if preset.family == "mit":
        return "smp: ImageNet"
    return "timm" if _published(preset) is not None else "none: from scratch"


def weights_line(name: str, weights: str | None) -> str:
    """Says in one sentence which weights an encoder starts from, and what to do for better ones."""
    preset = preset_of(name)
    if weights is None:
        return f"encoder: {name} from scratch, with random weights{_better(preset)}"
    if weights == OFFLINE and preset.offline is not None:
        what = f"{preset.offline.about} ({preset.offline.licence}), from the package {preset.offline.install}"
        return f"encoder: {name} with {what}; mpamatch info lists those of tissue"
    where = {TIMM: "the weights that timm publishes", SMP: "ImageNet weights (segmentation_models_pytorch)"}
    if weights == PRESET_HUB:
        return f"encoder: {name} with the weights of {str(preset.hub).removeprefix(HUB)}"
    return f"encoder: {name} with {where.get(weights, f'the weights of {weights.removeprefix(HUB)}')}"


def _better(preset: Preset) -> str:
    if preset.offline is not None:
        return f": {EXTRA} brings ImageNet weights, {WORTH}"
    if preset.family == "small":
        return f"; pretrained weights are {WORTH}"
    return "; give --model.encoder_weights a file, or see docs/ENCODERS.md for what can be loaded"


def _check_has(preset: Preset, weights: str | None) -> None:
    """Raises InputError for a word that stands for no weights of this preset."""
    if weights == PRESET_HUB and preset.hub is None:
        raise InputError(
            f"model.encoder_weights: 'hub' goes with presets that name a repository (mpamatch info lists them); for "
            f"{preset.name!r} give a file or 'timm'."
        )
    if weights == OFFLINE and preset.offline is None:
        there = ", ".join(one.name for one in presets().values() if one.offline)
        raise InputError(f"model.encoder_weights: 'offline' has weights of {there}, not of {preset.name!r}.")
    if weights == SMP and preset.family != "mit":
        raise InputError(f"model.encoder_weights: 'smp' has weights of mit_b0 to mit_b5, not of {preset.name!r}.")
    if preset.family == "small" and weights is not None and (weights == TIMM or weights.startswith(HUB)):
        raise InputError(
            f"model.encoder_weights: nobody publishes weights of {preset.name!r}; give a file or leave it out."
        )
    if preset.family == "mit" and weights is not None and (weights == TIMM or weights.startswith(HUB)):
        raise InputError(f"model.encoder_weights: {weights!r} has no weights of {preset.name!r}; give a file or 'smp'.")


def _package_file(offline: Offline) -> Path | None:
    found = importlib.util.find_spec(offline.package)
    folders = list(found.submodule_search_locations or ()) if found else []
    files = [Path(folder) / offline.file for folder in folders]
    return next((file for file in files if file.is_file()), None)


def _from_package(preset: Preset) -> tuple[dict[str, Tensor], str]:
    assert preset.offline is not None
    file = _package_file(preset.offline)
    if file is None:
        raise InputError(
            f"model.encoder_weights: 'offline' needs the package {preset.offline.install} for {preset.name!r}; {EXTRA}."
        )
    if sha256(file) != preset.offline.sha256:
        raise InputError(
            f"{file}: is not the published file (its SHA-256 differs); install {preset.offline.install} anew."
        )
    arguments = dict(preset.arguments)
    whole = timm.create_model(arguments.pop("model_name"), pretrained=False, **arguments)
    return KEY_MAPS[preset.offline.keys](read_state_dict(file), whole), str(file)


def _from_smp(preset: Preset) -> dict[str, Tensor]:
    from segmentation_models_pytorch.encoders import get_encoder

    with _fetching(SMP, preset.name):
        mit: Any = get_encoder(preset.arguments["encoder"], weights="imagenet")
    return mit.state_dict()


def _smp_settings(preset: Preset) -> dict[str, Any]:
    from segmentation_models_pytorch.encoders import encoders

    return encoders[preset.arguments["encoder"]]["pretrained_settings"]["imagenet"]


def _from_timm(preset: Preset) -> dict[str, Tensor]:
    published = _published(preset)
    if published is None or published.custom_load is True:
        raise InputError(f"model.encoder_weights: timm publishes no weights of {preset.name!r} that load; give a file.")
    with _fetching(TIMM, preset.name):
        if published.hf_hub_id:
            file = published.hf_hub_filename or "pytorch_model.bin"  # timm looks for safetensors first
            return timm.models.load_state_dict_from_hf(published.hf_hub_id, filename=file)
        return torch.hub.load_state_dict_from_url(published.url, map_location="cpu", weights_only=True)


def _published(preset: Preset) -> Any:
    """Returns timm's PretrainedCfg of the weights that timm publishes for a preset, if it does."""
    name = preset.arguments.get("model_name") if preset.hub is None else None  # a hub's are others of its architecture
    found = timm.get_pretrained_cfg(name) if name else None
    return found if found is not None and found.has_weights else None


def _cached(repository: str) -> bool:
    """Tells whether the hub's cache on this machine has the weights of a repository."""
    from huggingface_hub import try_to_load_from_cache

    identity, _, revision = repository.removeprefix(HUB).partition("@")
    found = (try_to_load_from_cache(identity, file, revision=revision or None) for file in FILES)
    return any(isinstance(file, str) for file in found)


def _downloaded(url: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name


@contextmanager
def _fetching(weights: str, name: str, *, gated: bool = False) -> Iterator[None]:
    """Turns what a download raises into an InputError; `gated` if the hub gives the weights on request only."""
    try:
        yield
    except GatedRepoError as error:
        raise InputError(
            f"model.encoder_weights: {weights!r} is {_on_request(weights)}, or download the file and give its path."
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        asked = f"it is {_on_request(weights)}, or " if gated else ""
        raise InputError(
            f"model.encoder_weights: {weights!r} could not be fetched for {name!r} ({type(error).__name__}: "
            f"{first_line(error)}); "
            f"{asked}download the file and give its path."
        ) from error


def _on_request(repository: str) -> str:
    page = repository.removeprefix(HUB).partition("@")[0]
    return f"given on request: ask at {HUB_PAGE}{page} and log in (hf auth login)"
