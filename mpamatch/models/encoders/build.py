"""Builds an encoder by its name."""

from collections.abc import Callable

from mpamatch.models.encoders.base import Encoder
from mpamatch.models.encoders.mit import build_mit
from mpamatch.models.encoders.preset import Preset, preset_of
from mpamatch.models.encoders.small import build_small
from mpamatch.models.encoders.vit import build_vit

# By a preset's `family`: preset, weights, norm of the layers that have no published weights → encoder.
FAMILIES: dict[str, Callable[[Preset, str | None, str], Encoder]] = {
    "small": build_small,
    "vit": build_vit,
    "mit": build_mit,
}


def build_encoder(name: str, weights: str | None, norm: str) -> Encoder:
    """Builds an encoder.

    Args:
        name: a preset (small_hybrid, uni, mit_b1, …; `presets` lists them), or any ViT of timm by timm's name.
        weights: None (random), "timm" (published by timm), "smp" (mit_b*: ImageNet, published by
            segmentation_models_pytorch), "hub" (uni and uni2-h, gated), an "hf-hub:…" id, or a checkpoint file.
        norm: "batch" or "group"; of the small encoders, others have their own.

    Returns:
        The encoder, on the CPU.

    Raises:
        InputError: an unknown name (the nearest is named), or weights that do not fit (the first differences are
            listed) or cannot be fetched.
    """
    preset = preset_of(name)
    return FAMILIES[preset.family](preset, weights, norm)
