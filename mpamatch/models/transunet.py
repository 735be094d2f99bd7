"""TransUNet and TransUNi: an encoder, four blocks of ×2 with or without skips, and a head."""

from dataclasses import field
from typing import Annotated, Literal

import torch
from annotated_types import Len
from torch import Tensor, nn
from torch.nn import functional

from mpamatch.models.encoders import Encoder
from mpamatch.models.layers import conv_norm
from mpamatch.models.network import NETWORKS, Network, NetworkConfig, Prediction
from mpamatch.models.recompute import recomputed
from mpamatch.settings import Count, settings


@settings("model")
class TransUNetConfig(NetworkConfig):
    """TransUNet.

    Attributes:
        decoder_width: channels of the 3×3 convolution before the first block.
        decoder_channels: channels of the four ×2 blocks; the second one's output, at stride 4, is the embedding.
        head_kernel: 1 (MPAMatch) or 3 (TransUNet).
    """

    decoder_width: Count = 512
    decoder_channels: Annotated[list[Count], Len(4, 4)] = field(default_factory=lambda: [256, 128, 64, 16])
    head_kernel: Literal[1, 3] = 1


class DecoderBlock(nn.Module):
    """Bilinear ×2, the skip beside it, two 3×3 convolutions."""

    def __init__(self, inputs: int, skip: int, outputs: int, norm: str):
        super().__init__()
        self.convs = nn.Sequential(conv_norm(inputs + skip, outputs, norm), conv_norm(outputs, outputs, norm))

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        x = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return self.convs(x if skip is None else torch.cat([x, skip], dim=1))


class Decoder(nn.Module):
    """TransUNet's cascaded upsampler (arXiv 2102.04306, section 3.2) with an optional skip before each block."""

    def __init__(self, encoder: Encoder, classes: int, config: TransUNetConfig):
        super().__init__()
        skip_at = dict(zip(encoder.strides[:-1], encoder.channels[:-1], strict=True))
        self.skip_index = [encoder.strides.index(s) if s in skip_at else -1 for s in (8, 4, 2, 1)]
        self.first = conv_norm(encoder.channels[-1], config.decoder_width, config.norm)
        inputs = [config.decoder_width, *config.decoder_channels[:-1]]
        self.blocks = nn.ModuleList(
            DecoderBlock(i, skip_at.get(stride, 0), o, config.norm)
            for i, o, stride in zip(inputs, config.decoder_channels, (8, 4, 2, 1), strict=True)
        )
        self.head = nn.Conv2d(config.decoder_channels[-1], classes, config.head_kernel, padding=config.head_kernel // 2)
        self.checkpointing = config.checkpointing

    def forward(self, maps: tuple[Tensor, ...]) -> Prediction:
        x = self.first(maps[-1])
        embedding = x
        for depth, (block, skip) in enumerate(zip(self.blocks, self.skip_index, strict=True)):
            beside = maps[skip] if skip >= 0 else None
            x = recomputed(block, x, beside) if self.checkpointing else block(x, beside)
            if depth == 1:
                embedding = x
        return Prediction(self.head(x), embedding)


@NETWORKS.register
class TransUNet(Network):
    """An encoder, four blocks of ×2, with the encoder's maps beside them as skips, and a 1×1 or 3×3 convolution.

    `encode` and `decode` are the two halves, so that a method decodes one encoding twice (feature perturbation).
    """

    name = "transunet"
    configuration = TransUNetConfig
    decoder: Decoder
    embedding_width: int  # D of Prediction.embedding

    def __init__(self, encoder: Encoder, classes: int, config: TransUNetConfig):
        super().__init__(encoder, classes, config)
        self.decoder = Decoder(encoder, classes, config)
        self.embedding_width = config.decoder_channels[1]
        self.tune()

    def decode(self, maps: tuple[Tensor, ...], size: tuple[int, int]) -> Prediction:
        """`size`: height and width of the image, at which the logits come."""
        logits, embedding = self.decoder(maps)
        if logits.shape[-2:] != size:  # four ×2 blocks bring a patch of 14 from a grid of 18 to 288
            logits = functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        return Prediction(logits, embedding)

    def forward(self, image: Tensor) -> Prediction:
        return self.decode(self.encode(image), (image.shape[-2], image.shape[-1]))
