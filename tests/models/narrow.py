"""Real architectures of timm, narrowed so that each builds in well under a second, in the table of presets."""

from dataclasses import replace

import pytest

from mpamatch.models.encoders import Preset, presets
from mpamatch.models.encoders.preset import IMAGENET

WIDTH = {"embed_dim": 32, "depth": 1, "num_heads": 4}
VARIANTS = {
    "narrow16": {"model_name": "vit_base_patch16_224"},
    "narrow8": {"model_name": "vit_base_patch8_224"},
    "narrow32": {"model_name": "vit_base_patch32_224"},
    "narrow14_reg": {"model_name": "vit_base_patch14_reg4_dinov2"},
    "narrow16_no_prefix": {"model_name": "vit_base_patch16_siglip_gap_224"},
    "narrow_hybrid": {"model_name": "vit_base_r50_s16_224"},
    "narrow_hybrid_s32": {"model_name": "vit_large_r50_s32_224"},
    "narrow_hybrid_stem": {"model_name": "vit_tiny_r_s16_p8_224"},
}


def add_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the variants into the table."""
    for name, arguments in VARIANTS.items():
        monkeypatch.setitem(presets(), name, Preset(name, "vit", arguments | WIDTH, *IMAGENET))


def narrow(monkeypatch: pytest.MonkeyPatch, name: str, **arguments: object) -> None:
    """Changes arguments of a preset in the table."""
    preset = presets()[name]
    monkeypatch.setitem(presets(), name, replace(preset, arguments={**preset.arguments, **arguments}))
