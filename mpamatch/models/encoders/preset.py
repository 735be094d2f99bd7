"""The table of encoders: presets.yaml, and any ViT of timm by timm's name."""

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
    """An encoder but for its weights; presets.yaml explains the fields."""

    name: str
    family: str
    arguments: Mapping[str, Any]
    mean: Constants
    std: Constants
    hub: str | None = None
    licence: str | None = None


@cache
def presets() -> dict[str, Preset]:
    """Every entry of presets.yaml by its name; the file is read at the first call."""
    table = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return {name: _preset(name, **entry) for name, entry in table.items()}


def _preset(name: str, *, mean: list[float], std: list[float], **others: Any) -> Preset:
    return Preset(name, mean=_constants(mean), std=_constants(std), **others)


def _constants(numbers: list[float]) -> Constants:
    red, green, blue = map(float, numbers)
    return red, green, blue


def preset_of(name: str) -> Preset:
    """The preset called `name`, or that of timm's ViT of this name. Raises InputError naming the nearest name."""
    if name in presets():
        return presets()[name]
    if timm.is_model(name):
        return Preset(name, "vit", {"model_name": name}, *IMAGENET)
    raise unknown("model.encoder", name, [*presets(), *timm.list_models("vit_*")])
