"""Encoders: presets.yaml lists those with a name of our own; a module for each family builds them."""

from mpamatch.models.encoders.base import Encoder
from mpamatch.models.encoders.build import build_encoder
from mpamatch.models.encoders.preset import Preset, presets

__all__ = ["Encoder", "Preset", "build_encoder", "presets"]
