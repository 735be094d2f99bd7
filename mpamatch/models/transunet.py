"""TransUNet and TransUNi: an encoder and a decoder of four ×2 blocks, with or without skips, that a head ends."""

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
    """Settings of TransUNet.

    Attributes:
        decoder_width: channels of the 3×3 convolution before the first block.
        decoder_channels: channels of the four ×2 blocks; the second one's output, at stride 4, is the embedding.
        head_kernel: size of the head, the last convolution: 1 (MPAMatch) or 3 (TransUNet).
    """

    decoder_width: Count = 512
    decoder_channels: Annotated[list[Count], Len(4, 4)] = field(default_factory=lambda: [256, 128, 64, 16])
    head_kernel: Literal[1, 3] = 1


class DecoderBlock(nn.Module):
    """Upsampling by 2 (bilinear), concatenation with the skip, and two 3×3 convolutions."""

    def __init__(self, inputs: int, skip: int, outputs: int, norm: str):
        super().__init__()
        self.convs = nn.Sequential(conv_norm(inputs + skip, outputs, norm), conv_norm(outputs, outputs, norm))

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:  # (B, inputs, h, w) -> (B, outputs, 2h, 2w)
        """Decodes one level; `skip` is (B, skip, 2h, 2w)."""
        x = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return self.convs(x if skip is None else torch.cat([x, skip], dim=1))


class Decoder(nn.Module):
    """TransUNet's cascaded upsampler (arXiv 2102.04306, section 3.2) and its head.

    With a deepest map at stride 16 the blocks' outputs have strides 8, 4, 2 and 1; each block takes the encoder's map
    of its own stride as a skip if there is one.
    """

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
        """Decodes the encoder's maps; the logits come at 16 times the size of the deepest one."""
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
    """TransUNet (arXiv 2102.04306); with a plain ViT, which has no skips, TransUNi (MPAMatch, arXiv 2508.19574).

    Four ×2 blocks with the encoder's maps as skips, then the head, a 1×1 or 3×3 convolution. `encode` and `decode` are
    the two halves of `forward`, so that a method can decode one encoding twice (feature perturbation).

    Args:
        encoder: any encoder.
        classes: C, the number of classes, the background among them.
        config: its settings.

    Attributes:
        decoder: the blocks and the head.
        embedding_width: D, the channels of `Prediction.embedding`.

    Raises:
        InputError: the encoder cannot be tuned as the configuration says.
    """

    name = "transunet"
    configuration = TransUNetConfig
    decoder: Decoder
    embedding_width: int

    def __init__(self, encoder: Encoder, classes: int, config: TransUNetConfig):
        super().__init__(encoder, classes, config)
        self.decoder = Decoder(encoder, classes, config)
        self.embedding_width = config.decoder_channels[1]
        self.tune()

    def decode(self, maps: tuple[Tensor, ...], size: tuple[int, int]) -> Prediction:
        """Decodes feature maps.

        Args:
            maps: the encoder's maps, as `encode` returns them; methods may have changed them.
            size: (H, W) of the image, which the logits are resized to.

        Returns:
            logits (B, C, H, W) and embedding (B, D, h, w).
        """
        logits, embedding = self.decoder(maps)
        if logits.shape[-2:] != size:  # four ×2 blocks bring a patch of 14 from a grid of 18 to 288
            logits = functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        return Prediction(logits, embedding)

    def forward(self, image: Tensor) -> Prediction:
        return self.decode(self.encode(image), (image.shape[-2], image.shape[-1]))
