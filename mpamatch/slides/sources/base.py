"""What every source of slides has: levels, a size of pixel, and regions read from inside of a level."""

import importlib
import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mpamatch.errors import InputError, reason

Pixels = NDArray[np.uint8]  # (H, W, 3)

WHITE = 255
INSTALL = "pip install 'mpamatch[slides]'"


@dataclass(frozen=True)
class Level:
    """A level of the pyramid: its size in pixels, and how many pixels of level 0 one of its own is wide."""

    width: int
    height: int
    downsample: float


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels: columns x to x + width, rows y to y + height."""

    x: int
    y: int
    width: int
    height: int


class Broken(InputError):
    """The error for a file that is damaged."""


class Source(ABC):
    """A slide's file, opened by one library.

    Attributes:
        name: of the library.
        levels: finest first.
        microns: the size of a pixel of level 0 in µm, as the file says, believable or not; None if it says none.
        bounds: what QuPath shows of level 0; None if it shows all.
        remarks: what the user should know of this file, each a sentence without the file's name.
        tiles: (width, height) of the tiles of each level.
        bad: (level, column, row) of the tiles that could not be decoded.
    """

    name: ClassVar[str]
    levels: tuple[Level, ...]
    microns: float | None = None
    bounds: Box | None = None
    remarks: tuple[str, ...] = ()
    tiles: tuple[tuple[int, int], ...]
    bad: set[tuple[int, int, int]]

    @abstractmethod
    def read(self, box: Box, level: int) -> Pixels:
        """Reads a box that lies inside of the level, from any thread; a tile that cannot be decoded is white."""

    @abstractmethod
    def close(self) -> None:
        """Closes the file."""


def installed(name: str) -> bool:
    """Tells whether a library can be imported, with what it needs of the system."""
    try:
        importlib.import_module(name)
    except (ImportError, OSError):  # OSError: openslide without its native library
        return False
    return True


def library(name: str, path: Path) -> ModuleType:
    """Imports a library of the extra `slides`. Raises InputError, about `path`, if it is not installed."""
    if name == "tifffile":  # it logs every damaged tag, hundreds of lines: what is wrong is one sentence here
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: openslide without its native library
        raise InputError(f"{path}: is read by {name}, which is not installed: {INSTALL}.") from error


def broken(path: Path, error: Exception | str) -> Broken:
    """Builds the error for a file that is damaged."""
    return Broken(f"{path}: is broken or cut short ({reason(error)}): copy it again from where it came from.")


def on_white(
    rgba: NDArray[np.uint8],  # (H, W, 4), not premultiplied
) -> Pixels:
    """Lays an image with transparency on white, the slide's background."""
    if rgba[..., 3].min(initial=255) == 255:
        return np.ascontiguousarray(rgba[..., :3])
    image = Image.fromarray(np.ascontiguousarray(rgba), "RGBA")
    return np.array(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"))


def white(width: int, height: int) -> Pixels:
    return np.full((height, width, 3), WHITE, dtype=np.uint8)


def grid_boxes(box: Box, width: int, height: int) -> list[Box]:
    """Cuts a box along the grid of tiles of width × height that begins at the origin."""
    found = []
    for y in range(box.y // height * height, box.y + box.height, height):
        for x in range(box.x // width * width, box.x + box.width, width):
            left, top = max(x, box.x), max(y, box.y)
            right, bottom = min(x + width, box.x + box.width), min(y + height, box.y + box.height)
            found.append(Box(left, top, right - left, bottom - top))
    return found
