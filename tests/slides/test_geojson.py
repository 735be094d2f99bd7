"""Every file that is written keeps QuPath's rules, is the same for the same regions, and stays within the limit."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import shapely

from mpamatch.slides import geojson as module
from mpamatch.slides.geojson import Place, write_regions, write_tissue
from mpamatch.slides.outlines import outlines
from mpamatch.slides.tissue import Tissue
from tests.slides.qupath import problems
from tests.slides.test_outlines import blobs

NAMES, COLOURS = ("background", 'gland "ü"', "stroma"), ((0, 0, 0), (0, 200, 83), (0, 128, 255))


def features(path: Path) -> list[dict]:
    return json.loads(gzip.decompress(path.read_bytes()))["features"]


@pytest.mark.parametrize("scale", [1.0, 2.0, 1.37, 0.503])
@pytest.mark.parametrize("tolerance", [0, 1])
def test_qupath_loads_what_is_written(tmp_path: Path, scale: float, tolerance: float) -> None:
    label = blobs(sigma=1.0)
    confidence = np.full(label.shape, 83, dtype=np.uint8)
    regions = outlines(label, confidence, tolerance=tolerance, block=40)
    path = tmp_path / "regions.geojson.gz"
    assert write_regions(path, regions, NAMES, COLOURS, Place(scale, 0.5, offset=(100, 20))) == []
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
    regions = outlines(blobs(), tolerance=0)
    for name in ("a", "b"):
        write_regions(tmp_path / f"{name}.geojson.gz", regions, NAMES, COLOURS, Place(1.5, 0.5))
    assert (tmp_path / "a.geojson.gz").read_bytes() == (tmp_path / "b.geojson.gz").read_bytes()
    half = regions.picked(np.arange(0, len(regions), 2))
    write_regions(tmp_path / "half.geojson.gz", half, NAMES, COLOURS, Place(1.5, 0.5))
    ids = [{feature["id"] for feature in features(tmp_path / f"{name}.geojson.gz")} for name in ("a", "half")]
    assert ids[1] < ids[0]


def test_few_regions_are_annotations_and_many_detections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    regions = outlines(blobs(), tolerance=0)
    path = tmp_path / "r.geojson.gz"
    for most, kind in ((len(regions), "annotation"), (len(regions) - 1, "detection")):
        monkeypatch.setattr(module, "MOST_ANNOTATIONS", most)
        write_regions(path, regions, NAMES, COLOURS, Place(1, 0.5))
        assert {feature["properties"]["objectType"] for feature in features(path)} == {kind}


def test_no_regions_are_an_empty_collection(tmp_path: Path) -> None:
    path = tmp_path / "r.geojson.gz"
    assert write_regions(path, outlines(np.zeros((9, 9), dtype=np.uint8)), NAMES, COLOURS, Place(1, 0.5)) == []
    assert problems(path) == []
    assert features(path) == []


def test_a_region_that_vanishes_on_the_grid_is_left_out(tmp_path: Path) -> None:
    """A pixel of the mask is 0.001 pixels of the slide: no real slide, but the rule holds."""
    label = np.zeros((40, 40), dtype=np.uint8)
    label[1, 1], label[5:35, 5:35] = 1, 2
    path = tmp_path / "r.geojson.gz"
    write_regions(path, outlines(label, tolerance=0), NAMES, COLOURS, Place(0.001, 0.5))
    assert problems(path) == []
    assert len(features(path)) == 1


def test_beyond_the_limit_borders_are_simplified_then_specks_dropped_and_it_is_said(tmp_path: Path) -> None:
    label = blobs(400, 400, sigma=3.0)
    regions = outlines(label, tolerance=1)
    path = tmp_path / "r.geojson.gz"
    write_regions(path, regions, NAMES, COLOURS, Place(1, 0.5))
    size = len(gzip.decompress(path.read_bytes()))
    for share, words in ((0.93, "simplified"), (0.4, "left out")):
        said = write_regions(path, regions, NAMES, COLOURS, Place(1, 0.5), limit=int(size * share))
        assert any(words in one for one in said), said
        assert all("QuPath can load it" in one for one in said)
        assert problems(path) == []
        assert len(gzip.decompress(path.read_bytes())) < 1.15 * size * share


def test_tissue_is_one_plain_annotation_of_its_own_class(tmp_path: Path) -> None:
    mask = blobs(60, 80, sigma=4) == 1
    path = tmp_path / "tissue.geojson"
    write_tissue(path, Tissue(mask, 8.0, 16.0), Place(2.0, 1.0, offset=(32, 0)))
    assert problems(path) == []
    found = json.loads(path.read_text())["features"]
    assert {feature["properties"]["classification"]["name"] for feature in found} == {"Tissue"}
    total = sum(feature["properties"]["measurements"]["Area mm^2"] for feature in found)
    assert total == pytest.approx(mask.sum() * 64e-6, rel=1e-4)


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
    write_regions(path, outlines(label, tolerance=0), NAMES, COLOURS, Place(1, 0.5))
    content = json.loads(gzip.decompress(path.read_bytes()))
    change(content["features"][0])
    path.write_bytes(gzip.compress(json.dumps(content).encode()))
    assert any(says in problem for problem in problems(path)), problems(path)
