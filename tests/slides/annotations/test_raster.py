"""A pixel belongs to what its middle lies in: against a plain count of crossings, and round trips to the bit."""

from itertools import pairwise

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from mpamatch.slides.annotations.raster import BLOCK, NUDGE, covered
from mpamatch.slides.sources.base import Box


def by_crossings(geometry: shapely.Polygon, box: Box, scale: float) -> np.ndarray:
    """Counts, for each middle, the edges that a ray to the right crosses: odd is inside, whatever is a hole."""
    inside = np.zeros((box.height, box.width), dtype=bool)
    rings = [geometry.exterior, *geometry.interiors]
    for row in range(box.height):
        for column in range(box.width):
            x, y = (box.x + column + 0.5) * scale + NUDGE, (box.y + row + 0.5) * scale + NUDGE
            for ring in rings:
                points = np.asarray(ring.coords)
                for (x0, y0), (x1, y1) in pairwise(points):
                    if (y0 > y) != (y1 > y) and x < x0 + (y - y0) / (y1 - y0) * (x1 - x0):
                        inside[row, column] ^= True
    return inside


def star(seed: int, points: int = 23) -> shapely.Polygon:
    """A jagged polygon around (40, 40) with a hole, in two decimals as QuPath writes."""
    rng = np.random.default_rng(seed)
    turns = np.sort(rng.uniform(0, 2 * np.pi, points))
    radius = rng.uniform(15, 38, points)
    around = np.stack([np.cos(turns), np.sin(turns)], axis=1)
    shell, hole = np.round(40 + radius[:, None] * around, 2), np.round(40 + 7 * around, 2)
    geometry = shapely.Polygon(shell, [hole])
    return geometry if geometry.is_valid else shapely.Polygon(np.round(40 + 30 * around, 2), [hole])


@pytest.mark.parametrize("scale", [1.0, 2.0, 0.37, 4.0037])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_pixel_is_decided_by_its_middle(seed, scale):
    geometry = star(seed)
    box = Box(round(10 / scale), round(-3 / scale), min(70, round(80 / scale)), min(60, round(80 / scale)))
    found = covered(geometry, box, scale)
    assert 0 < found.sum() < found.size
    np.testing.assert_array_equal(found, by_crossings(geometry, box, scale))


def outline(mask: np.ndarray, scale: float) -> shapely.Geometry:
    """Outlines a mask along the edges of its pixels, one square for each."""
    rows, columns = np.nonzero(mask)
    return shapely.union_all(shapely.box(columns * scale, rows * scale, (columns + 1) * scale, (rows + 1) * scale))


@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([1.0, 2.0, 3.9987, 0.73]),
    fill=st.sampled_from([0.1, 0.5, 0.9]),
)
def test_a_mask_comes_back_from_its_outline_to_the_bit(seed, scale, fill):
    mask = np.random.default_rng(seed).random((BLOCK + 9, BLOCK + 17)) < fill
    geometry = outline(mask, scale)
    np.testing.assert_array_equal(covered(geometry, Box(0, 0, mask.shape[1], mask.shape[0]), scale), mask)
    np.testing.assert_array_equal(covered(geometry, Box(20, 11, 25, 30), scale), mask[11:41, 20:45])


def test_neighbours_share_no_pixel_and_leave_none():
    """At twice the slide's µm the middles are whole numbers, and so are outlines drawn with a brush."""
    left, right = shapely.box(0, 0, 21, 40), shapely.box(21, 0, 40, 40)
    box = Box(0, 0, 20, 20)
    one, other = covered(left, box, 2.0), covered(right, box, 2.0)
    assert not (one & other).any()
    assert (one | other).all()


def test_nothing_is_nothing():
    box = Box(0, 0, 8, 8)
    assert not covered(shapely.Polygon(), box, 1.0).any()
    assert not covered(shapely.box(100, 100, 200, 200), box, 1.0).any()
    assert covered(shapely.box(-100, -100, 200, 200), box, 1.0).all()
