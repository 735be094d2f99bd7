"""Pictures that lie inside of a page: bounded in size, with words for those who cannot see them."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from mpamatch.images import IGNORE, Colour, overlay

LARGEST = 384  # of a picture's longer side, in pixels
MISSED: Colour = (0, 90, 220)  # blue and orange: told apart by all common kinds of colour blindness
EXTRA: Colour = (255, 125, 0)
SWAPPED: Colour = (170, 0, 190)
QUALITY = 82


@dataclass(frozen=True)
class Picture:
    """A picture of a page.

    Attributes:
        uri: the picture itself, as a data URI.
        alt: what it shows, in words.
        title: stands below it.
        width: in pixels.
        height: in pixels.
    """

    uri: str
    alt: str
    title: str
    width: int
    height: int


def photo(pixels: NDArray[np.uint8], alt: str, title: str = "", largest: int = LARGEST) -> Picture:
    """Encodes tissue as JPEG, shrunk to `largest` pixels on its longer side. `pixels`: (H, W, 3)."""
    image = Image.fromarray(pixels)
    if max(image.size) > largest:
        image.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    return _encoded(image, "jpeg", alt, title, quality=QUALITY, subsampling=1, optimize=True)


def flat(pixels: NDArray[np.uint8], alt: str, title: str = "", largest: int = LARGEST) -> Picture:
    """Encodes a picture of few colours as PNG with a palette, as `photo` does. `pixels`: (H, W, 3)."""
    image = Image.fromarray(pixels)
    if max(image.size) > largest:
        image.thumbnail((largest, largest), Image.Resampling.NEAREST)
    return _encoded(image.quantize(255), "png", alt, title, optimize=True)


def heat(
    values: NDArray[np.floating],  # (H, W)
    low: float,
    high: float,
    alt: str,
    title: str = "",
    largest: int = 128,
) -> Picture:
    """Paints a map from dark (`low`) to bright (`high`)."""
    shade = np.clip((values - low) / max(high - low, 1e-9), 0, 1)
    return photo((colormaps["magma"](shade)[..., :3] * 255).astype(np.uint8), alt, title, largest)


def labelled(
    image: NDArray[np.uint8], label: NDArray[np.uint8], colours: Sequence[Colour], alt: str, title: str
) -> Picture:
    """Lays a label over its image."""
    return photo(overlay(image, label, colours), alt, title)


def disagreement(
    image: NDArray[np.uint8],  # (H, W, 3)
    label: NDArray[np.uint8],  # (H, W), 255 ignored
    predicted: NDArray[np.uint8],  # (H, W)
) -> NDArray[np.uint8]:  # (H, W, 3)
    """Paints over a pale image what was missed (blue), what was predicted in vain (orange) and what was taken for
    another class (purple)."""
    grey = image.mean(2, keepdims=True).repeat(3, 2)
    painted = 0.45 * grey + 0.55 * 255
    wrong = (label != predicted) & (label != IGNORE)
    for chosen, colour in (
        (wrong & (predicted == 0), MISSED),
        (wrong & (label == 0), EXTRA),
        (wrong & (label != 0) & (predicted != 0), SWAPPED),
    ):
        painted[chosen] = 0.25 * grey[chosen] + 0.75 * np.array(colour)
    return painted.astype(np.uint8)


def _encoded(image: Image.Image, form: str, alt: str, title: str, **how: int | bool) -> Picture:
    stream = io.BytesIO()
    image.save(stream, form, **how)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    return Picture(f"data:image/{form};base64,{data}", alt, title, image.width, image.height)
