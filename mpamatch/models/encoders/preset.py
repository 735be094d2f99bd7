"""The table of encoders: presets.yaml, and every ViT of timm by timm's name."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import timm
import yaml

from mpamatch.errors import unknown
from mpamatch.models.encoders.base import Constants

TABLE = Path(__file__).with_name("presets.yaml")
IMAGENET: tuple[Constants, Constants] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean, std


@dataclass(frozen=True)
class Preset:
    """An entry of presets.yaml: how an encoder is built, without its weights.

    Attributes:
        name: what model.encoder says.
        family: small, vit or mit, which decides what builds it.
        arguments: of the family, such as timm's `model_name`.
        mean: of R, G and B in 0..1, which images were normalised by in training.
        std: as `mean`.
        hub: the hf-hub id of its weights, if there is one.
        licence: terms of its weights in one sentence, unless everybody may use them.
    """

    name: str
    family: str
    arguments: Mapping[str, Any]
    mean: Constants
    std: Constants
    hub: str | None = None
    licence: str | None = None


@cache
def presets() -> dict[str, Preset]:
    """Reads presets.yaml, once.

    Returns:
        Every preset by its name.
    """
    table = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return {name: _preset(name, **entry) for name, entry in table.items()}


def _preset(name: str, *, mean: list[float], std: list[float], **others: Any) -> Preset:
    return Preset(name, mean=_constants(mean), std=_constants(std), **others)


def _constants(numbers: list[float]) -> Constants:
    red, green, blue = map(float, numbers)
    return red, green, blue


def preset_of(name: str) -> Preset:
    """Returns the preset called `name`, or one for timm's ViT of this name. Raises InputError for an unknown name."""
    if name in presets():
        return presets()[name]
    if timm.is_model(name):
        return Preset(name, "vit", {"model_name": name}, *IMAGENET)
    raise unknown("model.encoder", name, [*presets(), *timm.list_models("vit_*")])
