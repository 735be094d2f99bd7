"""TransUNet and TransUNi: an encoder and a decoder of ×2 blocks, with or without skips, that a head ends."""

import math
from dataclasses import field
from typing import Annotated, Any, Literal

import torch
from annotated_types import Len
from torch import Tensor, nn
from torch.nn import functional

from mpamatch.errors import InputError
from mpamatch.models.encoders import Encoder
from mpamatch.models.layers import conv_norm
from mpamatch.models.network import NETWORKS, Network, NetworkConfig, Prediction
from mpamatch.models.recompute import recomputed
from mpamatch.settings import Count, OnlyIf, Positive, settings


@settings("model")
class TransUNetConfig(NetworkConfig):
    """Settings of TransUNet.

    Attributes:
        decoder_width: channels of the 3×3 convolution before the first block.
        decoder_channels: channels of the four ×2 blocks, from an encoder's map at stride 16 to the image; five begin
            with a map at stride 32, and a ViT with a patch of 8 takes the last three. The output at stride 4 is the
            embedding.
        head_kernel: size of the head, the last convolution: 1 (MPAMatch) or 3 (TransUNet).
        align_corners: how the blocks enlarge: true matches the centres of the corner pixels, as TransUNet's public code
            does; false keeps every pixel on its share of the image, where methods read the embedding's labels.
        boundary: whether one more output learns the border of objects, by which those that touch are told apart in
            prediction (docs/OBJECTS.md); the labelled images need numbers of objects.
        boundary_width: pixels of the scaled image on either side of an object's edge that are border.
        boundary_weight: of the border's term, (BCE + Dice)/2, beside the labelled loss.
    """

    decoder_width: Count = 512
    decoder_channels: Annotated[list[Count], Len(4, 5)] = field(default_factory=lambda: [256, 128, 64, 16])
    head_kernel: Literal[1, 3] = 1
    align_corners: bool = False
    boundary: bool = False
    boundary_width: Annotated[Count, OnlyIf("boundary")] = 3
    boundary_weight: Annotated[Positive, OnlyIf("boundary")] = 1.0

    @property
    def deepest(self) -> int:
        """Stride of the encoder's map that the decoder's blocks lead from, if the encoder has several: 16 or 32."""
        return 2 ** len(self.decoder_channels)


class DecoderBlock(nn.Module):
    """Upsampling by 2 (bilinear), concatenation with the skip, and two 3×3 convolutions.

    A skip that is `resized` is enlarged as its neighbour is, so that both show the same places.
    """

    def __init__(
        self, inputs: int, skip: int, outputs: int, norm: str, *, resized: bool = False, align_corners: bool = False
    ):
        super().__init__()
        self.align_corners = align_corners
        # a 1×1 convolution before the resizing gives what it would after it, for a fraction of the work
        self.squeeze = nn.Conv2d(skip, outputs, 1) if resized else None
        skip = outputs if resized else skip
        self.convs = nn.Sequential(conv_norm(inputs + skip, outputs, norm), conv_norm(outputs, outputs, norm))

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:  # (B, inputs, h, w) -> (B, outputs, 2h, 2w)
        """Decodes one level; `skip` is (B, skip, 2h, 2w), or of another size if it is to be resized."""
        bilinear: dict[str, Any] = {"mode": "bilinear", "align_corners": self.align_corners}
        x = functional.interpolate(x, scale_factor=2, **bilinear)
        if skip is not None and self.squeeze is not None:
            skip = functional.interpolate(self.squeeze(skip), size=x.shape[-2:], **bilinear)
        return self.convs(x if skip is None else torch.cat([x, skip], dim=1))


