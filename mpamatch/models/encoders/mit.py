"""SegFormer's Mix Transformers (arXiv 2105.15203), those of segmentation_models_pytorch."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mpamatch.errors import InputError
from mpamatch.models.encoders.base import Encoder
from mpamatch.models.encoders.preset import Preset


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

    @property
    def backbone(self) -> nn.Module:
        return self.mit

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        maps, x = [], image
        for number in range(1, 5):
            x = getattr(self.mit, f"patch_embed{number}")(x)
            x = self.through(getattr(self.mit, f"block{number}"), x)
            x = getattr(self.mit, f"norm{number}")(x).contiguous()
            maps.append(x)
        return tuple(maps)


def build_mit(preset: Preset, _norm: str, skips: Sequence[int], _deepest: int) -> Encoder:
    """Builds a Mix Transformer with random weights. Raises InputError for `skips`, which it does not take."""
    from segmentation_models_pytorch.encoders import get_encoder

    if skips:
        raise InputError(f"model.skips: {preset.name} has maps at several strides, which are skips as they are.")
    mit: Any = get_encoder(preset.arguments["encoder"], weights=None)
    return MiTEncoder(mit)
