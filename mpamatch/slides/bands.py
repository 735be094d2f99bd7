"""A slide in bands: which windows touch tissue, what is read for them, and what is kept of a finished band.

A band is one row of windows. Where a slide is so wide that a band would not fit the memory, it is cut into blocks of
columns, each of which is gone through from top to bottom by itself.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpamatch.ahead import ahead
from mpamatch.errors import InputError, reason
from mpamatch.files import replacing
from mpamatch.slides.reader import View
from mpamatch.slides.sources.base import Pixels
from mpamatch.slides.tissue import Tissue

STRIP = 512  # rows that are read at once, whatever the windows: so a tile of the slide is decoded once
PIECE = 2048  # columns that are read at once, in one thread
READERS = 2  # threads; each waits for the other where the file lies on a slow disk
UNSEEN = 255  # the label outside of the tissue

Label = NDArray[np.uint8]


class Seen:
    """Which pixels of a view are looked at: those whose middle lies in tissue."""

    def __init__(self, tissue: Tissue, size: tuple[int, int], scale: float) -> None:
        self._mask = tissue.mask
        height, width = tissue.mask.shape
        # A view's last row may lie a fraction beyond the mask's, which covers the slide in larger pixels.
        self._rows = np.minimum(((np.arange(size[1]) + 0.5) * scale / tissue.scale).astype(np.int64), height - 1)
        self._columns = np.minimum(((np.arange(size[0]) + 0.5) * scale / tissue.scale).astype(np.int64), width - 1)
        self._sums = np.zeros((height + 1, width + 1), dtype=np.int64)
        self._sums[1:, 1:] = tissue.mask.cumsum(axis=0, dtype=np.int64).cumsum(axis=1)

    def pixels(self, top: int, bottom: int, left: int, right: int) -> NDArray[np.bool_]:
        """Tells it for each pixel of a region, (bottom − top, right − left)."""
        return self._mask[self._rows[top:bottom]][:, self._columns[left:right]]

    def touches(self, top: int, bottom: int, left: int, right: int) -> bool:
        """Tells whether any pixel of a region is looked at; the region may reach beyond the view."""
        rows, columns = self._rows[max(0, top) : bottom], self._columns[max(0, left) : right]
        if not len(rows) or not len(columns):
            return False
        low, high, first, last = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        sums = self._sums
        return bool(sums[high, last] - sums[low, last] - sums[high, first] + sums[low, first])


@dataclass(frozen=True)
class Block:
    """Columns that are predicted together: windows `first` to `stop`, for the pixels `left` to `right`."""

    index: int
    first: int
    stop: int
    left: int
    right: int


class Band(NamedTuple):
    """A row of windows in a block, and the rows `top` to `bottom` of the view that it completes."""

    block: Block
    row: int
    start: int  # where its windows begin; above the view if that is lower than a window
    top: int
    bottom: int
    lefts: tuple[int, ...]  # of the windows that touch tissue

    @property
    def file(self) -> str:
        """The name of the file that keeps its label."""
        return f"{self.block.index:03}-{self.row:05}.band"


@dataclass(frozen=True)
class Layout:
    """The bands of a view.

    Attributes:
        size: (width, height) of the view.
        window: side of a window.
        tops: where the rows of windows begin; in a view lower than a window the one row begins above it.
        lefts: where the columns of windows begin.
        blocks: from left to right.
    """

    size: tuple[int, int]
    window: int
    tops: tuple[int, ...]
    lefts: tuple[int, ...]
    blocks: tuple[Block, ...]

    def bands(self, block: Block, seen: Seen) -> list[Band]:
        """Lists the bands of a block from top to bottom, those without tissue too."""
        ends = [*self.tops[1:], self.size[1]]
        found = []
        for row, (top, end) in enumerate(zip(self.tops, ends, strict=True)):
            lefts = self.lefts[block.first : block.stop]
            there = [left for left in lefts if seen.touches(top, top + self.window, left, left + self.window)]
            found.append(Band(block, row, top, max(0, top), end, tuple(there)))
        return found

    def needed_from(self, row: int) -> int:
        """Finds the first row of windows that reaches into what row `row` completes."""
        return next(one for one, top in enumerate(self.tops) if top + self.window > self.tops[row])


def lay_out(
    size: tuple[int, int], window: int, tops: Sequence[int], lefts: Sequence[int], classes: int, budget: int
) -> Layout:
    """Cuts a view into blocks of columns that take no more than `budget` bytes, but at least a window each.

    A column of pixels takes 4 bytes per class and row of a window, 3 per row that is read, and 2 per row of the label
    that waits for its outlines.
    """
    width = size[0]
    each = 4 * classes * window + 3 * (window + 2 * STRIP) + 2 * PIECE
    most = max(budget // each, 2 * window)
    blocks: list[Block] = []
    own = 0
    while own < len(lefts):
        first = next(at for at, left in enumerate(lefts) if left + window > lefts[own]) if own else 0
        stop = own + 1
        while stop < len(lefts) and lefts[stop] + window - lefts[first] <= most:
            stop += 1
        left, right = max(0, lefts[own]) if own else 0, lefts[stop] if stop < len(lefts) else width
        blocks.append(Block(len(blocks), first, stop, left, right))
        own = stop
    return Layout(size, window, tuple(tops), tuple(lefts), tuple(blocks))


class Windows:
    """The windows of some bands of one block, read ahead of their use.

    Pieces of 512 rows and 2,048 columns are read in threads, each once; those that no window needs never are.
    """

    def __init__(self, view: View, window: int, bands: Sequence[Band]) -> None:
        self._view, self._window = view, window
        self._held: dict[tuple[int, int], Pixels] = {}
        order = self._pieces(bands)
        self._coming = zip(order, ahead(self._read, order, threads=READERS), strict=True)

    def cut(self, band: Band, left: int) -> Pixels:
        """Cuts a window out, as much of it as lies in the view; bands and windows must be taken in their order."""
        top, bottom, first, last = self._inside(band.start, left)
        for key in [one for one in self._held if (one[0] + 1) * STRIP <= top]:
            del self._held[key]
        pixels = np.empty((bottom - top, last - first, 3), dtype=np.uint8)
        for strip, piece in self._touched(band.start, left):
            while (strip, piece) not in self._held:
                key, found = next(self._coming)
                self._held[key] = found
            y, x = strip * STRIP, piece * PIECE
            rows, columns = (max(top, y), min(bottom, y + STRIP)), (max(first, x), min(last, x + PIECE))
            part = self._held[strip, piece][rows[0] - y : rows[1] - y, columns[0] - x : columns[1] - x]
            pixels[rows[0] - top : rows[1] - top, columns[0] - first : columns[1] - first] = part
        return pixels

    def _pieces(self, bands: Sequence[Band]) -> list[tuple[int, int]]:
        """Lists the pieces that are needed, (strip, piece), in the order in which they are."""
        needed: dict[tuple[int, int], None] = {}
        for band in bands:
            touched = {piece for left in band.lefts for piece in self._touched(band.start, left)}
            needed.update(dict.fromkeys(sorted(touched)))
        return list(needed)

    def _inside(self, top: int, left: int) -> tuple[int, int, int, int]:
        """Returns top, bottom, left and right of the part of a window that lies in the view."""
        width, height = self._view.size
        return max(0, top), min(height, top + self._window), max(0, left), min(width, left + self._window)

    def _touched(self, top: int, left: int) -> list[tuple[int, int]]:
        """Lists the pieces that a window lies in."""
        top, bottom, left, right = self._inside(top, left)
        strips, pieces = range(top // STRIP, -(-bottom // STRIP)), range(left // PIECE, -(-right // PIECE))
        return [(strip, piece) for strip in strips for piece in pieces]

    def _read(self, key: tuple[int, int]) -> Pixels:
        x, y = key[1] * PIECE, key[0] * STRIP
        width, height = self._view.size
        return self._view.read(x, y, min(PIECE, width - x), min(STRIP, height - y))


class Store:
    """The finished bands of a slide, one file each, so that a run that was killed goes on after the last of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def has(self, band: Band) -> bool:
        """Tells whether a band is finished; one without tissue always is."""
        return not band.lefts or (self._folder / band.file).is_file()

    def write(self, band: Band, label: Label, confidence: Label) -> None:
        """Keeps a band. Raises InputError if it cannot be written."""
        with replacing(self._folder / band.file) as temporary:
            temporary.write_bytes(zlib.compress(label.tobytes() + confidence.tobytes(), 1))

    def read(self, band: Band) -> tuple[Label, Label]:
        """Reads label and confidence of a band, (h, w) uint8 each. Raises InputError if its file is broken."""
        size = band.bottom - band.top, band.block.right - band.block.left
        if not band.lefts:
            return np.full(size, UNSEEN, dtype=np.uint8), np.zeros(size, dtype=np.uint8)
        path = self._folder / band.file
        try:
            label, confidence = np.frombuffer(zlib.decompress(path.read_bytes()), dtype=np.uint8).reshape(2, *size)
        except (OSError, zlib.error, ValueError) as error:
            raise InputError(
                f"{path}: is broken ({reason(error)}): delete it, and the same command makes it again."
            ) from error
        return label, confidence

    def rows(self, bands_of_blocks: Sequence[Sequence[Band]]) -> Iterator[Label]:
        """Reads the label from top to bottom, the rows of a band at a time, (h, width)."""
        for bands in zip(*bands_of_blocks, strict=True):
            yield np.concatenate([self.read(band)[0] for band in bands], axis=1)


