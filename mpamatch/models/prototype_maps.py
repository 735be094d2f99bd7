"""LPD's network (arXiv 2512.05922): class maps from the cosines of an encoder's maps with learnable prototypes."""

from collections.abc import Iterator
from dataclasses import field
from typing import Annotated, Any, Literal, NamedTuple

import torch
from annotated_types import Ge, Gt, Len, Lt, MinLen
from pydantic import BeforeValidator
from torch import Tensor, nn
from torch.nn import functional

from mpamatch.errors import InputError
from mpamatch.models.encoders import Encoder
from mpamatch.models.network import NETWORKS, Network, NetworkConfig, Prediction
from mpamatch.ops.unit import unit, working
from mpamatch.settings import Count, NonNegative, OnlyIf, Positive, settings

LEAST = 1e-4  # smallest score, so that its logarithm is finite
BACKGROUND_POWER = 10  # of the public code
FLIPS: dict[str, tuple[tuple[int, ...], ...]] = {"none": ((),), "horizontal": ((), (-1,)), "both": ((), (-1,), (-2,))}


def _former(value: Any) -> Any:
    """Reads test_flips of a run from before it had three values."""
    return {"true": "both", "false": "none"}.get(value, value) if isinstance(value, str) else value


@settings("model")
class PrototypeMapsConfig(NetworkConfig):
    """Settings of maps of learnable prototypes.

    Attributes:
        prototypes: for each foreground class, K.
        prototype_width: their size, D.
        map_weights: of the maps of scales 2, 3 and 4, in the loss and in prediction.
        prototype_weighting: over what the softmax runs that weights the maps of a class's prototypes: in each pixel
            their values there (public code), or in the whole image their means.
        scoring: how maps become scores. joint: their weighted sum over scales, from its least value to its largest;
            published: as the public code, each scale cut off at 0 and scaled to 0 … 1 by itself, then summed by
            published_weights, and the background has (1 − the highest)¹⁰.
        background: the score of the background among maps of 0 to 1, in prediction.
        published_weights: of the maps of scales 2, 3 and 4.
        test_flips: which images maps are means over, in prediction: none (the image alone), horizontal (and mirrored
            left to right, public code) or both (and upside down too).
        test_factors: what the normalised image is multiplied by; maps are means over these, in prediction. The public
            code takes [0.9, 1, 1.1].
        test_scales: sizes of the image, as factors of its own, that maps are means over, in prediction.

    Raises:
        InputError: a value out of its range, map_weights or published_weights that are all 0, or a tuning that needs
            encoder_weights without them.
    """

    prototypes: Count = 10
    prototype_width: Annotated[int, Ge(2)] = 512
    map_weights: Annotated[list[NonNegative], Len(3, 3)] = field(default_factory=lambda: [0.1, 1.0, 1.0])
    prototype_weighting: Literal["pixel", "image"] = "pixel"
    scoring: Literal["joint", "published"] = "joint"
    background: Annotated[float, Gt(0), Lt(1), OnlyIf("scoring", ("joint",))] = 0.3
    published_weights: Annotated[list[NonNegative], Len(3, 3), OnlyIf("scoring", ("published",))] = field(
        default_factory=lambda: [0.3, 0.3, 0.4]
    )
    test_flips: Annotated[Literal["none", "horizontal", "both"], BeforeValidator(_former)] = "both"
    test_factors: Annotated[list[Positive], MinLen(1)] = field(default_factory=lambda: [1.0])
    test_scales: Annotated[list[Positive], MinLen(1)] = field(default_factory=lambda: [1.0])

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("map_weights", "published_weights"):
            if not sum(getattr(self, name)) > 0:
                raise InputError(f"model.{name}: expected not all 0, got {getattr(self, name)}.")


class ClassMaps(NamedTuple):
    """Scores and maps of the F = C − 1 foreground classes.

    Prototypes of a class are weighted by the softmax of their own scores or maps, and scales by `map_weights`.
    """

    score: Tensor  # (B, F) logits
    map: Tensor  # (B, F, h, w) at the finest of the three scales


