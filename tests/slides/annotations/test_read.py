"""Annotation files are found by the slide's name, label tiles too, and laid where QuPath drew them."""

import numpy as np
import pytest
from PIL import Image

from mpamatch.errors import InputError
from mpamatch.slides.annotations.labels import SlideLabel, meaning_of
from mpamatch.slides.annotations.read import find_annotations, read_annotations, slide_name
from mpamatch.slides.annotations.tiles import tile_name
from mpamatch.slides.sources.base import Box
from tests.slides.annotations.qupath import feature, square, write
from tests.slides.annotations.test_xml import ASAP


def slides(root, *names):
    return {slide_name(root / name): root / name for name in names}


def test_files_belong_to_slides_by_name(tmp_path):
    there = slides(tmp_path, "a.svs", "b.1.ndpi", "c.ome.tif", "d[1].svs", "e.svs")
    assert list(there) == ["a", "b.1", "c", "d[1]", "e"]
    marks = tmp_path / "marks"
    files = ["a.geojson", "in/b.1.ndpi.geojson.gz", "c.ome.xml", "d[1].zip", "f.geojson", "notes.txt", "._e.geojson"]
    for name in files:
        (marks / name).parent.mkdir(parents=True, exist_ok=True)
        (marks / name).touch()
    found = find_annotations(marks, there)
    assert found.of_slide == {
        "a": [marks / "a.geojson"],
        "b.1": [marks / "in" / "b.1.ndpi.geojson.gz"],
        "c": [marks / "c.ome.xml"],
        "d[1]": [marks / "d[1].zip"],
    }
    assert found.left == [marks / "f.geojson"]
    assert find_annotations(marks / "a.geojson", there).of_slide == {"a": [marks / "a.geojson"]}
    (marks / "a.xml").touch()
    with pytest.raises(InputError, match=r"a\.xml: annotates a, as .*a\.geojson does: keep one"):
        find_annotations(marks, there)


def test_no_annotation_is_told(tmp_path):
    there = slides(tmp_path, "a.svs")
    with pytest.raises(InputError, match="no such file or folder"):
        find_annotations(tmp_path / "none", there)
    with pytest.raises(InputError, match=r"holds no a\.geojson: export one there"):
        find_annotations(tmp_path, there)
    (tmp_path / "b.geojson").touch()
    with pytest.raises(InputError, match=r"of 1 annotation files none has the name of a slide, such as a\.geojson"):
        find_annotations(tmp_path, there)


def test_coordinates_begin_where_qupath_crops_to(tmp_path):
    path, bounds = write(tmp_path / "a.geojson", feature("Tumor", square(1, 2, 10))), Box(100, 200, 300, 400)
    cropped = read_annotations([path], bounds=bounds)
    assert cropped.regions[0].geometry.bounds == (101, 202, 111, 212)
    assert "coordinates begin at 100, 200, where QuPath crops the slide to; --origin slide" in cropped.remarks[0]
    for options in ({"bounds": bounds, "origin": "slide"}, {"bounds": None}):
        whole = read_annotations([path], **options)
        assert whole.regions[0].geometry.bounds == (1, 2, 11, 12)
        assert whole.remarks == ()
    with pytest.raises(InputError, match="--origin corner: must be qupath or slide"):
        read_annotations([path], origin="corner")
    xml = tmp_path / "a.xml"
    xml.write_text(ASAP)
    assert read_annotations([xml], bounds=bounds).regions[0].geometry.bounds == (10, 20, 110, 70)


def test_names_of_tiles():
    assert tile_name("a [b] [d=4,x=8,y=16,w=2048,h=1024]-labelled.png") == (
        type(tile_name("a [x=0,y=0,w=1,h=1]-labelled.png"))("a [b]", Box(8, 16, 2048, 1024), 4.0)
    )
    assert tile_name("a [x=0,y=0,w=1,h=1]-labelled.tif").downsample == 1
    for other in ("a [d=4,x=8,y=16,w=2048,h=1024].png", "a-labelled.png", "a [d=4,x=8]-labelled.png", "a.geojson"):
        assert tile_name(other) is None


def test_label_tiles_come_back_to_the_bit(tmp_path):
    """Two tiles beside each other, four pixels of the slide to one of theirs, the last one cut by the slide's rim."""
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 3, (40, 70), dtype=np.uint8)
    for left, right in ((0, 48), (48, 70)):
        image = Image.fromarray(mask[:, left:right], "P")
        image.putpalette([0, 0, 0, 200, 0, 0, 0, 0, 200])
        image.save(tmp_path / f"s [d=4,x={4 * left},y=0,w={4 * (right - left)},h=160]-labelled.png")
    files = find_annotations(tmp_path, slides(tmp_path, "s.svs")).of_slide["s"]
    assert len(files) == 2
    found = read_annotations(files, names=["Tumour", "Stroma"])
    assert {(region.class_name, region.color) for region in found.regions} == {
        ("Tumour", (200, 0, 0)),
        ("Stroma", (0, 0, 200)),
    }
    label = SlideLabel(found.regions, meaning_of(found.regions, "Tumour,Stroma")).paint(Box(0, 0, 70, 40), 4.0)
    np.testing.assert_array_equal(label.label, np.where(mask == 0, 255, mask))
    with pytest.raises(InputError, match=r"holds the values 1, 2, and 1 names are given: name .* --classes"):
        read_annotations(files, names=["Tumour"])
