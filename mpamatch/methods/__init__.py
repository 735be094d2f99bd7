"""Methods: each one short class on the one loop, by the contract in `base`."""

from dataclasses import fields
from typing import Any

from mpamatch.errors import unknown
from mpamatch.methods.base import Method
from mpamatch.methods.fixmatch import FixMatch, FixMatchConfig
from mpamatch.methods.lpd import LPD, LPDConfig
from mpamatch.methods.mean_teacher import MeanTeacher, MeanTeacherConfig
from mpamatch.methods.mpamatch import MPAMatch, MPAMatchConfig
from mpamatch.methods.pccs import PCCS, PCCSConfig
from mpamatch.methods.supervised import Supervised, SupervisedConfig
from mpamatch.methods.unimatch import UniMatch, UniMatchConfig
from mpamatch.models.image import ImageEncoder
from mpamatch.models.prompt import TextPrototypes
from mpamatch.models.transunet import TransUNet

METHODS: dict[str, tuple[type[Method], type]] = {
    "supervised": (Supervised, SupervisedConfig),
    "mean_teacher": (MeanTeacher, MeanTeacherConfig),
    "fixmatch": (FixMatch, FixMatchConfig),
    "unimatch": (UniMatch, UniMatchConfig),
    "mpamatch": (MPAMatch, MPAMatchConfig),
    "pccs": (PCCS, PCCSConfig),
    "lpd": (LPD, LPDConfig),
}


def config_class(name: str) -> type:
    """The configuration of a method. Raises InputError naming the nearest method."""
    if name not in METHODS:
        raise unknown("method.name", name, METHODS)
    return METHODS[name][1]


def build_method(
    config: Any, model: TransUNet, text: TextPrototypes | None = None, image: ImageEncoder | None = None
) -> Method:
    """The method that `config` (one of the method configurations) describes, on `model`."""
    method: Any = METHODS[config.name][0]
    known = {field.name for field in fields(config)}
    towers = ([text] if "text_encoder" in known else []) + ([image] if "image_encoder" in known else [])
    return method(model, config, *towers)
