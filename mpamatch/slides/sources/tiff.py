"""Slides through tifffile: OME-TIFF with its pyramid in SubIFDs, and tiled TIFFs that OpenSlide cannot read whole."""

import math
import os
import re
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpamatch.errors import InputError
from mpamatch.slides.sources.base import Box, Level, Pixels, Source, broken, grid_boxes, library, on_white, white

CACHE_BYTES = 32 << 20  # of decoded tiles, what OpenSlide keeps too: windows that overlap want them again
MOST_TILE = 1 << 26  # pixels of a tile, 64 times what scanners write: each is decoded as a whole
_UNIT_MICRONS = {"nm": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6, "inch": 25400.0}
_TIFF_UNIT_MICRONS = {2: 25400.0, 3: 1e4}  # ResolutionUnit: inch, centimetre
_WHITE_IS_ZERO, _PALETTE = 0, 3  # PhotometricInterpretation


class _Plane(NamedTuple):
    """A page that holds all channels of a level, or one of three that hold one each."""

    page: Any
    first: int  # of its tiles for this channel


class TiffSource(Source):
    """A tiled TIFF opened by tifffile, decoded tile by tile with imagecodecs.

    Pixels are equal to OpenSlide's where both read a file. 16 bits are scaled to 8, greys become RGB, transparency is
    laid on white.
    """

    name = "tifffile"

    def __init__(self, path: Path) -> None:
        tifffile = library("tifffile", path)
        library("imagecodecs", path)
        self._path = path
        try:
            self._tiff = tifffile.TiffFile(path)
        except Exception as error:  # tifffile raises its own kind, struct.error, ValueError, IndexError, …
            raise broken(path, error) from error
        self._file = path.open("rb", buffering=0)
        self._lock = threading.Lock()
        self._cache: OrderedDict[tuple[int, int, int], Pixels] = OrderedDict()
        self.bad = set()
        try:
            self._look_inside()
        except InputError:
            self.close()
            raise
        except Exception as error:  # of directories that are cut short
            self.close()
            raise broken(path, error) from error

    def _look_inside(self) -> None:
        """Finds the levels and what they hold. Raises InputError for what is no slide or cut short."""
        series = max(self._tiff.series, key=lambda one: one.keyframe.imagewidth * one.keyframe.imagelength)
        self._planes = [_planes(self._path, level) for level in series.levels]
        first = self._planes[0][0].page
        self.levels = tuple(_level(planes[0].page, first) for planes in self._planes)
        self.tiles = tuple((planes[0].page.tilewidth, planes[0].page.tilelength) for planes in self._planes)
        self._check_index()
        self._check_length()
        self.microns = _microns(self._tiff, first)
        self._most, self.remarks = _depth(self._tiff, first)

    def read(self, box: Box, level: int) -> Pixels:
        page = self._planes[level][0].page
        pixels = white(box.width, box.height)
        for part in grid_boxes(box, page.tilewidth, page.tilelength):
            column, row = part.x // page.tilewidth, part.y // page.tilelength
            tile = self._tile(level, column, row)
            top, left = part.y - row * page.tilelength, part.x - column * page.tilewidth
            inside = tile[top : top + part.height, left : left + part.width]
            pixels[part.y - box.y :, part.x - box.x :][: inside.shape[0], : inside.shape[1]] = inside
        return pixels

    def close(self) -> None:
        self._file.close()
        self._tiff.close()

    def _tile(self, level: int, column: int, row: int) -> Pixels:
        """Decodes a tile, or takes it from those kept; white if it cannot be decoded or the file leaves it out."""
        key = (level, column, row)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        page = self._planes[level][0].page
        try:
            tile = self._decoded(level, column, row)
        except Exception:  # the codecs raise a kind each for bytes that are no image
            tile = None
            with self._lock:
                self.bad.add(key)
        if tile is None:
            tile = white(page.tilewidth, page.tilelength)
        with self._lock:
            self._cache[key] = tile
            while len(self._cache) * tile.nbytes > CACHE_BYTES and len(self._cache) > 1:
                self._cache.popitem(last=False)
        return tile

    def _decoded(self, level: int, column: int, row: int) -> Pixels | None:
        """Decodes a tile to RGB; None if the file leaves it out, as scanners do where the glass is empty."""
        planes = self._planes[level]
        index = row * math.ceil(planes[0].page.imagewidth / planes[0].page.tilewidth) + column
        found = [self._segment(plane, index) for plane in planes]
        channels = [one for one in found if one is not None]
        if len(channels) < len(found):
            return None
        values = channels[0] if len(channels) == 1 else np.concatenate(channels, axis=-1)
        return _rgb(values, self._most, planes[0].page.photometric == _WHITE_IS_ZERO)

    def _segment(self, plane: _Plane, index: int) -> NDArray[Any] | None:  # (H, W, channels)
        page, at = plane.page, plane.first + index
        offset, length = page.dataoffsets[at], page.databytecounts[at]
        if not length:
            return None
        key = page.keyframe
        values = key.decode(self._bytes(offset, length), at, jpegtables=key.jpegtables, jpegheader=key.jpegheader)[0]
        return None if values is None else values[0]

    def _bytes(self, offset: int, length: int) -> bytes:
        if hasattr(os, "pread"):  # needs no lock; Windows has none
            return os.pread(self._file.fileno(), length, offset)
        with self._lock:
            self._file.seek(offset)
            return self._file.read(length)

    def _check_index(self) -> None:
        """Raises InputError if a page has sides that its index of tiles does not cover, or tiles of absurd sizes."""
        for plane in (plane for planes in self._planes for plane in planes):
            page, there = plane.page, len(plane.page.dataoffsets)
            if page.tilewidth * page.tilelength > MOST_TILE or min(page.tilewidth, page.tilelength) < 1:
                raise broken(self._path, f"its tiles are {page.tilewidth}×{page.tilelength} pixels")
            needed = math.ceil(page.imagewidth / page.tilewidth) * math.ceil(page.imagelength / page.tilelength)
            if plane.first + needed > there or there != len(page.databytecounts):
                told = f"{page.imagewidth}×{page.imagelength} pixels need {plane.first + needed:,} tiles"
                raise broken(self._path, f"{told}, and it lists {there:,}")

    def _check_length(self) -> None:
        """Raises InputError if a tile lies beyond the end of the file."""
        length = self._path.stat().st_size
        pages = [plane.page for planes in self._planes for plane in planes]
        needed = max(int(np.max(np.add(page.dataoffsets, page.databytecounts), initial=0)) for page in pages)
        if needed > length:
            raise broken(self._path, f"it has {length:,} bytes and its tiles need {needed:,}")


