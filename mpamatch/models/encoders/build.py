"""Builds an encoder by its name, or by the record of a checkpoint."""

from collections.abc import Callable, Sequence

from mpamatch.models.encoders.base import Encoder
from mpamatch.models.encoders.features import build_features
from mpamatch.models.encoders.mit import build_mit
from mpamatch.models.encoders.preset import Preset
from mpamatch.models.encoders.small import build_small
from mpamatch.models.encoders.sources import preset_for, published_state, settled
from mpamatch.models.encoders.vit import build_vit

# By a preset's `family`: preset, norm of the layers that have no published weights, intermediate blocks that are skips,
# stride of the map that the decoder begins with → an encoder with random weights.
FAMILIES: dict[str, Callable[[Preset, str, Sequence[int], int], Encoder]] = {
    "small": build_small,
    "vit": build_vit,
    "features": build_features,
    "mit": build_mit,
}


def build_encoder(
    name: str, weights: str | None, norm: str, *, skips: Sequence[int] = (), deepest: int = 16
) -> Encoder:
    """Builds an encoder.

    Args:
        name: a preset (small_hybrid, uni, mit_b1, …; `presets` lists them), or any backbone of timm by timm's name.
        weights: None (random), "auto" (what is at hand), "offline" (from the extra pretrained-offline), "timm"
            (published by timm), "smp" (mit_b*: ImageNet, published by segmentation_models_pytorch), "hub" (the
            preset's), an "hf-hub:…" id, or a checkpoint file.
        norm: "batch" or "group"; of the small encoders, others have their own.
        skips: blocks of a ViT, in rising order, whose maps come before the last one.
        deepest: stride of the last map of a backbone that has several, 16 or 32.

    Returns:
        The encoder, on the CPU.

    Raises:
        InputError: an unknown name (the nearest is named), or weights that do not fit (the first differences are
            listed) or cannot be fetched.
    """
    weights = settled(name, weights)
    preset = preset_for(name, weights)
    encoder = encoder_from(preset, norm, skips=skips, deepest=deepest)
    if weights is not None:
        encoder.load(*published_state(preset, weights))
    return encoder


def encoder_from(preset: Preset, norm: str, *, skips: Sequence[int] = (), deepest: int = 16) -> Encoder:
    """Builds the encoder that a preset describes, with random weights; the other arguments are as of `build_encoder`.

    Raises:
        InputError: an encoder that does not fit the arguments.
    """
    encoder = FAMILIES[preset.family](preset, norm, skips, deepest)
    encoder.preset = preset
    return encoder
