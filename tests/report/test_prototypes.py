import numpy as np
import pytest
from PIL import Image

from mpamatch.images import default_colour
from mpamatch.report.prototypes import NO_PROTOTYPE, Assigned, colour_of, draw_assignments, draw_maps, paint_assignments

NAMES = ("background", "gland")
COLOURS = tuple(default_colour(index) for index in range(2))


@pytest.mark.parametrize("per_class", [1, 5, 20])
def test_every_prototype_has_a_colour_of_its_own(per_class):
    found = [colour_of(c, k, per_class) for c in range(2) for k in range(per_class)]
    assert len(set(found)) == 2 * per_class


def test_a_pixel_has_the_colour_of_its_prototype_and_none_is_grey():
    label = np.array([[0, 1], [1, 0]], dtype=np.uint8)
    painted = paint_assignments(label, np.array([[2, 0], [1, -1]], dtype=np.int16), 3, 2)
    wanted = [[colour_of(0, 2, 3), colour_of(1, 0, 3)], [colour_of(1, 1, 3), NO_PROTOTYPE]]
    assert painted.dtype == np.uint8
    assert painted.tolist() == [[list(colour) for colour in row] for row in wanted]


def test_assignments_stand_beside_image_and_labels_with_their_shares(kept_open, tmp_path):
    label = np.zeros((20, 20), dtype=np.uint8)
    label[:, 10:] = 1
    nearest = np.zeros((20, 20), dtype=np.int16)
    nearest[:5, 10:] = 2  # a quarter of the gland
    image = np.full((20, 20, 3), 200, dtype=np.uint8)
    rows = [Assigned(f"K = {k}", image, {"mask": label, "prediction": label}, nearest, k) for k in (3, 4)]
    path = draw_assignments(tmp_path / "a.png", rows, COLOURS, NAMES, title="Which?")
    axes = np.array(kept_open[0].axes).reshape(2, 5)
    assert [axis.get_title() for axis in axes[0]][:4] == [
        "image",
        "mask",
        "prediction",
        "nearest prototype of the class",
    ]
    assert [row[0].get_ylabel() for row in axes] == ["K = 3", "K = 4"]
    assert (axes[0][3].images[0].get_array() == paint_assignments(label, nearest, 3, 2)).all()
    heights = [bar.get_height() for bar in axes[0][4].patches]
    assert heights == [1.0, 0.0, 0.0, 0.75, 0.0, 0.25]
    assert [text.get_text() for text in axes[1][4].get_xticklabels()] == ["background\n1 of 4", "gland\n2 of 4"]
    with Image.open(path) as picture:
        assert picture.width > picture.height


@pytest.mark.parametrize("per_class", [3, 12])
def test_every_prototype_has_a_map_in_the_same_colours(kept_open, tmp_path, per_class):
    rng = np.random.default_rng(0)
    cosine = rng.uniform(-1, 1, (2, per_class, 8, 8)).astype(np.float32)
    image = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
    draw_maps(tmp_path / "m.png", image, cosine, ("background", "gland", "lumen"), title="Where?")
    axes = [axis for axis in kept_open[0].axes if axis.images]
    titles = [axis.get_title() for axis in axes]
    assert [title for title in titles if title.isalpha()] == ["gland", "lumen"]  # the last two of the classes
    maps = [axis for axis, title in zip(axes, titles, strict=True) if title.isdigit()]
    assert [axis.get_title() for axis in maps] == [str(k + 1) for _ in range(2) for k in range(per_class)]
    assert {axis.images[0].get_clim() for axis in maps} == {(float(cosine.min()), float(cosine.max()))}
    shown = sorted(float(axis.images[0].get_array().sum()) for axis in maps)
    assert shown == pytest.approx(sorted(cosine.sum((2, 3)).ravel().tolist()), abs=1e-4)
