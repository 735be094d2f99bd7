"""LPD's network (arXiv 2512.05922): an encoder of four maps and learnable prototypes, whose cosines are class maps."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mpamatch.errors import InputError
from mpamatch.models.encoder import Encoder
from mpamatch.models.transunet import ModelConfig, Prediction, TransUNet
from mpamatch.ops.unit import unit, working

LEAST = 1e-4  # of a score, so that its logarithm is finite


class ClassMaps(NamedTuple):
    """Of the F = C − 1 foreground classes, prototypes weighted by the softmax of their own scores."""

    score: Tensor  # (B, F)
    map: Tensor  # (B, F, h, w) at the finest of the three scales


class MapsHead(nn.Module):
    """K prototypes for each foreground class, compared with scales 2, 3 and 4 of the encoder.

    Each scale has an MLP D → D/2 → C_i that brings the prototypes into its channels, and a learnable factor of the
    cosines, from 1/.07. Raises InputError where a field does not fit, or the encoder has not four maps.
    """

    def __init__(self, encoder: Encoder, classes: int, config: ModelConfig):
        super().__init__()
        _check(encoder, config)
        self.foreground, self.per_class = classes - 1, config.prototypes
        width = config.prototype_width
        self.prototypes = nn.Parameter(torch.randn(self.foreground * self.per_class, width))
        self.project = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width // 2), nn.ReLU(inplace=True), nn.Linear(width // 2, channels))
            for channels in encoder.channels[1:]
        )
        self.factors = nn.Parameter(torch.full((3,), 1 / 0.07))
        self.weights = tuple(weight / sum(config.map_weights) for weight in config.map_weights)

    def cosines(self, maps: tuple[Tensor, ...]) -> list[Tensor]:  # of each scale: (B, F, K, h, w)
        """The cosine of every pixel with every prototype, float32 at least."""
        found = []
        for x, project in zip(maps[1:], self.project, strict=True):
            pixels = unit(working(x).movedim(1, -1))
            cosine = torch.einsum("bhwc,mc->bmhw", pixels, unit(working(project(self.prototypes))))
            found.append(working(cosine).unflatten(1, (self.foreground, self.per_class)))
        return found

    def scores(self, cosines: list[Tensor]) -> list[Tensor]:  # of each scale: (B, F)
        """The classification logits of training: the mean over pixels, then over a class's prototypes."""
        return [cosine.mean((2, 3, 4)) * factor for cosine, factor in zip(cosines, self.factors, strict=True)]

    def class_maps(self, cosines: list[Tensor]) -> ClassMaps:
        """Scales weighted as in the loss."""
        size = cosines[0].shape[-2:]
        score, total = cosines[0].new_zeros(()), cosines[0].new_zeros(())
        for cosine, factor, weight in zip(cosines, self.factors, self.weights, strict=True):
            each = cosine * factor
            mean = each.mean((-2, -1))  # (B, F, K)
            share = mean.softmax(-1)
            score = score + weight * (share * mean).sum(-1)
            of_class = (share[..., None, None] * each).sum(2)
            if of_class.shape[-2:] != size:
                of_class = functional.interpolate(of_class, size=size, mode="bilinear", align_corners=False)
            total = total + weight * of_class
        return ClassMaps(score, total)

    def forward(self, maps: tuple[Tensor, ...]) -> ClassMaps:
        return self.class_maps(self.cosines(maps))