def _planes(path: Path, level: Any) -> list[_Plane]:
    """Finds the pages of a level. Raises InputError for strips, stacks, and channels that are no RGB or grey."""
    page = level.pages[0].aspage()
    if not page.is_tiled:
        raise InputError(
            f"{path}: is a TIFF in strips, of which no region can be read alone: convert it to a tiled, pyramidal one "
            "(vips tiffsave IN OUT.tif --tile --pyramid --bigtiff --compression jpeg)."
        )
    if page.photometric == _PALETTE:
        raise InputError(f"{path}: holds palette colours, as masks do: convert it to RGB if it is a slide.")
    if page.dtype is None or page.dtype.kind != "u" or page.dtype.itemsize > 2:
        raise InputError(f"{path}: holds values of type {page.dtype}: convert it to 8 bits per channel.")
    pages = [one.aspage() for one in level.pages]
    samples, separate = page.samplesperpixel, page.planarconfig == 2
    if len(pages) == 1 and samples in {1, 2, 3, 4}:
        tiles = math.ceil(page.imagewidth / page.tilewidth) * math.ceil(page.imagelength / page.tilelength)
        return [_Plane(page, channel * tiles) for channel in range(samples)] if separate else [_Plane(page, 0)]
    if len(pages) == 3 and samples == 1 and level.axes in {"CYX", "SYX"}:
        return [_Plane(one, 0) for one in pages]
    told = "×".join(f"{side} {axis}" for side, axis in zip(level.shape, level.axes, strict=True))
    raise InputError(f"{path}: is {told}, not one plane in RGB or grey: export a single RGB plane of it.")


def _level(page: Any, first: Any) -> Level:
    across, down = first.imagewidth / page.imagewidth, first.imagelength / page.imagelength
    mean = (across + down) / 2
    # A side of 1001 halved is 500: the mean of both quotients is what OpenSlide takes too.
    return Level(page.imagewidth, page.imagelength, float(round(mean)) if abs(mean - round(mean)) < 1e-9 else mean)


def _depth(tiff: Any, page: Any) -> tuple[int, tuple[str, ...]]:
    """Finds the value that is white, and says so if it is not 255."""
    if page.dtype.itemsize == 1:
        return 255, ()
    bits = re.search(r'SignificantBits="(\d+)"', tiff.ome_metadata or "")
    most = 2 ** min(16, int(bits[1])) - 1 if bits else 2**16 - 1
    return most, (f"holds 16 bits per channel, scaled to 8 with {most} as white.",)


def _microns(tiff: Any, page: Any) -> float | None:
    """Reads the size of a pixel: OME's PhysicalSizeX, Aperio's MPP, or the TIFF's own resolution."""
    ome = tiff.ome_metadata
    if ome:
        size = re.search(r'\bPhysicalSizeX="([^"]+)"', ome)
        unit = re.search(r'\bPhysicalSizeXUnit="([^"]+)"', ome)
        factor = _UNIT_MICRONS.get(unit[1] if unit else "µm")
        return None if size is None or factor is None else _float(size[1], factor)
    aperio = re.search(r"\bMPP\s*=\s*([\d.]+)", page.description or "")
    if aperio:
        return _float(aperio[1], 1.0)
    resolution, unit = page.tags.get("XResolution"), page.tags.get("ResolutionUnit")
    factor = _TIFF_UNIT_MICRONS.get(int(unit.value) if unit else 2)
    if resolution is None or factor is None or not all(resolution.value):
        return None
    return factor * resolution.value[1] / resolution.value[0]


def _float(text: str, factor: float) -> float | None:
    try:
        return float(text) * factor
    except ValueError:
        return None


def _rgb(
    values: NDArray[Any],  # (H, W, 1 to 4) uint8 or uint16
    most: int,
    inverted: bool,
) -> Pixels:
    """Scales to 8 bits, spreads greys over three channels, lays transparency on white."""
    if values.dtype != np.uint8:
        scaled = (np.minimum(values, most).astype(np.uint32) * 255 + most // 2) // most
        values = scaled.astype(np.uint8)
    if inverted:
        values = 255 - values
    channels = values.shape[-1]
    if channels == 3:
        return np.ascontiguousarray(values)
    if channels == 1:
        return np.repeat(values, 3, axis=-1)
    return on_white(values if channels == 4 else values[..., [0, 0, 0, 1]])
