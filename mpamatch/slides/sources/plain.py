"""Large pictures that are no slides, PNG and JPEG above all: read whole, by Pillow."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from mpamatch.errors import InputError
from mpamatch.slides.sources.base import Box, Level, Pixels, Source, broken, on_white
from mpamatch.stored import any_size
from mpamatch.whole import load_whole

MOST_PIXELS = 2_000_000_000  # 6 GB in memory; above that a file that is read in tiles is needed
MOST_TIMES = 150  # the size of its file, of the pixels: tissue shrinks to a tenth, an empty PNG to a thousandth
SURE_PIXELS = 20_000_000  # below that a picture may be empty
_RULES = {"I": "holds 16- or 32-bit greys", "F": "holds floating-point values", "C": "is a CMYK image"}


class PlainSource(Source):
    """A picture of one level, in memory as a whole."""

    name = "pillow"

    def __init__(self, path: Path) -> None:
        with _quietly():
            try:
                with Image.open(path) as image:
                    self.microns = _microns(image)
                    self._pixels = _decoded(path, image)
            except InputError:
                raise
            except Exception as error:  # Pillow raises a dozen kinds for broken files
                raise broken(path, error) from error
        height, width = self._pixels.shape[:2]
        self.levels, self.tiles = (Level(width, height, 1.0),), ((width, height),)
        self.bad = set()

    def read(self, box: Box, level: int) -> Pixels:
        return self._pixels[box.y : box.y + box.height, box.x : box.x + box.width].copy()

    def close(self) -> None:
        self._pixels = np.empty((0, 0, 3), dtype=np.uint8)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Opens pictures of any size, without a word of broken EXIF in what is a slide."""
    with any_size(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def picture_size(path: Path) -> tuple[int, int, str] | None:
    """Reads width, height and format of a picture from its header; None if Pillow cannot."""
    try:
        with _quietly(), Image.open(path) as image:
            return image.width, image.height, image.format or ""
    except Exception:  # Pillow raises a dozen kinds for what is no picture
        return None


def _decoded(path: Path, image: Image.Image) -> Pixels:
    if image.width * image.height > MOST_PIXELS:
        raise InputError(
            f"{path}: is {image.width}×{image.height} pixels and can only be read whole: convert it to a tiled, "
            "pyramidal TIFF (vips tiffsave IN OUT.tif --tile --pyramid --bigtiff --compression jpeg)."
        )
    size = path.stat().st_size
    if image.width * image.height > SURE_PIXELS and 3 * image.width * image.height > MOST_TIMES * size:
        raise InputError(
            f"{path}: says that it is {image.width}×{image.height} pixels, and has {size:,} bytes, as no tissue does: "
            "export it again."
        )
    rule = _RULES.get(image.mode[0])
    if rule:
        raise InputError(f"{path}: {rule}: convert it to 8-bit RGB first.")
    load_whole(path, image)
    if image.mode in {"LA", "PA", "RGBA"} or "transparency" in image.info:
        return on_white(np.asarray(image.convert("RGBA")))
    return np.array(image.convert("RGB"))


def _microns(image: Image.Image) -> float | None:
    """Computes the size of a pixel from the picture's dots per inch, if it has any."""
    dots = image.info.get("dpi")
    return 25400 / float(dots[0]) if dots and dots[0] else None
