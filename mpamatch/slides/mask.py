"""The label of a slide as a tiled pyramid, OME-TIFF: written row by row, read region by region."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from mpamatch.errors import InputError, reason
from mpamatch.files import replacing
from mpamatch.slides.sources.base import library

Label = NDArray[np.uint8]

TILE = 512
SMALLEST_LEVEL = 1024  # pixels: the pyramid ends once both sides are within it
HELD = 64_000_000  # bytes: a level within it is made from the one before in memory, without reading all rows again
KEY = "mpamatch"


@dataclass(frozen=True)
class MaskInfo:
    """What a mask says of itself.

    Attributes:
        mpp: µm per pixel of the mask.
        scale: pixels of level 0 of the slide per pixel of the mask, whose corner is the slide's origin.
        origin: x and y, in pixels of level 0, that QuPath takes off (see `Slide.bounds`).
        classes: names by value; 255 is what was not looked at.
        slide: the name of the slide's file.
    """

    mpp: float
    scale: float
    origin: tuple[int, int]
    classes: tuple[str, ...]
    slide: str

    def record(self) -> dict[str, Any]:
        """Returns it as JSON has it."""
        return {**vars(self), "origin": list(self.origin), "classes": list(self.classes)}

    @classmethod
    def of(cls, record: dict[str, Any]) -> "MaskInfo":
        """Reads what `record` returned."""
        return cls(**{**record, "origin": tuple(record["origin"]), "classes": tuple(record["classes"])})


def write_mask(
    path: Path,
    size: tuple[int, int],  # width, height
    rows: Callable[[], Iterator[Label]],  # each call: all rows, from the first on, some at a time, (n, width)
    info: MaskInfo,
) -> None:
    """Writes a label as OME-TIFF: uint8, tiles of 512, deflate, every second pixel of a level in the next.

    Memory holds a row of tiles and levels of up to 64 MB. The same label gives the same bytes.

    Args:
        path: ends in .ome.tif.
        size: of the label.
        rows: is called for each level too large to be held; the chunks may have any heights.
        info: what it says of itself.

    Raises:
        InputError: the file cannot be written, or tifffile is not installed.
    """
    tifffile = library("tifffile", path)
    width, height = size
    levels = _levels(width, height)
    held: Label | None = None
    options: dict[str, Any] = {
        "tile": (TILE, TILE),
        "compression": "adobe_deflate",
        "photometric": "minisblack",
        "metadata": None,
    }
    options |= {"software": False, "dtype": np.uint8, "maxworkers": 1}
    with replacing(path) as temporary:
        with tifffile.TiffWriter(temporary, bigtiff=True, ome=False) as tiff:
            for level, (across, down) in enumerate(levels):
                step = 2**level
                chunks = iter([held]) if held is not None else _thinned(rows(), step)
                if held is None and across * down <= HELD and level:
                    held = _gathered(chunks, (down, across))
                    chunks = iter([held])
                tiff.write(
                    _tiles(chunks, across),
                    shape=(down, across),
                    subifds=len(levels) - 1 if level == 0 else None,
                    subfiletype=1 if level else 0,
                    description=_ome(size, info) if level == 0 else None,
                    resolution=(1e4 / (info.mpp * step), 1e4 / (info.mpp * step)),
                    resolutionunit="CENTIMETER",
                    **options,
                )
                held = held[::2, ::2].copy() if held is not None else None


def _levels(width: int, height: int) -> list[tuple[int, int]]:
    """Lists (width, height) of all levels, the finest first."""
    sizes = [(width, height)]
    while max(sizes[-1]) > SMALLEST_LEVEL:
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return sizes


def _gathered(chunks: Iterator[Label], shape: tuple[int, int]) -> Label:
    """Copies rows into one array as they come."""
    found = np.empty(shape, dtype=np.uint8)
    top = 0
    for chunk in chunks:
        found[top : top + len(chunk)] = chunk
        top += len(chunk)
    return found


def _thinned(rows: Iterator[Label], step: int) -> Iterator[Label]:
    """Keeps every `step`-th pixel along both sides, as copies: a view would hold the rows that it is thinned from."""
    at = 0
    for chunk in rows:
        first = -at % step
        at += len(chunk)
        if first < len(chunk):
            yield chunk[first::step, ::step].copy() if step > 1 else chunk


def _tiles(chunks: Iterator[Label], width: int) -> Iterator[Label]:
    """Cuts rows into tiles, a row of tiles after the other; tiles at the rim are smaller, and tifffile fills them."""
    waiting: list[Label] = []
    count = 0

    def cut(rows: Label) -> Iterator[Label]:
        for top in range(0, len(rows), TILE):
            for left in range(0, width, TILE):
                tile = np.full((TILE, TILE), 0, dtype=np.uint8)
                part = rows[top : top + TILE, left : left + TILE]
                tile[: part.shape[0], : part.shape[1]] = part
                yield tile

    for chunk in chunks:
        waiting.append(chunk)
        count += len(chunk)
        if count >= TILE:
            rows = np.concatenate(waiting)
            whole = len(rows) // TILE * TILE
            yield from cut(rows[:whole])
            waiting, count = [rows[whole:]], len(rows) - whole
    if count:
        yield from cut(np.concatenate(waiting))


def _ome(size: tuple[int, int], info: MaskInfo) -> str:
    """Writes the OME-XML: the size of a pixel, and all of `info` as a note of its own."""
    about = quoteattr(json.dumps(info.record()))[1:-1]
    return (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:schemaLocation="http://www.openmicroscopy.org/'
        'Schemas/OME/2016-06 http://www.openmicroscopy.org/Schemas/OME/2016-06/ome.xsd">'
        '<Image ID="Image:0" Name="label"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" '
        f'SizeX="{size[0]}" SizeY="{size[1]}" SizeC="1" SizeZ="1" SizeT="1" PhysicalSizeX="{info.mpp!r}" '
        f'PhysicalSizeXUnit="&#181;m" PhysicalSizeY="{info.mpp!r}" PhysicalSizeYUnit="&#181;m">'
        '<Channel ID="Channel:0:0" SamplesPerPixel="1"/><TiffData IFD="0" PlaneCount="1"/></Pixels></Image>'
        f'<StructuredAnnotations><CommentAnnotation ID="Annotation:0" Namespace="{KEY}"><Value>{about}</Value>'
        "</CommentAnnotation></StructuredAnnotations></OME>"
    )


class MaskFile:
    """The label of a slide, read from its mask region by region: `label[100:200, :50]`, or `label.array()` as a whole.

    Attributes:
        path: of the mask.
        shape: (H, W).
        mpp: µm per pixel.
        info: what else the mask says of itself.
        dtype: uint8.

    Raises:
        InputError: the file is missing or is no mask that mpamatch wrote, or tifffile is not installed.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._tiff = library("tifffile", self.path).TiffFile(self.path)
        except FileNotFoundError:
            raise InputError(f"{self.path}: no such file.") from None
        except Exception as error:  # tifffile raises its own and struct's
            raise InputError(f"{self.path}: is no mask ({reason(error)}).") from error
        self._page: Any = self._tiff.pages[0]
        self.shape: tuple[int, int] = self._page.shape
        self.info = _info(self._page.description, self.path)
        self.mpp = self.info.mpp

    @property
    def origin(self) -> tuple[int, int]:
        """The x and y, in pixels of level 0 of the slide, that QuPath counts from."""
        return self.info.origin

    def __getitem__(self, place: tuple[slice, slice]) -> Label:
        """Reads rows and columns, (h, w) uint8; steps are taken after reading."""
        (top, bottom, row_step), (left, right, column_step) = (
            one.indices(length) for one, length in zip(place, self.shape, strict=True)
        )
        if row_step < 1 or column_step < 1:
            raise IndexError("a label is read forwards.")
        return self._region(top, left, max(0, bottom - top), max(0, right - left))[::row_step, ::column_step]

    def array(self) -> Label:
        """Reads all of it.

        Returns:
            (H, W) uint8.
        """
        return self[:, :]

    def thinned(self, most: int) -> tuple[Label, int]:
        """Reads a smaller level of the pyramid.

        Args:
            most: at least every so manieth pixel along a side is kept.

        Returns:
            The smallest such level, and the step between its pixels: a power of two.
        """
        levels = self._tiff.series[0].levels
        level = min(len(levels) - 1, most.bit_length() - 1)
        return levels[level].asarray(), 2**level

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self.array().astype(dtype or np.uint8, copy=False)

    def _region(self, top: int, left: int, height: int, width: int) -> Label:
        found = np.zeros((height, width), dtype=np.uint8)
        across = -(-self.shape[1] // TILE)
        for row in range(top // TILE, -(-(top + height) // TILE)):
            for column in range(left // TILE, -(-(left + width) // TILE)):
                y, x = row * TILE, column * TILE
                tile = self._tile(row * across + column)
                rows = slice(max(top, y), min(top + height, y + TILE))
                columns = slice(max(left, x), min(left + width, x + TILE))
                inner = tile[rows.start - y : rows.stop - y, columns.start - x : columns.stop - x]
                found[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = inner
        return found

    def _tile(self, index: int) -> Label:
        page = self._page
        handle = self._tiff.filehandle
        with handle.lock:
            handle.seek(page.dataoffsets[index])
            data = handle.read(page.databytecounts[index])
        tile, _, _ = page.decode(data, index)
        full = np.zeros((TILE, TILE), dtype=np.uint8)
        part = tile.reshape(tile.shape[-3], tile.shape[-2])
        full[: part.shape[0], : part.shape[1]] = part
        return full

    def close(self) -> None:
        """Closes the file."""
        self._tiff.close()

    def __enter__(self) -> "MaskFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _info(description: str, path: Path) -> MaskInfo:
    """Reads what `_ome` wrote."""
    from defusedxml import ElementTree

    try:
        root = ElementTree.fromstring(description.encode("utf-8"))
        texts: Sequence[str] = [
            value.text or ""
            for note in root.findall(".//{*}CommentAnnotation")
            if note.get("Namespace") == KEY
            for value in note.findall("{*}Value")
        ]
        return MaskInfo.of(json.loads(texts[0]))
    except Exception as error:
        raise InputError(f"{path}: is no mask that mpamatch wrote.") from error
