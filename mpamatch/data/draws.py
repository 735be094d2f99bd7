"""All randomness of the data, in one file: every draw is a pure function of (seed, step, slot in the global batch).

Feeds only apply draws. So resuming is "set the step", sharding over ranks is slicing, and two feeds agree on geometry.
"""

import math
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

LABELLED, UNLABELLED, ORDER = 0, 1, 2  # independent streams of random numbers
AUGMENTS = ("histology", "natural")


def generator(seed: int, stream: int, step: int, slot: int) -> np.random.Generator:
    """Makes a counter-based generator (Philox): its key is (seed, stream), its counter starts at (step, slot)."""
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, slot, step]))


@lru_cache(maxsize=8)
def _order(seed: int, stream: int, epoch: int, length: int) -> np.ndarray:
    return generator(seed, ORDER + stream, epoch, 0).permutation(length)


def image_index(seed: int, stream: int, position: int, length: int) -> int:
    """Chooses which of `length` images stands at `position` = step · batch + slot: each once an epoch, shuffled."""
    epoch, place = divmod(position, length)
    return int(_order(seed, stream, epoch, length)[place])


@dataclass(frozen=True)
class Geometry:
    """How a square region of an image becomes a crop: cut, resize, flip, rotate.

    Attributes:
        zoom: above 1 it magnifies, so the region is smaller.
        top: share, in [0, 1), of the room that the region has down the image.
        left: the same across it.
        flip: left to right, before the turns.
        quarter_turns: counter-clockwise, 0 to 3.
    """

    zoom: float
    top: float
    left: float
    flip: bool
    quarter_turns: int

    def region(self, height: int, width: int, crop: int, scale: float) -> tuple[int, int, int]:
        """Computes top, left and side of the region in pixels of the image; the side may exceed the image."""
        side = max(1, round(crop / (scale * self.zoom)))
        return (
            int(self.top * (max(height, side) - side + 1)),
            int(self.left * (max(width, side) - side + 1)),
            side,
        )


@dataclass(frozen=True)
class ColourDraw:
    """The colour changes of a view; the default of each switches it off.

    Attributes:
        brightness: factor.
        contrast: factor on the distance to the mean grey.
        saturation: factor on the distance to grey (natural, as UniMatch's, CVPR 2023).
        hue: shift, in turns (natural).
        grey: whether colour is taken away (natural).
        order: in which brightness 0, contrast 1, saturation 2 and hue 3 are applied.
        stain: (α_H, β_H, α_E, β_E) on the optical densities of haematoxylin and eosin (histology).
        blur: σ of a Gaussian, in pixels; 0: none.
        jpeg: quality of a compression; 0: none (histology).
    """

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    grey: bool = False
    order: tuple[int, ...] = (0, 1, 2, 3)
    stain: tuple[float, float, float, float] = (1.0, 0.0, 1.0, 0.0)
    blur: float = 0.0
    jpeg: int = 0


@dataclass(frozen=True)
class SampleDraw:
    """Everything random about a sample; a labelled one has no strong views, boxes or noise."""

    geometry: Geometry
    weak: ColourDraw
    strong: tuple[ColourDraw, ...] = ()  # two
    boxes: tuple[tuple[int, int, int, int], ...] = ()  # two, of CutMix: top, left, bottom, right
    channel_noise: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))  # (channels,) f32 in [0, 1)


@dataclass(frozen=True)
class DrawSettings:
    """What the draws depend on besides the seed, as in DataConfig; `channels` is the length of channel_noise."""

    augment: str
    crop: int
    zoom: tuple[float, float]
    weak_colour: float
    channels: int


def draw(settings: DrawSettings, seed: int, stream: int, step: int, slot: int) -> SampleDraw:
    """Draws a sample; the order of the calls below is part of every run's identity."""
    g = generator(seed, stream, step, slot)
    low, high = settings.zoom
    geometry = Geometry(
        zoom=float(np.exp(g.uniform(math.log(low), math.log(high)))),
        top=float(g.random()),
        left=float(g.random()),
        flip=bool(g.random() < 0.5),
        quarter_turns=int(g.integers(4)) if settings.augment == "histology" else 0,
    )
    colour = _histology if settings.augment == "histology" else _natural
    weak = colour(g, settings.weak_colour)
    if stream == LABELLED:
        return SampleDraw(geometry, weak)
    strong = (colour(g, 1.0), colour(g, 1.0))
    boxes = (_cutmix_box(g, settings.crop), _cutmix_box(g, settings.crop))
    return SampleDraw(geometry, weak, strong, boxes, g.random(settings.channels, dtype=np.float32))


def _around_one(g: np.random.Generator, spread: float) -> float:
    return float(g.uniform(1 - spread, 1 + spread))


def _histology(g: np.random.Generator, strength: float) -> ColourDraw:
    """Draws jitter of optical densities (Tellez et al. 2019): stains and scanners differ in density, not in hue."""
    stain = (
        _around_one(g, 0.35 * strength),
        float(g.uniform(-0.08, 0.08)) * strength,
        _around_one(g, 0.35 * strength),
        float(g.uniform(-0.08, 0.08)) * strength,
    )
    brightness, contrast = _around_one(g, 0.25 * strength), _around_one(g, 0.25 * strength)
    blur, quality = float(g.uniform(0.1, 1.5)), int(g.integers(30, 91))
    blurred, compressed, stained = g.random() < 0.5 * strength, g.random() < 0.3 * strength, g.random() < 0.9
    return ColourDraw(
        brightness=brightness,
        contrast=contrast,
        stain=stain if stained else ColourDraw.stain,
        blur=blur if blurred else 0.0,
        jpeg=quality if compressed else 0,
    )


def _natural(g: np.random.Generator, strength: float) -> ColourDraw:
    """Draws as UniMatch (CVPR 2023): jitter (.5, .5, .5, .25), any order, p .8; grey p .2; blur σ U(.1, 2) p .5."""
    brightness, contrast, saturation = (_around_one(g, 0.5 * strength) for _ in range(3))
    hue, order = float(g.uniform(-0.25, 0.25)) * strength, tuple(int(i) for i in g.permutation(4))
    blur = float(g.uniform(0.1, 2.0))
    jittered, grey, blurred = g.random() < 0.8, g.random() < 0.2 * strength, g.random() < 0.5 * strength
    if not jittered:
        brightness, contrast, saturation, hue = 1.0, 1.0, 1.0, 0.0
    return ColourDraw(
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
        hue=hue,
        grey=bool(grey),
        order=order,
        blur=blur if blurred else 0.0,
    )


def _cutmix_box(g: np.random.Generator, crop: int) -> tuple[int, int, int, int]:
    """Draws top, left, bottom, right of UniMatch's box: with p .5, an area of 2–40 % of the crop, a ratio of .3–3.3.

    As in its public code the area is drawn once, then ratio and place until the box lies inside; drawing the area anew
    too would prefer small boxes (median .12 of the crop instead of .20). Without a box all four are 0. A crop is square
    whatever the image, so even of the largest boxes one try in seventeen fits.
    """
    if g.random() >= 0.5:
        return (0, 0, 0, 0)
    area = g.uniform(0.02, 0.4) * crop * crop
    while True:
        ratio = g.uniform(0.3, 1 / 0.3)
        height, width = int(math.sqrt(area * ratio)), int(math.sqrt(area / ratio))
        top, left = int(g.integers(crop)), int(g.integers(crop))
        if top + height <= crop and left + width <= crop:
            return (top, left, top + height, left + width)
