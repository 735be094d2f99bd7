"""A slide at a chosen size of pixel, on one grid: what is read in parts is bitwise what is read whole."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from mpamatch.slides.sources.base import Box, Level, Pixels, grid_boxes, white

CLOSE = 0.02  # a level whose pixels are this near to those asked for is taken as it is
MOST_READ = 1 << 20  # pixels of a level that are resampled at once: 12 MB in float32, which caches hold
FEW_TAPS = 4  # larger steps are first averaged over whole squares

Read = Callable[[Box, int], Pixels]  # box and level → pixels, white outside of the slide


@dataclass(frozen=True)
class Grid:
    """Pixels over a slide, the first one's corner at the slide's origin.

    Attributes:
        level: that is read.
        source: its size and downsample.
        step: pixels of that level per pixel of the grid; 1: nothing is resampled.
        width: of the slide, in pixels of the grid.
        height: likewise.
    """

    level: int
    source: Level
    step: float
    width: int
    height: int

    @property
    def scale(self) -> float:
        """Pixels of level 0 per pixel of the grid."""
        return self.source.downsample * self.step


def grid_at(levels: tuple[Level, ...], scale: float) -> Grid:
    """Chooses the level to read for pixels of `scale` times level 0's: one within 2 %, else the next finer one."""
    for number, level in enumerate(levels):
        if abs(scale / level.downsample - 1) <= CLOSE:
            return Grid(number, level, 1.0, level.width, level.height)
    finer = [number for number, level in enumerate(levels) if level.downsample <= scale]
    number = max(finer, key=lambda one: levels[one].downsample) if finer else 0
    level = levels[number]
    step = scale / level.downsample
    return Grid(number, level, step, *(max(1, round(side / step)) for side in (level.width, level.height)))


def read_grid(grid: Grid, box: Box, read: Read) -> Pixels:
    """Reads a box of the grid, (height, width, 3) uint8; white outside of the slide.

    A pixel is the mean of the level's pixels around its middle, weighted by a triangle whose half width is a step (or a
    pixel of the level, if that is larger), and by the slide's rim as if its last pixels went on. Weights depend on the
    pixel's place in the grid alone and are added up in one order, so every read gives the same bits.
    """
    if grid.step == 1:
        return read(box, grid.level)
    pixels = white(box.width, box.height)
    side = max(16, math.isqrt(int(MOST_READ / grid.step**2)))
    for part in grid_boxes(box, side, side):
        left, top = max(part.x, 0), max(part.y, 0)
        right, bottom = min(part.x + part.width, grid.width), min(part.y + part.height, grid.height)
        if left < right and top < bottom:
            inside = _resampled(grid, Box(left, top, right - left, bottom - top), read)
            pixels[top - box.y : bottom - box.y, left - box.x : right - box.x] = inside
    return pixels


def _resampled(grid: Grid, box: Box, read: Read) -> Pixels:
    square = max(1, int(grid.step / 2)) if grid.step >= FEW_TAPS else 1
    sides = tuple(math.ceil(side / square) for side in (grid.source.width, grid.source.height))
    across, column_weights = _taps(box.x, box.width, grid.step / square, sides[0])
    down, row_weights = _taps(box.y, box.height, grid.step / square, sides[1])
    left, top = int(across.min()), int(down.min())
    needed = Box(left, top, int(across.max()) + 1 - left, int(down.max()) + 1 - top)
    values = _averaged(grid, needed, square, read)
    values = _summed(values, down - top, row_weights)
    values = _summed(np.ascontiguousarray(values.transpose(1, 0, 2)), across - left, column_weights).transpose(1, 0, 2)
    return np.rint(np.clip(values, 0, 255)).astype(np.uint8)


def _taps(
    start: int, count: int, step: float, length: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:  # (count, taps) both
    """Lists, for `count` pixels of the grid from `start` on, which of `length` pixels count and by how much."""
    reach = max(step, 1.0)
    middle = (np.arange(start, start + count, dtype=np.float64) + 0.5) * step - 0.5
    places = np.floor(middle - reach).astype(np.int64)[:, None] + np.arange(math.ceil(2 * reach) + 2)
    weights = np.maximum(1 - np.abs(places - middle[:, None]) / reach, 0)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.clip(places, 0, length - 1), weights.astype(np.float32)


def _averaged(
    grid: Grid,
    box: Box,  # in squares
    square: int,
    read: Read,
) -> NDArray[np.float32]:  # (height, width, 3)
    """Reads a box and averages each square of `square`² pixels; squares over the slide's rim have fewer."""
    width = min(box.width * square, grid.source.width - box.x * square)
    height = min(box.height * square, grid.source.height - box.y * square)
    pixels = read(Box(box.x * square, box.y * square, width, height), grid.level)
    if square == 1:
        return pixels.astype(np.float32)
    rows = np.add.reduceat(pixels, np.arange(0, height, square), axis=0, dtype=np.uint32)
    sums = np.add.reduceat(rows, np.arange(0, width, square), axis=1)
    sizes = [np.minimum(square, side - np.arange(0, side, square)) for side in (height, width)]
    return (sums / (sizes[0][:, None] * sizes[1])[..., None]).astype(np.float32)


def _summed(
    values: NDArray[np.float32],  # (rows, columns, 3)
    places: NDArray[np.int64],  # (count, taps)
    weights: NDArray[np.float32],  # (count, taps)
) -> NDArray[np.float32]:  # (count, columns, 3)
    """Adds up the weighted rows at `places`, one after the other, so that the order is the same for every pixel.

    A sparse product does just this; BLAS would choose the order by the size of the whole.
    """
    starts = np.arange(0, places.size + 1, places.shape[1])
    rows = sparse.csr_array((weights.ravel(), places.ravel(), starts), shape=(len(places), len(values)))
    return (rows @ values.reshape(len(values), -1)).reshape(len(places), *values.shape[1:])
