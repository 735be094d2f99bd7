"""TransUNet and TransUNi: an encoder, four blocks of ×2 with or without skips, and a head."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mpamatch.errors import InputError
from mpamatch.models.adapters import add_adapters
from mpamatch.models.encoder import Encoder, conv_norm
from mpamatch.models.recompute import recomputed


@dataclass
class ModelConfig:
    """The network.

    Attributes:
        encoder: small_hybrid or small_conv (from scratch, for CPUs), uni, uni2-h, mit_b0 to mit_b5, or any timm ViT by
            name, such as vit_base_patch16_224 (TransUNi) or vit_base_r50_s16_224 (TransUNet).
        encoder_weights: nothing (random), a checkpoint file, timm or smp (published by them), hub (uni, uni2-h), or
            hf-hub:ID.
        head: decoder (TransUNet's); or maps of learnable prototypes, which the method lpd trains.
        tuning: full, lora (adapters in the attention of a ViT) or frozen; the last two need encoder_weights.
        lora_rank: rank of the adapters.
        encoder_lr_scale: learning rate of a pretrained encoder as a factor of the heads'.
        decoder_width: channels of the 3×3 convolution before the first block.
        decoder_channels: channels of the four ×2 blocks; the second one's output, at stride 4, is the embedding.
        norm: batch or group; group where a step sees one image.
        head_kernel: 1 (MPAMatch) or 3 (TransUNet).
        checkpointing: whether backward computes the activations of encoder and decoder blocks again instead of keeping
            them: less memory for more time.
        prototypes: of the maps, for each foreground class, K.
        prototype_width: their size, D.
        map_weights: of the maps of scales 2, 3 and 4, in the loss and in prediction.
        background: the score of the background among maps of 0 to 1, in prediction.
        test_flips: whether maps are means over the image and its two mirror images, in prediction.
        test_scales: sizes of the image, as factors of its own, that maps are means over, in prediction.
    """

    encoder: str = "small_hybrid"
    encoder_weights: str | None = None
    tuning: str = "full"
    lora_rank: int = 8
    encoder_lr_scale: float = 0.1
    head: str = "decoder"
    decoder_width: int = 512
    decoder_channels: list[int] = field(default_factory=lambda: [256, 128, 64, 16])
    norm: str = "batch"
    head_kernel: int = 1
    checkpointing: bool = False
    prototypes: int = 10
    prototype_width: int = 512
    map_weights: list[float] = field(default_factory=lambda: [0.1, 1.0, 1.0])
    background: float = 0.3
    test_flips: bool = True
    test_scales: list[float] = field(default_factory=lambda: [1.0])


class Prediction(NamedTuple):
    logits: Tensor  # (B, C, H, W) at the input's size
    embedding: Tensor  # (B, D, h, w) after the second ×2 block: stride 4 for a deepest map at stride 16


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

    def __init__(self, encoder: Encoder, classes: int, config: ModelConfig):
        super().__init__()
        if len(config.decoder_channels) != 4:
            raise InputError(f"model.decoder_channels: expected four widths, got {config.decoder_channels}.")
        if config.decoder_width < 1 or min(config.decoder_channels) < 1:
            widths = [config.decoder_width, *config.decoder_channels]
            raise InputError(f"model.decoder_width, model.decoder_channels: expected at least 1 each, got {widths}.")
        if config.head_kernel not in (1, 3):
            raise InputError(f"model.head_kernel: expected 1 or 3, got {config.head_kernel}.")
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


class TransUNet(nn.Module):
    """forward(image (B,3,H,W) normalised) → Prediction; any H and W.

    `encode` and `decode` are the two halves, so that a method decodes one encoding twice (feature perturbation).
    """

    def __init__(self, encoder: Encoder, classes: int, config: ModelConfig):
        super().__init__()
        self.encoder, self.config = encoder, config
        self.decoder: Any = self.head(encoder, classes, config)
        self.classes, self.embedding_width = classes, config.decoder_channels[1]
        self.frozen = config.tuning == "frozen"
        if self.frozen:
            self.encoder.requires_grad_(False)
        if config.tuning == "lora":
            add_adapters(self.encoder, config.lora_rank)
        if config.checkpointing:
            self.encoder.recompute()
        self.train()

    def head(self, encoder: Encoder, classes: int, config: ModelConfig) -> nn.Module:
        """What follows the encoder."""
        return Decoder(encoder, classes, config)

    def train(self, mode: bool = True) -> "TransUNet":
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    @property
    def keeps_encoder(self) -> bool:
        """Whether the encoder's own weights never change, so that nobody needs to store them again."""
        return self.config.tuning != "full"

    def encode(self, image: Tensor) -> tuple[Tensor, ...]:
        """Feature maps, shallow to deep; an image whose sides the patch does not divide is resized to the nearest that
        it does (256 to 252 for a patch of 14), so that every map covers the image and nothing else."""
        multiple = self.encoder.multiple
        size = [max(1, (side + multiple // 2) // multiple) * multiple for side in image.shape[-2:]]
        if size != list(image.shape[-2:]):
            image = functional.interpolate(image, size=size, mode="bilinear", align_corners=False)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.encoder(image)

    def decode(self, maps: tuple[Tensor, ...], size: tuple[int, int]) -> Prediction:
        """`size`: height and width of the image, at which the logits come."""
        logits, embedding = self.decoder(maps)
        if logits.shape[-2:] != size:  # four ×2 blocks bring a patch of 14 from a grid of 18 to 288
            logits = functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        return Prediction(logits, embedding)

    def forward(self, image: Tensor) -> Prediction:
        return self.decode(self.encode(image), (image.shape[-2], image.shape[-1]))
