"""Small encoders for CPUs, trained from scratch."""

from pathlib import Path

from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mpamatch.errors import InputError
from mpamatch.models.encoders.base import Encoder
from mpamatch.models.encoders.preset import Preset
from mpamatch.models.layers import conv_norm
from mpamatch.models.weights import load_checked, read_state_dict

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


def build_small(preset: Preset, weights: str | None, norm: str) -> Encoder:
    """Builds a small encoder with random weights or those of a checkpoint file. Raises InputError for other weights."""
    encoder = SmallEncoder(**preset.arguments, norm=norm)
    encoder.mean, encoder.std = preset.mean, preset.std
    if weights in ("timm", "hub", "smp"):
        raise InputError(
            f"model.encoder_weights: nobody publishes weights of {preset.name!r}; give a file or leave it out."
        )
    if weights is not None:
        load_checked(encoder, read_state_dict(Path(weights)), weights)
    return encoder
