"""Whether an image file holds all that its header promises: decoders fill what is missing without a word."""

import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_BLOCK = 8  # sides of what JPEG codes at a time
_GREY = 128  # what its decoders put where data end early
_BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _STRIP_BYTES, _TILE_BYTES, _YCBCR = 258, 259, 262, 277, 279, 325, 6
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a PNG's colour types
_FEWER = "it lists fewer strips or tiles than its sides need"
_SHORTER = "its strips or tiles hold fewer bytes than its sides need"
# The passes of an interlaced PNG: first column and row, and the steps from there (PNG specification, 8.2).
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def load_whole(path: Path, image: Image.Image) -> None:
    """Decodes what Pillow has opened at `path`.

    Pillow leaves rows black that a PNG's data or a TIFF's strips do not reach, and reads a strip that is too short on
    into whatever follows it.

    Raises OSError if that is so, and whatever Pillow raises for a broken file.
    """
    if image.format == "TIFF":
        _check_strips(image)
    interlaced = bool(image.info.get("interlace"))
    image.load()
    if image.format == "PNG" and (interlaced or not _last_row(image).any()):
        _check_png(path)


def ends_in_grey(image: Image.Image) -> bool:
    """Tells whether a JPEG ends in a block of even grey, which decoders put where data end early, and some pad with."""
    if image.format not in ("JPEG", "MPO") or min(image.size) < _BLOCK:
        return False
    width, height = image.size
    return bool((np.asarray(image.crop((width - _BLOCK, height - _BLOCK, width, height))) == _GREY).all())


def check_segments(page: Any) -> None:
    """Raises OSError if the strips or tiles of a page of tifffile are fewer, or shorter, than its sides need."""
    needed, bytes_of = math.prod(page.chunked), page.databytecounts
    if min(len(page.dataoffsets), len(bytes_of)) < needed or not all(bytes_of[:needed]):
        raise OSError(_FEWER)
    if int(page.compression) == 1 and sum(bytes_of[:needed]) < page.nbytes:
        raise OSError(_SHORTER)


def _last_row(image: Image.Image) -> np.ndarray:
    return np.asarray(image.crop((0, image.height - 1, image.width, image.height)))


def _check_strips(image: Image.Image) -> None:
    """Raises OSError if the strips or tiles of a TIFF are fewer, or shorter, than its sides need."""
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    places = {tuple(tile[1]) for tile in image.tile}  # type: ignore[attr-defined]
    area = sum((right - left) * (bottom - top) for left, top, right, bottom in places)
    if area < image.width * image.height:
        raise OSError(_FEWER)
    plain = tags.get(_COMPRESSION, 1) == 1 and tags.get(_PHOTOMETRIC) != _YCBCR  # whose colours may be thinned out
    stored = sum(tags.get(_STRIP_BYTES) or tags.get(_TILE_BYTES) or ())  # 0: old programs wrote none
    bits = sum(tags[_BITS]) if _BITS in tags else tags.get(_SAMPLES, 1)
    if plain and 0 < stored < image.width * image.height * bits // 8:
        raise OSError(_SHORTER)


def _check_png(path: Path) -> None:
    """Raises OSError if the data of a PNG end before its last row."""
    with path.open("rb") as file:
        header = file.read(29)
        width, height = int.from_bytes(header[16:20]), int.from_bytes(header[20:24])
        bits, interlaced = header[24] * _CHANNELS.get(header[25], 1), header[28]
        needed = sum(
            rows * (1 + -(-columns * bits // 8))
            for columns, rows in _sizes(width, height, interlaced=bool(interlaced))
            if columns and rows
        )
        unpacked, there = zlib.decompressobj(), 0
        for data in _png_data(file):
            there += len(unpacked.decompress(data))
            if there >= needed:
                return
    raise OSError("its data end before its last row")


def _sizes(width: int, height: int, *, interlaced: bool) -> Iterator[tuple[int, int]]:
    """Yields columns and rows of a PNG, of each pass if it is interlaced."""
    if not interlaced:
        yield width, height
        return
    for left, top, across, down in _PASSES:
        yield max(0, -(-(width - left) // across)), max(0, -(-(height - top) // down))


def _png_data(file: Any) -> Iterator[bytes]:
    """Yields what lies in the IDAT chunks of a PNG."""
    file.seek(8)
    while len(start := file.read(8)) == 8:
        length, kind = int.from_bytes(start[:4]), start[4:]
        if kind == b"IDAT":
            yield file.read(length)
        else:
            file.seek(length, 1)
        file.seek(4, 1)  # the checksum, which Pillow has looked at
