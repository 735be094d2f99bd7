"""From the name of an encoder to the encoder."""

from collections.abc import Callable

from mpamatch.models.encoders.base import Encoder
from mpamatch.models.encoders.mit import build_mit
from mpamatch.models.encoders.preset import Preset, preset_of
from mpamatch.models.encoders.small import build_small
from mpamatch.models.encoders.vit import build_vit

# What a preset's `family` stands for: preset, weights, norm of the layers that have no published weights → encoder.
FAMILIES: dict[str, Callable[[Preset, str | None, str], Encoder]] = {
    "small": build_small,
    "vit": build_vit,
    "mit": build_mit,
}


def build_encoder(name: str, weights: str | None, norm: str) -> Encoder:
    """The encoder called `name`: a preset (small_hybrid, uni, mit_b1, …), or any ViT of timm by timm's name.

    `weights`: None (random), "timm" (the weights timm publishes for the name), "smp" (mit_b*, ImageNet, published by
    segmentation_models_pytorch), "hub" (presets with a hub id, gated), an "hf-hub:…" id, or a local checkpoint. `norm`
    (`batch` or `group`) is that of the small encoders. Raises InputError for an unknown name and for weights that do
    not fit.
    """
    preset = preset_of(name)
    return FAMILIES[preset.family](preset, weights, norm)
