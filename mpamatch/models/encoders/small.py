"""Small encoders for CPUs, trained from scratch."""

from collections.abc import Sequence

from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mpamatch.errors import InputError
from mpamatch.models.encoders.base import Encoder
from mpamatch.models.encoders.preset import Preset
from mpamatch.models.layers import conv_norm

WIDTHS = (16, 32, 64, 128)  # at strides 2, 4, 8, 16


class SmallEncoder(Encoder):
    """Convolutions down to stride 16, then `blocks` transformer blocks: maps at strides 2, 4, 8 and 16."""

    def __init__(self, blocks: int, norm: str):
        super().__init__()
        self.channels, self.strides, self.multiple = WIDTHS, (2, 4, 8, 16), 16
        inputs = (3, *WIDTHS[:-1])
        self.stages = nn.ModuleList(
            nn.Sequential(conv_norm(i, o, norm, stride=2), conv_norm(o, o, norm))
            for i, o in zip(inputs, WIDTHS, strict=True)
        )
        # Position comes from the zero padding of the convolutions and this depth-wise one (CPVT, arXiv 2102.10882),
        # so that any input size works without resampling a table.
        self.position = nn.Conv2d(WIDTHS[-1], WIDTHS[-1], 3, padding=1, groups=WIDTHS[-1]) if blocks else None
        self.blocks = nn.Sequential(
            *(Block(WIDTHS[-1], num_heads=4, mlp_ratio=2, qkv_bias=True) for _ in range(blocks))
        )

    def layers_by_map(self) -> list[list[nn.Module]]:
        return [
            [module for module in stage.modules() if any(True for _ in module.parameters(False))]
            for stage in self.stages[:-1]
        ]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        maps, x = [], image
        for stage in self.stages:
            x = self.through([stage], x)
            maps.append(x)
        if self.position is not None:
            x = x + self.position(x)
            tokens = self.through(self.blocks, x.flatten(2).transpose(1, 2))
            maps[-1] = tokens.transpose(1, 2).reshape(x.shape)
        return tuple(maps)


def build_small(preset: Preset, norm: str, skips: Sequence[int], _deepest: int) -> Encoder:
    """Builds a small encoder with random weights. Raises InputError for `skips`, which it does not take."""
    if skips:
        raise InputError(f"model.skips: {preset.name} has maps at several strides, which are skips as they are.")
    return SmallEncoder(**preset.arguments, norm=norm)
