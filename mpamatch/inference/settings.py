"""The settings of a Segmenter, and what they may be."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mpamatch.errors import InputError, shown, unknown
from mpamatch.images import Colour

LARGEST_WINDOW = 16_384  # pixels of a side; four times what a GPU of 80 GB takes


@dataclass(frozen=True)
class SegmenterSettings:
    """The settings of a Segmenter, saved beside the weights.

    Attributes:
        class_names: of the C classes, the background first.
        colours: RGB of each class, 0 to 255.
        mean: of R, G and B in 0 to 1, subtracted from images.
        std: of R, G and B in 0 to 1, which images are divided by then.
        window: side of the square that the network sees, in pixels of the scaled image.
        scale: factor on an image's size before the network sees it (0.5 halves it); results have the image's own size.
        microns_per_pixel: of images before scaling; None if it is not known.
        overlap: share of a side that neighbouring windows have in common, 0 <= overlap < 1.
        batch: the most windows in one call of the network.
        precision: 32, bf16 (mixed), or 64 for a network of float64 parameters.

    Raises:
        InputError: numbers of colours and classes differ, there are more than 255 classes (255 means ignore), a number
            is out of its range, or the precision is unknown.
    """

    class_names: tuple[str, ...]
    colours: tuple[Colour, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    window: int
    scale: float
    microns_per_pixel: float | None
    overlap: float = 1 / 3
    batch: int = 8
    precision: str = "32"

    def __post_init__(self) -> None:
        for name in ("class_names", "mean", "std"):  # JSON has lists alone
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "colours", tuple(tuple(colour) for colour in self.colours))
        classes, colours = len(self.class_names), len(self.colours)
        if classes != colours:
            raise InputError(f"{classes} class names but {colours} colours: give one of each per class.")
        if not 1 <= classes <= 255:
            raise InputError(f"{classes} classes: a label holds 1 to 255 (255 itself means ignore).")
        if not all(isinstance(name, str) for name in self.class_names):
            raise InputError(f"class names {shown(list(self.class_names))}: must be text.")
        for colour in self.colours:
            if len(colour) != 3 or not all(type(one) is int and 0 <= one <= 255 for one in colour):
                raise InputError(f"colour {shown(colour)}: must be three numbers from 0 to 255.")
        _check_constants(self.mean, self.std)
        if not _is_number(self.scale) or not self.scale > 0:
            raise InputError(f"scale {shown(self.scale)}: must be above 0.")
        if self.microns_per_pixel is not None and not (
            _is_number(self.microns_per_pixel) and self.microns_per_pixel > 0
        ):
            raise InputError(f"microns_per_pixel {shown(self.microns_per_pixel)}: must be above 0.")
        if not _is_number(self.overlap) or not 0 <= self.overlap < 1:
            raise InputError(f"overlap {shown(self.overlap)}: must be at least 0 and below 1.")
        for name, value in (("window", self.window), ("batch", self.batch)):
            if type(value) is not int or not 1 <= value <= LARGEST_WINDOW:
                raise InputError(f"{name} {shown(value)}: must be from 1 to {LARGEST_WINDOW}.")
        if not isinstance(self.precision, str):
            raise InputError(f"precision {shown(self.precision)}: must be 32, bf16 or 64.")
        if self.precision not in ("32", "bf16", "64"):
            raise unknown("precision", self.precision, ["32", "bf16", "64"])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf


def _check_constants(mean: Sequence[Any], std: Sequence[Any]) -> None:
    """Raises InputError unless both are a number for each of R, G and B, and those of `std` are above 0."""
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != 3 or not all(map(_is_number, values)) or (name == "std" and min(values) <= 0):
            raise InputError(f"{name} {shown(list(values))}: must be three numbers{', above 0' * (name == 'std')}.")
