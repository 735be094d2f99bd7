"""Frozen text encoders: `base` is what all do, `build` lists them, a module for each family builds them."""

from mpamatch.models.text_encoders.base import TextEncoder
from mpamatch.models.text_encoders.build import build_text_encoder, text_encoders, text_licences
from mpamatch.models.text_encoders.minilm import MINILM

__all__ = ["MINILM", "TextEncoder", "build_text_encoder", "text_encoders", "text_licences"]
