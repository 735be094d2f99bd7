"""Classes, background, what is not known: painted, counted and measured."""

import numpy as np
import pytest
import shapely

from mpamatch.errors import InputError
from mpamatch.images import default_colour
from mpamatch.slides.annotations.labels import Meaning, SlideLabel, meaning_of, unlearned
from mpamatch.slides.annotations.regions import Region
from mpamatch.slides.sources.base import Box

WHOLE = Box(0, 0, 20, 10)
TUMOUR = Region("Tumour", shapely.box(2, 2, 8, 8), (200, 0, 0))
STROMA = Region("Stroma", shapely.box(6, 2, 12, 8), (0, 200, 0))
REGION = Region("Region*", shapely.box(0, 0, 10, 10))
IGNORED = Region("Ignore*", shapely.box(3, 3, 4, 10))
PLAIN = Region(None, shapely.box(0, 0, 20, 10))


def read(regions: list[Region], asked: str | None = None, unpainted: str = "ignore") -> np.ndarray:
    return SlideLabel(regions, meaning_of(regions, asked, unpainted)).paint(WHOLE, 1.0).label


def test_classes_are_named_in_order_and_coloured():
    regions = [TUMOUR, STROMA, REGION, PLAIN, IGNORED]
    meaning = meaning_of(regions)
    assert meaning == Meaning(("background", "Stroma", "Tumour"), (default_colour(0), (0, 200, 0), (200, 0, 0)))
    assert meaning_of(regions, "Tumour, Stroma").names == ("background", "Tumour", "Stroma")
    assert meaning_of(regions, "Tumour").names == ("background", "Tumour")
    assert meaning_of([*regions, Region("Background", TUMOUR.geometry)]).names == ("Background", "Stroma", "Tumour")
    twins = [Region(name, TUMOUR.geometry, (9, 9, 9)) for name in ("a", "b")]
    assert meaning_of(twins).colours == (default_colour(0), (9, 9, 9), default_colour(2))


def test_without_a_region_what_is_not_painted_is_not_known():
    truth = np.full((10, 20), 255)
    truth[2:8, 6:12] = 1
    truth[2:8, 2:8] = 2  # Tumour is the later by name
    np.testing.assert_array_equal(read([TUMOUR, STROMA]), truth)
    truth[truth == 255] = 0
    np.testing.assert_array_equal(read([TUMOUR, STROMA], unpainted="background"), truth)


def test_the_order_of_classes_settles_overlaps():
    truth = np.full((10, 20), 255)
    truth[2:8, 2:8] = 1
    truth[2:8, 6:12] = 2
    for regions in ([TUMOUR, STROMA], [STROMA, TUMOUR]):
        np.testing.assert_array_equal(read(regions, "Tumour,Stroma"), truth)


@pytest.mark.parametrize("unpainted", ["ignore", "background"])
def test_a_region_bounds_what_is_annotated(unpainted):
    truth = np.full((10, 20), 255)
    truth[:, :10] = 0
    truth[2:8, 2:8] = 1
    truth[2:8, 6:10] = 2
    np.testing.assert_array_equal(read([STROMA, REGION, TUMOUR], "Tumour,Stroma", unpainted), truth)


def test_ignored_and_foreign_classes_are_not_known():
    truth = np.full((10, 20), 255)
    truth[:, :10] = 0
    truth[2:8, 6:10] = 255  # stroma is not asked for
    truth[2:8, 2:8] = 1
    truth[3:10, 3] = 255
    np.testing.assert_array_equal(read([IGNORED, TUMOUR, STROMA, REGION, PLAIN], "Tumour"), truth)
    counts = unlearned([IGNORED, TUMOUR, STROMA, STROMA, REGION, PLAIN], meaning_of([TUMOUR, STROMA], "Tumour"))
    assert counts == {"Stroma": 2, None: 1}


@pytest.mark.parametrize("regions", [[TUMOUR, STROMA], [TUMOUR, STROMA, REGION], [TUMOUR, TUMOUR, STROMA, IGNORED]])
def test_overlaps_and_what_lies_outside_are_counted(regions):
    painted = SlideLabel(regions, meaning_of(regions)).paint(WHOLE, 1.0)
    assert painted.overlaps == {(1, 2): 12}
    assert painted.outside == (12 if REGION in regions else 0)


def test_boxes_that_touch_what_is_annotated():
    boxes = [Box(x, 0, 2, 2) for x in range(0, 20, 2)]
    low = Box(2, 2, 2, 2)

    def touched(*regions: Region) -> list[int]:
        label = SlideLabel(regions, meaning_of([TUMOUR]))
        return np.flatnonzero(label.touched([*boxes, low], 1.0)).tolist()

    assert touched(TUMOUR) == [10], "a shared rim is no pixel"
    assert touched(TUMOUR, REGION) == [0, 1, 2, 3, 4, 10]
    assert touched(Region("Ignore*", shapely.box(3, 0, 5, 9))) == [1, 2, 10]
    assert touched(PLAIN) == touched() == []
    label = SlideLabel([TUMOUR], meaning_of([TUMOUR]))
    assert label.touched([Box(0, 0, 1, 1), Box(1, 1, 1, 1)], 4.0).tolist() == [True, True]
    assert label.touched([], 1.0).shape == (0,)


def test_a_part_is_the_part_of_the_whole():
    label = SlideLabel([TUMOUR, STROMA, REGION], meaning_of([TUMOUR, STROMA]))
    whole = label.paint(WHOLE, 1.0).label
    np.testing.assert_array_equal(label.paint(Box(5, 3, 9, 4), 1.0).label, whole[3:7, 5:14])


@pytest.mark.parametrize(
    ("regions", "asked", "told"),
    [
        ([PLAIN, REGION], None, "no annotated region has a class: set one in QuPath"),
        ([TUMOUR], "Tumor", "no region has the class 'Tumor'; there are Tumour"),
        ([TUMOUR], "Tumour,", "--classes Tumour,: must be different names"),
        ([TUMOUR], "Tumour,Tumour", "must be different names"),
        ([TUMOUR], "Tumour,Region*", "Region\\* is no class to learn"),
    ],
)
def test_classes_that_cannot_be_are_refused(regions, asked, told):
    with pytest.raises(InputError, match=told):
        meaning_of(regions, asked)


def test_unpainted_is_one_of_two_words():
    with pytest.raises(InputError, match="--unpainted white: must be ignore or background"):
        meaning_of([TUMOUR], unpainted="white")