class Decoder(nn.Module):
    """TransUNet's cascaded upsampler (arXiv 2102.04306, section 3.2) and its head.

    The blocks halve the stride of the encoder's deepest map down to 1: four from 16, three from 8, five from 32. Each
    takes the encoder's map of its own stride as a skip if there is one, or a ViT's intermediate map by `between`.

    Attributes:
        embedding_width: channels of the block's output at stride 4.
    """

    def __init__(self, encoder: Encoder, classes: int, config: TransUNetConfig):
        super().__init__()
        channels = blocks_of(encoder, config)
        deepest = 2 ** round(math.log2(encoder.strides[-1]))
        strides = [deepest >> depth for depth in range(1, len(channels) + 1)]
        own = {stride: index for index, stride in enumerate(encoder.strides[:-1])}
        skip_at = own if encoder.between is None else encoder.between
        self.skip_index = [skip_at.get(stride, -1) for stride in strides]
        self.embeds = strides.index(4)
        self.embedding_width = channels[self.embeds]
        self.first = conv_norm(encoder.channels[-1], config.decoder_width, config.norm)
        inputs = [config.decoder_width, *channels[:-1]]
        self.blocks = nn.ModuleList(
            DecoderBlock(
                i,
                encoder.channels[skip] if skip >= 0 else 0,
                o,
                config.norm,
                resized=skip >= 0 and encoder.between is not None,
                align_corners=config.align_corners,
            )
            for i, o, skip in zip(inputs, channels, self.skip_index, strict=True)
        )
        self.head = nn.Conv2d(channels[-1], classes, config.head_kernel, padding=config.head_kernel // 2)
        self.border: nn.Module | None = None
        if config.boundary:  # built last, so that the network's other weights start as they do without it
            self.border = nn.Sequential(
                conv_norm(channels[-1], channels[-1], config.norm), nn.Conv2d(channels[-1], 1, 1)
            )
        self.checkpointing = config.checkpointing

    def forward(self, maps: tuple[Tensor, ...]) -> Prediction:
        """Decodes the encoder's maps; the logits come at the size of the image, or nearly."""
        x = self.first(maps[-1])
        embedding = x
        for depth, (block, skip) in enumerate(zip(self.blocks, self.skip_index, strict=True)):
            beside = maps[skip] if skip >= 0 else None
            x = recomputed(block, x, beside) if self.checkpointing else block(x, beside)
            if depth == self.embeds:
                embedding = x
        return Prediction(self.head(x), embedding, None if self.border is None else self.border(x))


def blocks_of(encoder: Encoder, config: TransUNetConfig) -> list[int]:
    """Returns the channels of the blocks that the encoder's deepest map needs: the last three, four or five configured.

    Raises InputError for five if the encoder has no map at stride 32.
    """
    needed, given = round(math.log2(encoder.strides[-1])), len(config.decoder_channels)
    if given > max(needed, 4):
        raise InputError(
            f"model.decoder_channels: {given} blocks begin at stride 32, {config.encoder} ends at "
            f"{encoder.strides[-1]}; give four."
        )
    return list(config.decoder_channels[-needed:])


@NETWORKS.register
class TransUNet(Network):
    """TransUNet (arXiv 2102.04306); with a plain ViT, which has no skips, TransUNi (MPAMatch, arXiv 2508.19574).

    ×2 blocks with the encoder's maps as skips, then the head, a 1×1 or 3×3 convolution. `encode` and `decode` are
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
        self.embedding_width = self.decoder.embedding_width
        if config.boundary:
            self.border_width, self.border_weight = config.boundary_width, config.boundary_weight
        self.tune()

    def decode(self, maps: tuple[Tensor, ...], size: tuple[int, int]) -> Prediction:
        """Decodes feature maps.

        Args:
            maps: the encoder's maps, as `encode` returns them; methods may have changed them.
            size: (H, W) of the image, which the logits are resized to.

        Returns:
            logits (B, C, H, W), embedding (B, D, h, w) and, if it is learned, border (B, 1, H, W).
        """
        logits, embedding, border = self.decoder(maps)
        if logits.shape[-2:] != size:  # four ×2 blocks bring a patch of 14 from a grid of 18 to 288
            logits = functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)
            if border is not None:
                border = functional.interpolate(border, size=size, mode="bilinear", align_corners=False)
        return Prediction(logits, embedding, border)

    def forward(self, image: Tensor) -> Prediction:
        return self.decode(self.encode(image), (image.shape[-2], image.shape[-1]))