class Rows:
    """Gathers bands of a block until there are enough rows for the outlines, and passes them on in squares.

    Args:
        block: whose bands are added, from top to bottom.
        height: of the view.
        take: is called with label, confidence, top and left of each square.
    """

    def __init__(self, block: Block, height: int, take: Callable[[Label, Label, int, int], None]) -> None:
        self.block, self._height, self._take = block, height, take
        self._held = np.empty((2, min(PIECE, height), block.right - block.left), dtype=np.uint8)
        self._top = 0  # of what is held
        self._count = 0

    def add(self, label: Label, confidence: Label) -> None:
        """Adds rows; the last ones of the view end the last squares."""
        at = 0
        while at < len(label):
            count = min(len(label) - at, self._held.shape[1] - self._count)
            place = slice(self._count, self._count + count)
            self._held[0, place], self._held[1, place] = label[at : at + count], confidence[at : at + count]
            at, self._count = at + count, self._count + count
            if self._count == self._held.shape[1] or self._top + self._count == self._height:
                self._pass_on()

    def _pass_on(self) -> None:
        for left in range(0, self._held.shape[2], PIECE):
            label, confidence = self._held[:, : self._count, left : left + PIECE]
            self._take(label, confidence, self._top, self.block.left + left)
        self._top, self._count = self._top + self._count, 0
