"""Encoders: presets.yaml lists those with a name of our own; a module for each family builds them."""

from mpamatch.models.encoders.base import Encoder
from mpamatch.models.encoders.build import build_encoder, encoder_from
from mpamatch.models.encoders.preset import Preset, preset_of, presets
from mpamatch.models.encoders.sources import missing, settled, weights_line

__all__ = [
    "Encoder",
    "Preset",
    "build_encoder",
    "encoder_from",
    "missing",
    "preset_of",
    "presets",
    "settled",
    "weights_line",
]
