"""Slides through OpenSlide: svs, ndpi, mrxs, scn, bif, czi, DICOM, tiled TIFF."""

import threading
from pathlib import Path
from typing import Any

import numpy as np

from mpamatch.errors import InputError
from mpamatch.slides.sources.base import Box, Level, Pixels, Source, broken, grid_boxes, library, on_white, white

BLOCK = 512  # pixels: the tile of formats that name none, and what is read at once of levels off the whole numbers


class OpenSlideSource(Source):
    """A slide opened by OpenSlide.

    An error makes an OpenSlide handle useless for ever after (openslide.h), so a region that fails is read again tile
    by tile with a handle of its own, and the shared one is replaced. Only the corrupt tile is lost.
    """

    name = "openslide"

    def __init__(self, path: Path) -> None:
        self._library = library("openslide", path)
        self._path = path
        self._lock = threading.Lock()
        self._handle = self._opened()
        properties = self._handle.properties
        self.levels = tuple(
            Level(width, height, 1.0 if level == 0 else _whole(downsample))
            for level, ((width, height), downsample) in enumerate(
                zip(self._handle.level_dimensions, self._handle.level_downsamples, strict=True)
            )
        )
        self.tiles = tuple(_tile(properties, level) for level in range(len(self.levels)))
        self.microns, self.remarks = _microns(properties)
        self.bounds = _bounds(properties, self.levels[0])
        self.bad = set()

    def read(self, box: Box, level: int) -> Pixels:
        if self.levels[level].downsample.is_integer():
            return self._region(box, level)
        # OpenSlide takes places in whole pixels of level 0 and shifts what lies between: the same pixel comes out the
        # same however it is asked for only if it is always read in the same block.
        whole = Box(0, 0, self.levels[level].width, self.levels[level].height)
        pixels = white(box.width, box.height)
        for part in grid_boxes(box, BLOCK, BLOCK):
            left, top = part.x // BLOCK * BLOCK, part.y // BLOCK * BLOCK
            block = Box(left, top, min(BLOCK, whole.width - left), min(BLOCK, whole.height - top))
            inside = self._region(block, level)[part.y - top :, part.x - left :]
            _place(pixels, box, part, inside[: part.height, : part.width])
        return pixels

    def close(self) -> None:
        self._handle.close()

    def _region(self, box: Box, level: int) -> Pixels:
        """Reads a box; if that fails or is known to, all of its tiles but the corrupt ones."""
        if not self.bad or not any(self._key(part, level) in self.bad for part in self._parts(box, level)):
            handle = self._handle
            try:
                return self._pixels(handle, box, level)
            except self._library.OpenSlideError:
                pass
            with self._lock:
                if self._handle is handle:  # else another thread has replaced it
                    self._handle = self._opened()
        return self._rescued(box, level)

    def _rescued(self, box: Box, level: int) -> Pixels:
        """Reads a box tile by tile with a handle of its own; corrupt tiles are white and noted in `bad`."""
        pixels = white(box.width, box.height)
        own = None
        for part in self._parts(box, level):
            if self._key(part, level) in self.bad:
                continue
            own = own or self._opened()
            try:
                _place(pixels, box, part, self._pixels(own, part, level))
            except self._library.OpenSlideError:
                own = None
                with self._lock:
                    self.bad.add(self._key(part, level))
        return pixels

    def _parts(self, box: Box, level: int) -> list[Box]:
        return grid_boxes(box, *self.tiles[level])

    def _key(self, part: Box, level: int) -> tuple[int, int, int]:
        width, height = self.tiles[level]
        return level, part.x // width, part.y // height

    def _pixels(self, handle: Any, box: Box, level: int) -> Pixels:
        downsample = self.levels[level].downsample
        place = (round(box.x * downsample), round(box.y * downsample))
        return on_white(np.asarray(handle.read_region(place, level, (box.width, box.height))))

    def _opened(self) -> Any:
        try:
            return self._library.OpenSlide(self._path)
        except self._library.OpenSlideUnsupportedFormatError:
            raise InputError(
                f"{self._path}: is of no format that OpenSlide knows: convert it to a tiled, pyramidal "
                "TIFF or OME-TIFF."
            ) from None
        except (self._library.OpenSlideError, OSError, ValueError) as error:
            raise broken(self._path, error) from error


def known_format(path: Path) -> str | None:
    """Names the format that OpenSlide finds in a file, such as "aperio"; None without one or without OpenSlide."""
    try:
        found = library("openslide", path)
        return found.OpenSlide.detect_format(path)
    except Exception:  # of a name that is no UTF-8, a folder, or a file that cannot be opened nothing is known
        return None


def _place(pixels: Pixels, box: Box, part: Box, inside: Pixels) -> None:
    top, left = part.y - box.y, part.x - box.x
    pixels[top : top + part.height, left : left + part.width] = inside


def _whole(downsample: float) -> float:
    """Rounds what is a whole number but for the last digits."""
    return float(round(downsample)) if abs(downsample - round(downsample)) < 1e-9 else downsample


def _tile(properties: Any, level: int) -> tuple[int, int]:
    sides = [_number(properties, f"openslide.level[{level}].tile-{side}") for side in ("width", "height")]
    width, height = (int(side) if side else BLOCK for side in sides)
    return width, height


def _microns(properties: Any) -> tuple[float | None, tuple[str, ...]]:
    """Reads the size of a pixel in µm, and a remark if it is not square."""
    across, down = (_number(properties, f"openslide.mpp-{axis}") for axis in "xy")
    if across is None or down is None:
        return across or down, ()
    if abs(across / down - 1) > 0.01:
        return (across + down) / 2, (f"its pixels are {across:g}×{down:g} µm and taken as squares of the mean side.",)
    return (across + down) / 2, ()


def _bounds(properties: Any, level: Level) -> Box | None:
    """Reads the part that QuPath crops to: it does so only if both sides differ from the whole."""
    found = [_number(properties, f"openslide.bounds-{name}") for name in ("x", "y", "width", "height")]
    x, y, width, height = (0 if value is None else int(value) for value in found)
    if width <= 0 or height <= 0 or width == level.width or height == level.height:
        return None
    return Box(x, y, width, height)


def _number(properties: Any, name: str) -> float | None:
    try:
        value = float(properties[name])
    except (KeyError, ValueError):
        return None
    return value if np.isfinite(value) and value >= 0 else None