class PrototypeMaps(TransUNet):
    """forward(image (B,3,H,W) normalised) → Prediction; any H and W. `logits` are logarithms of scores: that of the
    background is `config.background`, that of a class its map from 0 to 1, times the probability that the image shows
    the class over that of the most probable class; the softmax of the logits is a score's share of their sum.

    Maps are means over flips and scales of the image where the configuration says so (test-time augmentation).
    `known` replaces the quotient by image-level labels.
    """

    decoder: MapsHead

    def __init__(self, encoder: Encoder, classes: int, config: ModelConfig):
        super().__init__(encoder, classes, config)
        self._present: Tensor | None = None

    def head(self, encoder: Encoder, classes: int, config: ModelConfig) -> nn.Module:
        return MapsHead(encoder, classes, config)

    @contextmanager
    def known(self, present: Tensor) -> Iterator[None]:  # (C,) 1 where the images show the class
        """Within it the image-level label of all images that are predicted is known."""
        self._present = present
        try:
            yield
        finally:
            self._present = None

    def forward(self, image: Tensor) -> Prediction:
        found = self._augmented(image)
        cam = normalised(found.map)
        gate = found.score.sigmoid()
        gate = gate / gate.amax(1, keepdim=True)
        if self._present is not None:
            gate = self._present[1:].to(gate).expand_as(gate)
        size = image.shape[-2:]
        cam = functional.interpolate(cam * gate[:, :, None, None], size=size, mode="bilinear", align_corners=False)
        score = torch.cat([torch.full_like(cam[:, :1], self.config.background), cam], dim=1)
        return Prediction(score.clamp(min=LEAST).log(), found.map)

    def _augmented(self, image: Tensor) -> ClassMaps:
        """The mean over the image at every test scale, as it is and mirrored, at the map's size without scaling."""
        base: tuple[int, int] | None = None
        found = []
        for scale in sorted(self.config.test_scales, key=lambda scale: abs(scale - 1)):
            x = self._scaled(image, scale)
            for dims in ((), (-1,), (-2,)) if self.config.test_flips else ((),):
                score, of_class = self.decoder(self.encode(x.flip(dims) if dims else x))
                of_class = of_class.flip(dims) if dims else of_class
                base = base or (of_class.shape[-2], of_class.shape[-1])
                if of_class.shape[-2:] != base:
                    of_class = functional.interpolate(of_class, size=base, mode="bilinear", align_corners=False)
                found.append(ClassMaps(score, of_class))
        return ClassMaps(*(torch.stack(parts).mean(0) for parts in zip(*found, strict=True)))

    def _scaled(self, image: Tensor, scale: float) -> Tensor:
        if scale == 1:
            return image
        size = [max(2 * self.encoder.multiple, round(side * scale)) for side in image.shape[-2:]]
        return functional.interpolate(image, size=size, mode="bilinear", align_corners=False)


def normalised(map: Tensor) -> Tensor:  # (B, F, h, w) -> the same, 0 to 1
    """Each map from its smallest value to its largest; 0 where it is flat.

    Not what is positive of it: cosines have no offset, so with six classes of which an image shows one all maps are
    negative after 60 steps (EBHI-Seg), and everything would be background.
    """
    least, most = map.amin((-2, -1), keepdim=True), map.amax((-2, -1), keepdim=True)
    return (map - least) / (most - least).clamp(min=LEAST)


def _check(encoder: Encoder, config: ModelConfig) -> None:
    if len(encoder.channels) != 4:
        raise InputError(
            f"model.encoder: {config.encoder} gives {len(encoder.channels)} feature maps, model.head maps needs four; "
            "take mit_b0 to mit_b5, small_hybrid or small_conv."
        )
    if config.prototypes < 1 or config.prototype_width < 2:
        raise InputError(
            "model.prototypes, model.prototype_width: expected prototypes >= 1 and prototype_width >= 2, "
            f"got {config.prototypes} and {config.prototype_width}."
        )
    weights, scales = config.map_weights, config.test_scales
    if len(weights) != 3 or min(weights) < 0 or not sum(weights) > 0:
        raise InputError(f"model.map_weights: expected three numbers, none negative and not all 0, got {weights}.")
    if not scales or min(scales) <= 0:
        raise InputError(f"model.test_scales: expected one factor above 0 or more, got {scales}.")
    if not 0 < config.background < 1:
        raise InputError(f"model.background: expected above 0 and below 1, got {config.background}.")
