"""SegFormer's Mix Transformers (arXiv 2105.15203), those of segmentation_models_pytorch."""

from typing import Any

from torch import Tensor

from mpamatch.errors import InputError
from mpamatch.models.encoders.base import Encoder
from mpamatch.models.encoders.preset import Preset
from mpamatch.models.weights import load_backbone


class MiTEncoder(Encoder):
    """A Mix Transformer with strides 4, 2, 2, 1: maps at strides 4, 8, 16 and 16 (LPD, arXiv 2512.05922).

    Two things differ from segmentation_models_pytorch's: the last patch embedding has stride 1, and there is no
    stochastic depth, so that a step depends on its batch alone.
    """

    def __init__(self, mit: Any):
        super().__init__()
        self.mit = mit
        mit.patch_embed4.proj.stride = (1, 1)
        mit.reset_drop_path(0.0)
        self.channels, self.strides, self.multiple = tuple(mit.out_channels[2:]), (4, 8, 16, 16), 16

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        maps, x = [], image
        for number in range(1, 5):
            x = getattr(self.mit, f"patch_embed{number}")(x)
            x = self.through(getattr(self.mit, f"block{number}"), x)
            x = getattr(self.mit, f"norm{number}")(x).contiguous()
            maps.append(x)
        return tuple(maps)


def build_mit(preset: Preset, weights: str | None, _norm: str) -> Encoder:
    """Builds a Mix Transformer with random weights, published ones ("smp") or those of a checkpoint file.

    Raises InputError for weights that do not fit or cannot be fetched.
    """
    from segmentation_models_pytorch.encoders import get_encoder

    if weights in ("timm", "hub"):
        raise InputError(f"model.encoder_weights: {weights!r} has no weights of {preset.name!r}; give a file or 'smp'.")
    try:
        mit: Any = get_encoder(preset.arguments["encoder"], weights="imagenet" if weights == "smp" else None)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"model.encoder_weights: 'smp' could not be fetched for {preset.name!r} ({type(error).__name__}); "
            "download the file and give its path."
        ) from error
    if weights and weights != "smp":
        load_backbone(mit, weights)
    encoder = MiTEncoder(mit)
    encoder.mean, encoder.std = preset.mean, preset.std
    return encoder