class MapDecoder(nn.Module):
    """K prototypes for each foreground class, compared with scales 2, 3 and 4 of the encoder.

    Each scale has an MLP D → D/2 → C_i that projects the prototypes to its channels, and a learnable factor of the
    cosines that starts at 1/.07. Raises InputError if the encoder does not have four maps.
    """

    def __init__(self, encoder: Encoder, classes: int, config: PrototypeMapsConfig):
        super().__init__()
        if len(encoder.channels) != 4:
            raise InputError(
                f"model.encoder: {config.encoder} gives {len(encoder.channels)} feature maps, the maps of prototypes "
                "need four; take mit_b0 to mit_b5, small_hybrid or small_conv."
            )
        self.foreground, self.per_class = classes - 1, config.prototypes
        width = config.prototype_width
        self.prototypes = nn.Parameter(torch.randn(self.foreground * self.per_class, width))
        self.project = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width // 2), nn.ReLU(inplace=True), nn.Linear(width // 2, channels))
            for channels in encoder.channels[1:]
        )
        self.factors = nn.Parameter(torch.full((3,), 1 / 0.07))
        self.weights = tuple(weight / sum(config.map_weights) for weight in config.map_weights)
        self.by_pixel = config.prototype_weighting == "pixel"

    def cosines(self, maps: tuple[Tensor, ...]) -> list[Tensor]:  # of each scale: (B, F, K, h, w)
        """Computes the cosine of every pixel with every prototype, in float32 (float64 for float64 maps)."""
        return [self._cosine(x, project(self.prototypes)) for x, project in zip(maps[1:], self.project, strict=True)]

    def raw_cosines(self, maps: tuple[Tensor, ...]) -> Tensor:  # (B, F, K, h, w)
        """Computes the cosine of every pixel of the deepest map, of D channels, with every prototype itself."""
        return self._cosine(maps[-1], self.prototypes)

    def _cosine(self, x: Tensor, prototypes: Tensor) -> Tensor:
        pixels = unit(working(x).movedim(1, -1))
        cosine = torch.einsum("bhwc,mc->bmhw", pixels, unit(working(prototypes)))
        return working(cosine).unflatten(1, (self.foreground, self.per_class))

    def scores(self, cosines: list[Tensor]) -> list[Tensor]:  # of each scale: (B, F)
        """Computes the classification logits of training: the mean over pixels, then over a class's prototypes."""
        return [cosine.mean((2, 3, 4)) * factor for cosine, factor in zip(cosines, self.factors, strict=True)]

    def class_maps(self, cosines: list[Tensor]) -> ClassMaps:
        """Computes the scores and maps of prediction, scales weighted as in the loss."""
        size = cosines[0].shape[-2:]
        score, total = cosines[0].new_zeros(()), cosines[0].new_zeros(())
        for (mean, of_class), weight in zip(self.scale_maps(cosines), self.weights, strict=True):
            score = score + weight * mean
            total = total + weight * _resized(of_class, size)
        return ClassMaps(score, total)

    def scale_maps(self, cosines: list[Tensor]) -> Iterator[ClassMaps]:
        """Computes scores and maps of each scale, at its own size."""
        for cosine, factor in zip(cosines, self.factors, strict=True):
            each = cosine * factor
            mean = each.mean((-2, -1))  # (B, F, K)
            share = mean.softmax(-1)
            weight = each.softmax(2) if self.by_pixel else share[..., None, None]
            yield ClassMaps((share * mean).sum(-1), (weight * each).sum(2))

    def mean_cosines(self, cosines: list[Tensor]) -> Tensor:  # (B, F, K, h, w) at the finest of the three scales
        """Averages the cosines over scales, weighted as in the loss."""
        size = cosines[0].shape[-2:]
        resized = (
            functional.interpolate(each.flatten(1, 2), size=size, mode="bilinear", align_corners=False)
            for each in cosines
        )
        total = sum(weight * each for weight, each in zip(self.weights, resized, strict=True))
        return torch.as_tensor(total).unflatten(1, (self.foreground, self.per_class))

    def forward(self, maps: tuple[Tensor, ...]) -> ClassMaps:
        """Computes scores and maps from the encoder's four maps."""
        return self.class_maps(self.cosines(maps))


