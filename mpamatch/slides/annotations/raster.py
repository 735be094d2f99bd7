"""Outlines turned into pixels, exactly: a pixel belongs to what its middle lies in."""

import math

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from mpamatch.slides.sources.base import Box, grid_boxes

BLOCK = 32  # pixels: squares that lie wholly inside or outside are decided at once
# A middle may lie just on an outline, as whole numbers do at twice the slide's µm. Moved by this part of a level-0
# pixel, it belongs to the right and lower one of two neighbours; QuPath's own coordinates have two decimals.
NUDGE = 2.0**-14


def covered(
    geometry: BaseGeometry,  # in pixels of level 0
    box: Box,  # in pixels of the grid
    scale: float,
) -> NDArray[np.bool_]:  # (height, width)
    """Marks the pixels of a grid whose middle lies in a polygon or several, holes left out.

    A geometry must not be asked from two threads at once: GEOS builds the index of a prepared one during a query.

    Args:
        geometry: prepared (shapely.prepare), if it is asked for often.
        box: of the grid that begins at the slide's origin.
        scale: pixels of level 0 per pixel of the grid.
    """
    mask = np.zeros((box.height, box.width), dtype=bool)
    inner = _within(geometry, box, scale)
    if inner is None:
        return mask
    parts = grid_boxes(inner, BLOCK, BLOCK)
    left, top, width, height = np.array([(one.x, one.y, one.width, one.height) for one in parts]).T * scale
    squares = shapely.box(left, top, left + width, top + height)
    shapely.prepare(geometry)
    inside = shapely.contains_properly(geometry, squares)
    touched = shapely.intersects(geometry, squares)
    for part, whole in zip(np.array(parts, dtype=object)[touched], inside[touched], strict=True):
        mask[part.y - box.y : part.y - box.y + part.height, part.x - box.x : part.x - box.x + part.width] = (
            True if whole else _middles(geometry, part, scale)
        )
    return mask


def _within(geometry: BaseGeometry, box: Box, scale: float) -> Box | None:
    """Cuts a box down to what a geometry's own box covers; None if nothing is left."""
    if geometry.is_empty:
        return None
    left, top, right, bottom = (value / scale for value in geometry.bounds)
    x, y = max(box.x, math.floor(left) - 1), max(box.y, math.floor(top) - 1)
    width = min(box.x + box.width, math.ceil(right) + 1) - x
    height = min(box.y + box.height, math.ceil(bottom) + 1) - y
    return Box(x, y, width, height) if width > 0 and height > 0 else None


def _middles(geometry: BaseGeometry, box: Box, scale: float) -> NDArray[np.bool_]:
    x = (np.arange(box.x, box.x + box.width) + 0.5) * scale + NUDGE
    y = (np.arange(box.y, box.y + box.height) + 0.5) * scale + NUDGE
    return shapely.contains_xy(geometry, *np.meshgrid(x, y))
