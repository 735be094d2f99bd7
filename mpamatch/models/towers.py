"""What frozen text and image towers share: open_clip's configurations and weights, and a place beside a module."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mpamatch.errors import InputError, unknown

OPEN_CLIP = "open_clip:"
CONCH = "conch"
CONCH_NEEDED = (
    "its checkpoint is given on request (MahmoodLab/conch on Hugging Face, CC BY-NC-ND 4.0); download it and give the "
    "file."
)
# Terms of weights that not everybody may use, by the name of their tower.
LICENCES = {
    CONCH: "CONCH weights: CC BY-NC-ND 4.0, for non-commercial academic research only (Mahmood Lab); "
    "do not redistribute them or models tuned from them.",
}
# What a folder in open_clip's own format calls its weights (open_clip 3, constants.py).
LOCAL_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


class BesideTower(nn.Module):
    """A module that keeps a frozen tower beside it: moved and copied with the module, but no submodule.

    So the tower's weights are in neither `state_dict()` nor `parameters()`.
    """

    _towers: tuple[nn.Module, ...] = ()  # none or one; a tuple keeps it out of the module tree

    def keep_beside(self, tower: nn.Module | None) -> None:
        """Keeps `tower`, or nothing if it is None."""
        self._towers = () if tower is None else (tower,)

    def _apply(self, fn, recurse=True):
        for tower in self._towers:
            tower._apply(fn, recurse)
        return super()._apply(fn, recurse)


def without_draws(build: Callable[[], Any]) -> Any:
    """Calls `build` without advancing the CPU's generator, for a module whose random start is replaced anyway."""
    with torch.random.fork_rng(devices=[]):
        return build()


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, or its class if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def open_clip_config(name: str, kind: str) -> dict[str, Any]:
    """Returns open_clip's configuration of "open_clip:MODEL". `kind`: "text encoder" or "image encoder", for messages.

    Raises InputError for an unknown model (the nearest is named) or a configuration that cannot be fetched.
    """
    import open_clip

    model = name.removeprefix(OPEN_CLIP)
    if ":" not in model and model not in open_clip.list_models():
        raise unknown("open_clip model", model, open_clip.list_models())
    try:
        return open_clip.get_model_config(model)
    except Exception as error:  # the hub's client raises many kinds
        raise InputError(f"{kind} {name!r}: no configuration ({first_line(error)}).") from error


def open_clip_weights(name: str, weights: str | None, kind: str) -> tuple[Path, dict[str, Any]]:
    """Finds or downloads the checkpoint file; returns it with open_clip's entry of its tag (QuickGELU, mean, std).

    "open_clip:hf-hub:ORG/REPO" and "open_clip:local-dir:FOLDER" bring their weights. Raises InputError if weights are
    missing, unknown or cannot be fetched.
    """
    import open_clip
    from open_clip.pretrained import download_pretrained_from_hf

    model = name.removeprefix(OPEN_CLIP)
    form, _, place = model.partition(":")
    tags = open_clip.list_pretrained_tags_by_model(model)
    if weights is None and form == "local-dir":
        return next(
            (file for name in LOCAL_WEIGHTS if (file := Path(place) / name).is_file()),
            Path(place) / LOCAL_WEIGHTS[0],
        ), {}
    if weights is None and form != "hf-hub":
        raise InputError(
            f"{kind} {name!r} needs weights: give a local checkpoint file"
            + (f" or one of the tags {', '.join(tags)}." if tags else ".")
        )
    if weights is not None and (Path(weights).is_file() or not tags or "/" in weights):
        return Path(weights), {}
    if weights is not None and not open_clip.is_pretrained_cfg(model, weights):
        raise unknown(f"checkpoint file or tag of {model}", weights, tags)
    tag = open_clip.get_pretrained_cfg(model, weights) if weights is not None else {}
    try:
        file = open_clip.download_pretrained(tag) if tag else download_pretrained_from_hf(place)
    except Exception as error:  # no network, no access, a wrong id: the hub's client raises many kinds
        raise InputError(
            f"{weights or place}: cannot be downloaded ({first_line(error)}); give a local checkpoint file."
        ) from error
    return Path(file), tag