@NETWORKS.register
class PrototypeMaps(Network):
    """LPD's network (arXiv 2512.05922): an encoder of four maps, and prototypes whose cosines with them are class maps.

    The logits are logarithms of scores, so that their softmax is each score's share of the sum. The score of a class is
    its map, scaled to 0 … 1, times the probability that the image shows the class over that of the most probable class;
    that of the background is `config.background`, or (1 − the highest of the others)¹⁰ in the published scoring. In
    `forward`, maps are means over flips, factors and scales of the image if the configuration says so (test-time
    augmentation).

    Args:
        encoder: an encoder with four maps: mit_b0 to mit_b5, small_hybrid, small_conv.
        classes: C, the number of classes, the background among them.
        config: its settings.

    Attributes:
        decoder: the prototypes and what compares them with the encoder's maps.

    Raises:
        InputError: the encoder does not have four maps, or cannot be tuned as the configuration says.
    """

    name = "prototype_maps"
    configuration = PrototypeMapsConfig
    takes_image_labels = True
    config: PrototypeMapsConfig
    decoder: MapDecoder

    def __init__(self, encoder: Encoder, classes: int, config: PrototypeMapsConfig):
        super().__init__(encoder, classes, config)
        self.decoder = MapDecoder(encoder, classes, config)
        self.tune()

    def forward(
        self,
        image: Tensor,  # (B, 3, H, W) normalised
        present: Tensor | None = None,  # (C,) 1 for the classes that the images are known to show
    ) -> Prediction:
        """Predicts a batch of images.

        Args:
            image: any H and W, normalised by the encoder's mean and std.
            present: image-level label of all images of the batch, in place of the network's own probabilities of the
                classes; None: not known.

        Returns:
            The logits (B, C, H, W), and as the embedding the class maps (B, C − 1, h, w) at the encoder's second scale,
            or at the size of the image in the published scoring.
        """
        found, size = self._augmented(image), image.shape[-2:]
        published = self.config.scoring == "published"
        gate = found.score.sigmoid()
        gate = gate / gate.amax(1, keepdim=True)
        if present is not None:
            gate = present[1:].to(gate).expand_as(gate)
        cam = found.map if published else normalised(found.map)
        cam = _resized(cam * gate[:, :, None, None], size)
        if published:
            background = (1 - cam.amax(1, keepdim=True)) ** BACKGROUND_POWER
        else:
            background = torch.full_like(cam[:, :1], self.config.background)
        return Prediction(torch.cat([background, cam], dim=1).clamp(min=LEAST).log(), found.map)

    def _augmented(self, image: Tensor) -> ClassMaps:
        """Averages scores and maps over the image's test scales, factors and flips.

        Maps are at the size that they have without scaling; in the published scoring they are scaled to 0 … 1 and at
        the size of the image.
        """
        size: tuple[int, ...] | None = tuple(image.shape[-2:]) if self.config.scoring == "published" else None
        found = []
        for scale in sorted(self.config.test_scales, key=lambda scale: abs(scale - 1)):
            x = self._scaled(image, scale)
            for factor in self.config.test_factors:
                for dims in FLIPS[self.config.test_flips]:
                    view = x * factor if factor != 1 else x
                    cosines = self.decoder.cosines(self.encode(view.flip(dims) if dims else view))
                    score, of_class = self._read(cosines, image.shape[-2:])
                    of_class = of_class.flip(dims) if dims else of_class
                    size = size or tuple(of_class.shape[-2:])
                    found.append(ClassMaps(score, _resized(of_class, size)))
        return ClassMaps(*(torch.stack(parts).mean(0) for parts in zip(*found, strict=True)))

    def _read(self, cosines: list[Tensor], size: torch.Size) -> ClassMaps:
        """Computes scores and maps of one view as the configured scoring combines the scales."""
        if self.config.scoring == "joint":
            return self.decoder.class_maps(cosines)
        weights, score = self.config.published_weights, self.decoder.class_maps(cosines).score
        each = [_resized(normalised(one.map.clamp(min=0)), size) for one in self.decoder.scale_maps(cosines)]
        return ClassMaps(score, sum((w * one for w, one in zip(weights, each, strict=True)), torch.zeros_like(each[0])))

    def _scaled(self, image: Tensor, scale: float) -> Tensor:
        if scale == 1:
            return image
        size = [max(2 * self.encoder.multiple, round(side * scale)) for side in image.shape[-2:]]
        return functional.interpolate(image, size=size, mode="bilinear", align_corners=False)


def _resized(map: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resizes maps (bilinear) if they have another size."""
    if tuple(map.shape[-2:]) == tuple(size):
        return map
    return functional.interpolate(map, size=size, mode="bilinear", align_corners=False)


def normalised(map: Tensor) -> Tensor:  # (B, F, h, w) -> the same, 0 to 1
    """Scales each map linearly from its smallest value (0) to its largest (1); a constant map becomes 0.

    Clamping at 0 instead would not do: cosines have no offset, so with six classes of which an image shows one all maps
    are negative after 60 steps (EBHI-Seg), and everything would be background.
    """
    least, most = map.amin((-2, -1), keepdim=True), map.amax((-2, -1), keepdim=True)
    return (map - least) / (most - least).clamp(min=LEAST)
