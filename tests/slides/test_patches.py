"""Windows over a slide: on a grid from its origin, the last ones at its rim, drawn in an order of their own."""

import numpy as np
import pytest

from mpamatch.slides.patches import draw_of, level_box, unlabelled_windows, windows
from mpamatch.slides.reader import Box, open_slide
from mpamatch.slides.tissue import Tissue, all_tissue
from tests.slides.files import write_slide


@pytest.fixture
def view(tmp_path):
    with open_slide(write_slide(tmp_path / "slide.tif")) as slide:  # 640×512 pixels of 0.5 µm
        yield slide.at(0.5)


@pytest.mark.parametrize(
    ("side", "stride", "columns", "rows"),
    [
        (128, 128, [0, 128, 256, 384, 512], [0, 128, 256, 384]),
        (200, 200, [0, 200, 400, 440], [0, 200, 312]),
        (300, 150, [0, 150, 300, 340], [0, 150, 212]),
        (600, 600, [0, 40], [0]),
        (1000, 500, [0], [0]),
    ],
)
def test_windows_cover_the_slide_and_end_at_its_rim(view, side, stride, columns, rows):
    assert list(windows(view, side, stride)) == [Box(x, y, side, side) for y in rows for x in columns]


def test_boxes_in_pixels_of_level_0(view):
    assert level_box(view, Box(3, 4, 10, 20)) == Box(3, 4, 10, 20)
    assert level_box(view.slide.at(1.0), Box(3, 4, 10, 20)) == Box(6, 8, 20, 40)
    assert level_box(view.slide.at(0.7), Box(1, 1, 2, 2)) == Box(1, 1, 4, 4)


def test_unlabelled_windows_are_tissue_by_half(view):
    mask = np.zeros(all_tissue(view.slide).mask.shape, dtype=bool)
    mask[:8, :20] = True  # of 8×8 to a window: two and a half windows of the first row
    tissue = Tissue(mask, 8.0, 16.0)
    found = list(unlabelled_windows(view, None, tissue, 128))
    assert found == [Box(0, 0, 128, 128), Box(128, 0, 128, 128), Box(256, 0, 128, 128)]


def test_the_draw_depends_on_seed_name_and_place_alone():
    draws = {draw_of(seed, name, Box(x, y, 8, 8)) for seed in (0, 1) for name in "ab" for x in (0, 8) for y in (0, 8)}
    assert len(draws) == 16
    assert draw_of(1, "a", Box(8, 0, 4, 4)) in draws
