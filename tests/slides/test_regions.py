"""Every file that is written keeps QuPath's rules, is the same for the same bands, and stays within the limit."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import shapely

from mpamatch.errors import InputError
from mpamatch.slides import regions as module
from mpamatch.slides.bands import Band, Block, Store
from mpamatch.slides.geojson import Place
from mpamatch.slides.outlines import outlines
from mpamatch.slides.regions import RegionsText, SlideRegions, write_regions
from tests.slides.qupath import problems
from tests.slides.test_outlines import blobs

NAMES, COLOURS = ("background", 'gland "ü"', "stroma"), ((0, 0, 0), (0, 200, 83), (0, 128, 255))
PLACE = Place(1, 0.5)
STEP = 30  # rows of a band


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpamatch.slides.bands.PIECE", 40)


def write(
    path: Path, label: np.ndarray, *, tolerance: float = 1.0, place: Place = PLACE, limit: int = module.LIMIT
) -> list[str]:
    """Writes the regions of a label that comes in bands of one block, each pixel of a confidence of 83 %."""
    height, width = label.shape
    store, block = Store(path.parent / "bands"), Block(0, 0, 1, 0, width)
    found = SlideRegions(path, (height, width), store, NAMES, COLOURS, place, tolerance, limit=limit)
    for row, top in enumerate(range(0, height, STEP)):
        part = label[top : top + STEP]
        band, sure = Band(block, row, top, top, top + len(part), (0,)), np.full(part.shape, 83, dtype=np.uint8)
        store.write(band, part, sure)
        found.add(band, part, sure)
    return write_regions(found)


def features(path: Path) -> list[dict]:
    return json.loads(gzip.decompress(path.read_bytes()))["features"]


@pytest.mark.parametrize("scale", [1.0, 2.0, 1.37, 0.503])
@pytest.mark.parametrize("tolerance", [0, 1])
def test_qupath_loads_what_is_written(tmp_path: Path, scale: float, tolerance: float) -> None:
    label = blobs(sigma=1.0)
    regions = outlines(label, tolerance=tolerance, block=40)
    path = tmp_path / "regions.geojson.gz"
    assert write(path, label, tolerance=tolerance, place=Place(scale, 0.5, offset=(100, 20))) == []
    assert problems(path) == []
    found = features(path)
    assert len(found) == len(regions)
    areas = [feature["properties"]["measurements"]["Area mm^2"] for feature in found]
    assert sum(areas) == pytest.approx(regions.pixels.sum() * 0.25e-6, rel=1e-4)
    assert {feature["properties"]["measurements"]["Mean confidence"] for feature in found} == {0.83}
    assert {feature["properties"]["classification"]["name"] for feature in found} == set(NAMES[1:])
    box = shapely.total_bounds(shapely.from_geojson([json.dumps(feature["geometry"]) for feature in found]))
    expected = shapely.total_bounds(regions.polygons) * scale - (100, 20, 100, 20)
    np.testing.assert_allclose(box, expected, atol=0.006)


def test_the_same_regions_give_the_same_bytes_and_ids(tmp_path: Path) -> None:
    label = blobs()
    for name in ("a", "b"):
        write(tmp_path / f"{name}.geojson.gz", label, tolerance=0, place=Place(1.5, 0.5))
    assert (tmp_path / "a.geojson.gz").read_bytes() == (tmp_path / "b.geojson.gz").read_bytes()
    whole = features(tmp_path / "a.geojson.gz")
    half = RegionsText(tmp_path / "c", NAMES, COLOURS, Place(1.5, 0.5), 10**9, dropping=False)
    half.add(outlines(label, tolerance=0, block=40).picked(np.arange(0, len(whole), 2)))
    assert {json.loads(one)["id"] for one in half.features()} < {one["id"] for one in whole}


def test_few_regions_are_annotations_and_many_detections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    regions = outlines(blobs(), tolerance=0)
    path = tmp_path / "r.geojson.gz"
    for most, kind in ((len(regions), "annotation"), (len(regions) - 1, "detection")):
        monkeypatch.setattr(module, "MOST_ANNOTATIONS", most)
        write(path, blobs(), tolerance=0)
        assert {feature["properties"]["objectType"] for feature in features(path)} == {kind}


def test_no_regions_are_an_empty_collection(tmp_path: Path) -> None:
    path = tmp_path / "r.geojson.gz"
    assert write(path, np.zeros((9, 9), dtype=np.uint8)) == []
    assert problems(path) == []
    assert features(path) == []


def test_a_region_that_vanishes_on_the_grid_is_left_out(tmp_path: Path) -> None:
    """A pixel of the mask is 0.001 pixels of the slide: no real slide, but the rule holds."""
    label = np.zeros((40, 40), dtype=np.uint8)
    label[1, 1], label[5:35, 5:35] = 1, 2
    path = tmp_path / "r.geojson.gz"
    write(path, label, tolerance=0, place=Place(0.001, 0.5))
    assert problems(path) == []
    assert len(features(path)) == 1


def test_beyond_the_limit_borders_are_simplified_then_specks_dropped_and_it_is_said(tmp_path: Path) -> None:
    """Outlining begins again in the middle; what is left out are the smallest, and no more of them than need be."""
    label = blobs(400, 400, sigma=3.0)
    path = tmp_path / "r.geojson.gz"
    assert write(path, label) == []
    size, whole = len(gzip.decompress(path.read_bytes())), features(path)
    for share, words in ((0.93, "simplified to 2 pixels"), (0.4, "left out")):
        limit = int(size * share) + module.FRAME
        said = write(path, label, limit=limit)
        assert any(words in one for one in said), said
        assert all("QuPath can load it" in one for one in said)
        assert problems(path) == []
        assert 0.6 * size * share < len(gzip.decompress(path.read_bytes())) <= limit
    areas = [sorted(one["properties"]["measurements"]["Area mm^2"] for one in some) for some in (whole, features(path))]
    assert areas[1] == areas[0][-len(areas[1]) :]
    (dropped,) = [int(one.split()[1].replace(",", "")) for one in said if "left out" in one]
    assert dropped == len(areas[0]) - len(areas[1]) > 0


def test_which_regions_are_left_out_does_not_go_with_their_order(tmp_path: Path) -> None:
    found = outlines(blobs(300, 300, sigma=1.0), tolerance=0)
    kept = []
    for order in (np.arange(len(found)), np.argsort(found.pixels), np.argsort(-found.pixels)):
        text = RegionsText(tmp_path / "r.geojson.gz", NAMES, COLOURS, Place(1, 0.5), 50_000, dropping=True)
        for start in range(0, len(found), 10):
            text.add(found.picked(order[start : start + 10]))
        lines = list(text.features())
        assert len(lines) + text.dropped == len(found)
        assert sum(len(line) + 2 for line in lines) <= 50_000 - module.FRAME
        kept.append((sorted(lines), text.smallest, text.dropped))
    assert kept[0] == kept[1] == kept[2]
    assert kept[0][2] > 0
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="could not be written"):
        RegionsText(tmp_path / "gone" / "r.geojson.gz", NAMES, COLOURS, Place(1, 0.5), 10**6, dropping=False)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda one: one.update(id="7"), "UUID"),
        (lambda one: one["properties"]["classification"].pop("color"), "color"),
        (lambda one: one["properties"].pop("objectType"), "objectType"),
        (lambda one: one["properties"]["measurements"].update(x=float("nan")), "NaN"),
        (lambda one: one.update(geometry={"type": "GeometryCollection", "geometries": []}), "GeometryCollection"),
        (lambda one: one["geometry"].update(coordinates=[[[0, 0], [9, 9], [9, 0], [0, 9], [0, 0]]]), "invalid"),
        (lambda one: one["geometry"].update(coordinates=[[[0, 0], [9, 0.001], [9, 9], [0, 0]]]), "moves"),
    ],
)
def test_the_checker_finds_what_qupath_would_not_load(tmp_path: Path, change, says: str) -> None:
    path = tmp_path / "r.geojson.gz"
    label = np.zeros((9, 9), dtype=np.uint8)
    label[2:5, 2:5] = 1
    write(path, label, tolerance=0)
    content = json.loads(gzip.decompress(path.read_bytes()))
    change(content["features"][0])
    path.write_bytes(gzip.compress(json.dumps(content).encode()))
    assert any(says in problem for problem in problems(path)), problems(path)
