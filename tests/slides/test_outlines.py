"""Outlines give the label back exactly, whatever the blocks, and share their borders when they are simplified."""

import numpy as np
import pytest
import shapely
from scipy import ndimage
from shapely import contains_xy

from mpamatch.slides import outlines as module
from mpamatch.slides.outlines import Outliner, outlines


def blobs(height: int = 90, width: int = 110, sigma: float = 2.0, classes: int = 3, seed: int = 0) -> np.ndarray:
    """A label of blobs of several classes, some of them cut off by the rim, and a corner that nobody looked at."""
    noise = np.random.default_rng(seed).standard_normal((classes, height, width))
    label = np.stack([ndimage.gaussian_filter(one, sigma) if sigma else one for one in noise]).argmax(axis=0)
    label[: height // 4, : width // 3] = 255
    return label.astype(np.uint8)


def painted(regions: module.Regions, shape: tuple[int, ...]) -> np.ndarray:
    """The label of which every pixel has the class of the polygon that its middle lies in."""
    label = np.zeros(shape, dtype=np.uint8)
    x, y = np.meshgrid(np.arange(shape[1]) + 0.5, np.arange(shape[0]) + 0.5)
    for polygon, index in zip(regions.polygons, regions.classes, strict=True):
        label[contains_xy(polygon, x, y)] = index
    return label


def texts(regions: module.Regions) -> list[tuple[bytes, int, int, float]]:
    shapes = shapely.to_wkb(shapely.normalize(regions.polygons))
    sure = np.round(regions.confidence, 9)
    return sorted(zip(shapes, regions.classes.tolist(), regions.pixels.tolist(), sure.tolist(), strict=True))


@pytest.mark.parametrize("sigma", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("block", [16, 37, 2048])
def test_exact_outlines_give_the_label_back(sigma: float, block: int) -> None:
    label = blobs(sigma=sigma)
    found = outlines(label, tolerance=0, block=block)
    expected = np.where(label == 255, 0, label)
    assert (painted(found, label.shape) == expected).all()
    assert shapely.is_valid(found.polygons).all()
    assert set(shapely.get_type_id(found.polygons)) == {shapely.GeometryType.POLYGON}
    assert (shapely.area(found.polygons) == found.pixels).all()


@pytest.mark.parametrize("sigma", [0.0, 1.0, 3.0])
def test_a_region_is_what_hangs_together_by_sides_with_its_mean_confidence(sigma: float) -> None:
    """Against scipy, which labels the classes one by one; blocks cut most regions."""
    label = blobs(sigma=sigma)
    confidence = np.random.default_rng(1).integers(0, 101, label.shape).astype(np.uint8)
    found = outlines(label, confidence, tolerance=0, block=23)
    expected = []
    for index in (1, 2):
        pieces, count = ndimage.label(label == index)
        for piece in range(1, count + 1):
            inside = pieces == piece
            expected.append((index, int(inside.sum()), confidence[inside].mean() / 100))
    mine = sorted(zip(found.classes.tolist(), found.pixels.tolist(), found.confidence.tolist(), strict=True))
    assert [one[:2] for one in mine] == [one[:2] for one in sorted(expected)]
    np.testing.assert_allclose([one[2] for one in mine], [one[2] for one in sorted(expected)], atol=1e-9)


@pytest.mark.parametrize("sigma", [0.0, 1.0, 3.0])
def test_blocks_change_nothing(sigma: float) -> None:
    label = blobs(sigma=sigma)
    confidence = np.full(label.shape, 70, dtype=np.uint8)
    whole = outlines(label, confidence, tolerance=0, block=2048)
    for block in (8, 31, 64):
        assert texts(outlines(label, confidence, tolerance=0, block=block)) == texts(whole)


@pytest.mark.parametrize("block", [40, 2048])
def test_simplified_outlines_share_their_borders(block: int) -> None:
    label = blobs(200, 300, sigma=4)
    exact, found = outlines(label, tolerance=0, block=block), outlines(label, tolerance=1, block=block)
    assert shapely.coverage_is_valid(found.polygons)
    assert shapely.is_valid(found.polygons).all()
    counts = [shapely.get_num_coordinates(one.polygons).sum() for one in (exact, found)]
    assert counts[1] < 0.75 * counts[0]
    changed = (painted(found, label.shape) != np.where(label == 255, 0, label)).mean()
    assert changed < 0.03
    assert found.pixels.sum() == exact.pixels.sum()


def test_a_straight_seam_leaves_no_points() -> None:
    """A square over four blocks has four corners, a ring eight."""
    label = np.zeros((64, 64), dtype=np.uint8)
    label[10:50, 10:50] = 1
    label[20:40, 20:40] = 0
    label[0:8] = 2
    for tolerance in (0, 1):
        found = outlines(label, tolerance=tolerance, block=32)
        assert sorted(shapely.get_num_coordinates(found.polygons)) == [5, 10]


def test_holes_and_regions_in_holes_and_pixels_that_touch_by_a_corner() -> None:
    label = np.zeros((40, 40), dtype=np.uint8)
    label[2:38, 2:38], label[6:34, 6:34], label[10:30, 10:30] = 1, 2, 1
    label[12, 12] = label[13, 13] = 0  # two holes that touch
    found = outlines(label, tolerance=0, block=9)
    assert (painted(found, label.shape) == label).all()
    assert shapely.is_valid(found.polygons).all()
    assert len(found) == 3


def test_a_label_without_regions_has_none() -> None:
    for value in (0, 255):
        found = outlines(np.full((30, 30), value, dtype=np.uint8), block=16)
        assert len(found) == 0


def test_a_label_of_one_class_is_one_rectangle() -> None:
    found = outlines(np.ones((30, 50), dtype=np.uint8), tolerance=0, block=16)
    assert texts(found)[0][1:3] == (1, 1500)
    assert shapely.get_num_coordinates(found.polygons).tolist() == [5]


@pytest.mark.parametrize("sigma", [1.0, 3.0])
def test_what_is_held_does_not_grow_with_the_height(sigma: float) -> None:
    """Regions come out while blocks go in: along a rim wait no more of them the higher a label is."""
    piece = blobs(96, 100, sigma=sigma)
    most = {}
    for times in (2, 8):
        label = np.tile(piece, (times, 1))
        came: list[module.Regions] = []
        outliner = Outliner(label.shape, came.append, tolerance=1)
        held, left = 0, []
        for top in range(0, label.shape[0], 32):
            for at in range(0, 100, 25):
                outliner.add(label[top : top + 32, at : at + 25], None, top, at)
                held = max(held, outliner.waiting)
            left.append(sum(len(part) for part in came))
        assert outliner.waiting == 0
        assert sum(part.pixels.sum() for part in came) == np.isin(label, (1, 2)).sum()
        assert left[len(left) // 2] > 0.4 * left[-1]
        most[times] = held
    assert most[8] <= most[2]
    assert most[2] > 0


def test_a_block_behind_a_rim_of_background_closes_it() -> None:
    """Blocks without any region are met as all others are, and columns of blocks may come one after another."""
    label = np.zeros((40, 60), dtype=np.uint8)
    label[5:20, 5:20] = 1
    label[15:25, 40:45] = 2
    came: list[module.Regions] = []
    outliner = Outliner(label.shape, came.append, tolerance=0)
    for left in (0, 20, 40):
        for top in (0, 20):
            sure = np.full((20, 20), 70, dtype=np.uint8)
            outliner.add(label[top : top + 20, left : left + 20], sure, top, left)
    assert outliner.waiting == 0
    whole = outlines(label, np.full(label.shape, 70, dtype=np.uint8), tolerance=0)
    assert texts(module.Regions.joined(came)) == texts(whole)
