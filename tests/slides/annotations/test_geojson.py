"""QuPath's GeoJSON in every packing, and what is wrong with a file in one sentence."""

import gzip
import json
import tracemalloc
import zipfile

import pytest
import shapely

from mpamatch.errors import InputError
from mpamatch.slides.annotations import geojson
from mpamatch.slides.annotations.geojson import features, read_geojson
from tests.slides.annotations.qupath import closed, collection, feature, square, write


def test_class_colour_name_and_holes(tmp_path):
    holed = feature("Tumor", square(10, 20, 100), square(30, 40, 10), color=(1, 2, 3), name="first")
    (region,) = read_geojson(write(tmp_path / "a.geojson", holed)).regions
    assert (region.class_name, region.color, region.name) == ("Tumor", (1, 2, 3), "first")
    assert region.geometry.area == 100**2 - 10**2
    assert region.geometry.bounds == (10, 20, 110, 120)
    (moved,) = read_geojson(tmp_path / "a.geojson", (5.0, -7.0)).regions
    assert moved.geometry.equals(shapely.transform(region.geometry, lambda points: points + (5, -7)))


def test_every_packing_is_read_alike(tmp_path):
    text = json.dumps(collection(feature("Tumor", square(1, 2, 3))))
    (tmp_path / "a.json").write_text("\ufeff  " + text)
    (tmp_path / "a.geojson.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "list.geojson").write_text(json.dumps(json.loads(text)["features"], indent=4))
    (tmp_path / "one.geojson").write_text(json.dumps(json.loads(text)["features"][0]))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.geojson", text)
        archive.writestr("__MACOSX/._a.geojson", "junk")
    for path in sorted(tmp_path.iterdir()):
        (region,) = read_geojson(path).regions
        assert region.geometry.area == 9, path
        assert region.class_name == "Tumor"
    (tmp_path / "bare.json").write_text(json.dumps({"coordinates": [closed(square(0, 0, 2))], "type": "Polygon"}))
    assert read_geojson(tmp_path / "bare.json").regions[0].geometry.area == 4


def test_classes_as_other_versions_write_them(tmp_path):
    one = feature(None, square(0, 0, 4))
    for given, name, color in [
        ({"name": "Stroma", "colorRGB": -3670016}, "Stroma", (200, 0, 0)),
        ({"names": ["Tumor", "Positive"], "color": [9, 8, 7]}, "Tumor: Positive", (9, 8, 7)),
        ({"name": "Stroma"}, "Stroma", None),
        ({"name": "Stroma", "color": "red"}, "Stroma", None),
        ("Stroma", "Stroma", None),
        ({}, None, None),
        (None, None, None),
    ]:
        one["properties"]["classification"] = given
        (region,) = read_geojson(write(tmp_path / "a.geojson", one)).regions
        assert (region.class_name, region.color) == (name, color)
    one["properties"] = None
    assert read_geojson(write(tmp_path / "a.geojson", one)).regions[0].class_name is None


def test_an_outline_that_crosses_itself_is_mended_and_named(tmp_path):
    bow = feature("Tumor", [(0, 0), (10, 10), (10, 0), (0, 10)], name="bow")
    found = read_geojson(write(tmp_path / "a.geojson", feature("Stroma", square(0, 0, 5)), bow))
    assert shapely.is_valid(found.regions[1].geometry)
    assert found.regions[1].geometry.area == pytest.approx(50)
    assert found.remarks == ("1 outline crosses itself and was mended: number 2 (Tumor, bow).",)
    found = read_geojson(write(tmp_path / "b.geojson", *[bow] * 5))
    assert len(found.regions) == 5
    assert found.remarks[0].startswith("5 outlines cross themselves and were mended: number 1 (Tumor, bow), number 2")
    assert found.remarks[0].endswith(", ….")


def test_multipolygons_and_collections(tmp_path):
    several = feature("Tumor", square(0, 0, 10))
    several["geometry"] = {"type": "MultiPolygon", "coordinates": [[closed(square(x, 0, 10))] for x in (0, 20)]}
    mixed = feature("Stroma", square(0, 0, 10))
    line = {"type": "LineString", "coordinates": [[0, 0], [5, 5]]}
    mixed["geometry"] = {"type": "GeometryCollection", "geometries": [line, several["geometry"]]}
    found = read_geojson(write(tmp_path / "a.geojson", several, mixed))
    assert [region.geometry.area for region in found.regions] == [200, 200]
    assert all(region.geometry.geom_type == "MultiPolygon" for region in found.regions)


def test_what_has_no_area_is_counted(tmp_path):
    point, flat, nothing = (feature("Tumor", square(0, 0, 10)) for _ in range(3))
    point["geometry"] = {"type": "Point", "coordinates": [1, 2]}
    flat["geometry"]["coordinates"] = [[[0, 0], [5, 5], [0, 0]]]
    nothing["geometry"] = None
    found = read_geojson(write(tmp_path / "a.geojson", point, point, flat, nothing))
    assert found.regions == ()
    assert found.remarks == (
        "2 × Point without an area left out.",
        "1 × Polygon without an area left out.",
        "1 × feature without an area left out.",
    )


WRONG = {
    "no json": ("hello", "is no GeoJSON"),
    "cut": (json.dumps(collection(feature("Tumor", square(0, 0, 3))))[:-40], "is no GeoJSON"),
    "comma": ('{"features": [{"geometry": null} {"geometry": null}]}', "is no GeoJSON .*expected ,"),
    "nested": ("[" * 100_000, "is no GeoJSON"),
    "other": ('{"a": 1}', "is JSON, but holds no features"),
    "numbers": ("[1, 2]", "holds 1, which is no feature"),
    "geometry": ('[{"geometry": 7}]', "which is no feature"),
    "kind": ('[{"geometry": {"type": "Circle"}}]', "holds a geometry of type 'Circle'"),
    "empty": ('[{"geometry": {"type": "Polygon"}}]', "holds a polygon without coordinates"),
    "flat": ('[{"geometry": {"type": "MultiPolygon", "coordinates": [1]}}]', "holds a polygon without rings"),
    "text": ('[{"geometry": {"type": "Polygon", "coordinates": [["a", "b", "c"]]}}]', "number 1 .* has no coordinates"),
    "nan": (
        '[{"geometry": {"type": "Polygon", "coordinates": [[[NaN, 0], [1, 1], [2, 0]]]}}]',
        "has coordinates that are no numbers",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_geojson_is_told_in_one_sentence(name, tmp_path):
    text, told = WRONG[name]
    path = tmp_path / "a.geojson"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"^{path}: .*{told}") as caught:
        read_geojson(path)
    assert "\n" not in str(caught.value)


def test_broken_archives_and_too_much_text(tmp_path, monkeypatch):
    whole = gzip.compress(json.dumps(collection(feature("Tumor", square(0, 0, 3)))).encode())
    (tmp_path / "cut.geojson.gz").write_bytes(whole[:-20])
    (tmp_path / "cut.zip").write_bytes(b"PK\x03\x04junk")
    (tmp_path / "bytes.geojson").write_bytes(b'{"a": "\xff\xfe"}')
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    for name, told in [
        ("cut.geojson.gz", "cannot be unpacked"),
        ("cut.zip", "cannot be unpacked"),
        ("bytes.geojson", "is no GeoJSON"),
        ("other.zip", "holds no .geojson"),
        ("none.geojson", "no such file"),
    ]:
        with pytest.raises(InputError, match=told):
            read_geojson(tmp_path / name)
    (tmp_path / "a.geojson.gz").write_bytes(whole)
    (tmp_path / "a.geojson").write_bytes(gzip.decompress(whole))
    monkeypatch.setattr(geojson, "MOST_BYTES", 50)
    for name in ("a.geojson.gz", "a.geojson"):
        with pytest.raises(InputError, match=r"holds more than .* GB of text: export fewer"):
            read_geojson(tmp_path / name)


def test_memory_holds_the_text_and_one_feature():
    """Decoded whole, 5 MB of coordinates take 36 MB."""
    outline = [(i * 0.25, (i % 7) * 1.5) for i in range(1000)]
    text = json.dumps(collection(*[feature("Tumor", outline)] * 300))
    assert len(text) > 4e6
    tracemalloc.start()
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    count = sum(1 for _ in features(text))
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert count == 300
    assert peak < 1e6
