"""LPD's network (arXiv 2512.05922): class maps from the cosines of an encoder's maps with learnable prototypes."""

from dataclasses import field
from typing import Annotated, NamedTuple

import torch
from annotated_types import Ge, Gt, Len, Lt, MinLen
from torch import Tensor, nn
from torch.nn import functional

from mpamatch.errors import InputError
from mpamatch.models.encoders import Encoder
from mpamatch.models.network import NETWORKS, Network, NetworkConfig, Prediction
from mpamatch.ops.unit import unit, working
from mpamatch.settings import Count, NonNegative, Positive, settings

LEAST = 1e-4  # smallest score, so that its logarithm is finite


@settings("model")
class PrototypeMapsConfig(NetworkConfig):
    """Settings of maps of learnable prototypes.

    Attributes:
        prototypes: for each foreground class, K.
        prototype_width: their size, D.
        map_weights: of the maps of scales 2, 3 and 4, in the loss and in prediction.
        background: the score of the background among maps of 0 to 1, in prediction.
        test_flips: whether maps are means over the image and its two mirror images, in prediction.
        test_scales: sizes of the image, as factors of its own, that maps are means over, in prediction.

    Raises:
        InputError: a value out of its range, map_weights that are all 0, or a tuning that needs encoder_weights without
            them.
    """

    prototypes: Count = 10
    prototype_width: Annotated[int, Ge(2)] = 512
    map_weights: Annotated[list[NonNegative], Len(3, 3)] = field(default_factory=lambda: [0.1, 1.0, 1.0])
    background: Annotated[float, Gt(0), Lt(1)] = 0.3
    test_flips: bool = True
    test_scales: Annotated[list[Positive], MinLen(1)] = field(default_factory=lambda: [1.0])

    def __post_init__(self) -> None:
        super().__post_init__()
        if not sum(self.map_weights) > 0:
            raise InputError(f"model.map_weights: expected not all 0, got {self.map_weights}.")


class ClassMaps(NamedTuple):
    """Scores and maps of the F = C − 1 foreground classes.

    Prototypes of a class are weighted by the softmax of their own scores, and scales by `map_weights`.
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

    def cosines(self, maps: tuple[Tensor, ...]) -> list[Tensor]:  # of each scale: (B, F, K, h, w)
        """Computes the cosine of every pixel with every prototype, in float32 (float64 for float64 maps)."""
        found = []
        for x, project in zip(maps[1:], self.project, strict=True):
            pixels = unit(working(x).movedim(1, -1))
            cosine = torch.einsum("bhwc,mc->bmhw", pixels, unit(working(project(self.prototypes))))
            found.append(working(cosine).unflatten(1, (self.foreground, self.per_class)))
        return found

    def scores(self, cosines: list[Tensor]) -> list[Tensor]:  # of each scale: (B, F)
        """Computes the classification logits of training: the mean over pixels, then over a class's prototypes."""
        return [cosine.mean((2, 3, 4)) * factor for cosine, factor in zip(cosines, self.factors, strict=True)]

    def class_maps(self, cosines: list[Tensor]) -> ClassMaps:
        """Computes the scores and maps of prediction, scales weighted as in the loss."""
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
        """Computes scores and maps from the encoder's four maps."""
        return self.class_maps(self.cosines(maps))


@NETWORKS.register
class PrototypeMaps(Network):
    """LPD's network (arXiv 2512.05922): an encoder of four maps, and prototypes whose cosines with them are class maps.

    The logits are logarithms of scores, so that their softmax is each score's share of the sum. The score of the
    background is `config.background`; that of a class is its map, scaled to 0 … 1, times the probability that the image
    shows the class over that of the most probable class. In `forward`, maps are means over flips and scales of the
    image if the configuration says so (test-time augmentation).

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
            The logits (B, C, H, W), and as the embedding the class maps (B, C − 1, h, w) at the encoder's second scale.
        """
        found = self._augmented(image)
        cam = normalised(found.map)
        gate = found.score.sigmoid()
        gate = gate / gate.amax(1, keepdim=True)
        if present is not None:
            gate = present[1:].to(gate).expand_as(gate)
        size = image.shape[-2:]
        cam = functional.interpolate(cam * gate[:, :, None, None], size=size, mode="bilinear", align_corners=False)
        score = torch.cat([torch.full_like(cam[:, :1], self.config.background), cam], dim=1)
        return Prediction(score.clamp(min=LEAST).log(), found.map)

    def _augmented(self, image: Tensor) -> ClassMaps:
        """Averages scores and maps over the image's test scales and flips, at the map's size without scaling."""
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
    """Scales each map linearly from its smallest value (0) to its largest (1); a constant map becomes 0.

    Clamping at 0 instead would not do: cosines have no offset, so with six classes of which an image shows one all maps
    are negative after 60 steps (EBHI-Seg), and everything would be background.
    """
    least, most = map.amin((-2, -1), keepdim=True), map.amax((-2, -1), keepdim=True)
    return (map - least) / (most - least).clamp(min=LEAST)
