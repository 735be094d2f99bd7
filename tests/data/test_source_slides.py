"""Slides with regions of QuPath become a prepared set: labels to the bit, what is not known, what is not annotated."""

import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import shapely
from PIL import Image

from mpamatch.cli import main
from mpamatch.data.checks import check
from mpamatch.data.prepared import Prepared, load_prepared
from mpamatch.data.sources import slides
from mpamatch.data.synthetic import synthesize
from mpamatch.errors import InputError
from mpamatch.images import read_image
from mpamatch.slides.reader import Box, open_slide
from tests.slides.annotations.qupath import closed, feature, square, write
from tests.slides.files import corrupt_tile, write_slide

CLASSES = {"background", "gland"}
SIDE, PATCH = 512, 128  # of a slide and of its patches, in pixels
MPP = 2.0  # of both: the strip of glass is large enough to count as such
SIZES = ["--mpp", str(MPP), "--patch", str(PATCH)]
KNOWN = 320  # the Region* is a square of this side in the slide's corner
GLASS = (244, 243, 245)


@functools.cache
def made(number: int) -> tuple[np.ndarray, np.ndarray]:
    """A slide and its label all over, glass on the right."""
    image, label = synthesize(12 + 4 * number, 0, SIDE)
    image[:, -PATCH:], label[:, -PATCH:] = GLASS, 0
    return image, label


def truth(number: int) -> np.ndarray:  # (SIDE, SIDE) u8
    return made(number)[1]


@functools.cache
def glands(number: int) -> dict:
    """The glands of a slide as one region, outlined along the edges of their pixels."""
    edges = np.diff(np.pad(truth(number), ((0, 0), (1, 1))).astype(np.int8), axis=1)
    (rows, starts), (_, ends) = np.nonzero(edges == 1), np.nonzero(edges == -1)  # of runs along rows
    outlines = shapely.union_all(shapely.box(starts, rows, ends, rows + 1))
    one = feature("gland", square(0, 0, 1), color=(0, 200, 83))
    one["geometry"] = json.loads(shapely.to_geojson(outlines))
    return one


def slide_folder(root: Path, count: int = 2, compression: str | None = None) -> tuple[Path, Path]:
    """Slides s0, s1, … of tissue, with a Region* in their upper left corner and the glands of the whole slide."""
    for number in range(count):
        write_slide(root / "slides" / f"s{number}.tif", made(number)[0], mpp=MPP, compression=compression)
        write(root / "marks" / f"s{number}.geojson", feature("Region*", square(0, 0, KNOWN)), glands(number))
    return root / "slides", root / "marks"


def prepare_words(root: Path, data: Path) -> list[str]:
    source, marks = slide_folder(root, 5)
    return ["slides", str(source), str(data), "--annotations", str(marks), *SIZES]


def prepared(root: Path, source: Path, marks: Path, *words: str, code: int = 0) -> Prepared:
    given = ["--annotations", str(marks), *SIZES, *words]
    assert main(["prepare", "slides", str(source), str(root / "data"), *given]) == code
    return load_prepared(root / "data")


def mask(data: Prepared, stem: str) -> np.ndarray:
    return np.asarray(Image.open(data.root / "masks" / f"{stem}.png"))


def test_patches_are_the_slide_and_labels_the_regions_to_the_bit(tmp_path, capsys):
    source, marks = slide_folder(tmp_path)
    data = prepared(tmp_path, source, marks)
    assert data.microns_per_pixel == MPP
    assert data.class_names == ("background", "gland")
    assert data.colours[1] == (0, 200, 83)
    assert data.partly_labelled
    for number in range(2):
        known = np.full((SIDE, SIDE), 255, dtype=np.uint8)
        known[:KNOWN, :KNOWN] = truth(number)[:KNOWN, :KNOWN]
        seen = np.zeros((SIDE, SIDE), dtype=int)
        names = [name for name in data.groups if data.groups[name] == f"s{number}"]
        with open_slide(source / f"s{number}.tif") as slide:
            for name in names:
                x, y = (int(word[1:]) for word in Path(name).stem.split("-")[1:])
                place = np.s_[y : y + PATCH, x : x + PATCH]
                np.testing.assert_array_equal(read_image(data.image_path(name)), slide.read(x, y, PATCH, PATCH))
                seen[place] += 1
                if data.mask_path(name):
                    np.testing.assert_array_equal(mask(data, Path(name).stem), known[place])
        assert seen.max() == 1
        assert (seen[:KNOWN, :KNOWN] == 1).all(), "all that is annotated is in a labelled patch"
        assert seen[384:, :384].all(), "the tissue outside is unlabelled"
        assert not seen[384:, 384:].any(), "glass is not taken"
        assert sum(data.mask_path(name) is not None for name in names) == 9
    said = capsys.readouterr().out
    areas = sum(int((truth(number)[:KNOWN, :KNOWN] == 1).sum()) for number in range(2)) * (MPP / 1000) ** 2
    row = next(line for line in said.splitlines() if "│ gland" in line)
    assert [cell.strip() for cell in row.split("│")[1:4]] == ["gland", "2", f"{areas:.4g}"]
    assert "6 of 6 patches of tissue without annotation are unlabelled ones" in said
    assert "are painted outside of every Region* and not learned from" in said
    assert check(data.root) == [] or all("test" in one.problem for one in check(data.root))


def test_without_a_region_unpainted_is_unknown_or_background(tmp_path):
    source, marks = slide_folder(tmp_path)
    for number in range(2):
        write(marks / f"s{number}.geojson", glands(number))
    found = slides.raw_set(source, str(marks), mpp=MPP, patch=PATCH, unlabelled=0)
    for item in found.items:
        assert item.label is not None
        assert set(np.unique(item.label)) <= {1, 255}
    found = slides.raw_set(source, str(marks), mpp=MPP, patch=PATCH, unpainted="background")
    items = list(found.items)
    assert all(item.label is not None for item in items), "then nothing is left over to be unlabelled"
    assert len(items) == 2 * 12, "glass without a region is not taken"
    for item in items:
        _, x, y = (int(word.lstrip("sxy")) for word in item.stem.split("-"))
        expected = truth(int(item.group[1:]))[y : y + PATCH, x : x + PATCH]
        np.testing.assert_array_equal(item.label, expected)


def test_another_size_of_pixel_and_stride(tmp_path):
    source, marks = slide_folder(tmp_path)
    found = slides.raw_set(source, str(marks), mpp=4.0, patch=64, stride=32, unlabelled=0)
    assert found.microns_per_pixel == 4.0
    items = {item.stem: item for item in found.items}
    assert {"s0-x000000-y000000", "s0-x000064-y000064", "s1-x000256-y000192"} <= set(items)
    one = items["s0-x000064-y000128"]
    with open_slide(source / "s0.tif") as slide:
        np.testing.assert_array_equal(one.image, slide.at(4.0).read(32, 64, 64, 64))
    np.testing.assert_array_equal(one.label, truth(0)[129:257:2, 65:193:2])  # the pixel right below the middle


def test_the_unlabelled_are_a_draw_that_repeats(tmp_path):
    source, marks = slide_folder(tmp_path, 3)
    (marks / "s2.geojson").unlink()

    def drawn(**options) -> list[str]:
        found = slides.raw_set(source, str(marks), mpp=MPP, patch=PATCH, **options)
        return [item.stem for item in found.items if item.label is None]

    everything = drawn()
    assert sum(stem.startswith("s2") for stem in everything) == 12
    assert len(everything) == 2 * 3 + 12
    some = drawn(unlabelled=8)
    assert len(some) == 8
    assert some == drawn(unlabelled=8)
    assert set(some) < set(drawn(unlabelled=10)), "a smaller draw lies within a larger one"
    assert set(some) != set(drawn(unlabelled=8, seed=1))
    assert drawn(unlabelled=0) == []


def test_tissue_is_found_taken_everywhere_or_from_a_file(tmp_path):
    source, marks = slide_folder(tmp_path, 1)

    def places(tissue: str) -> set[str]:
        found = slides.raw_set(source, str(marks), mpp=MPP, patch=PATCH, tissue=tissue)
        return {item.stem for item in found.items if item.label is None}

    left = {f"s0-x{x:06d}-y000384" for x in (0, 128, 256)}
    assert places("auto") == left
    assert places("all") == left | {f"s0-x000384-y{y:06d}" for y in (0, 128, 256, 384)}
    edited = write(tmp_path / "tissue" / "s0.geojson", feature(None, square(384, 256, 128)))
    for given in (edited, edited.parent):
        assert places(str(given)) == {"s0-x000384-y000256"}
    write_slide(source / "s1.tif", made(1)[0], mpp=MPP)
    with pytest.raises(InputError, match="is one file for 2 slides: name a folder with one for each"):
        places(str(edited))
    with pytest.raises(InputError, match=r"none has the name of a slide, such as s1\.geojson"):
        places(str(edited.parent))
    (source / "s1.tif").unlink()
    with pytest.raises(InputError, match="--tissue nowhere: must be auto, all, or a GeoJSON"):
        places("nowhere")


def test_one_annotated_slide_is_shared_out_by_place(tmp_path, capsys):
    source, marks = slide_folder(tmp_path, 2)
    (marks / "s1.geojson").unlink()
    data = prepared(tmp_path, source, marks)
    assert "one slide alone is annotated, so its patches are shared out by place" in data.note
    assert {part: len(data.labelled(part)) for part in data.parts} == {"train": 3, "validation": 3, "test": 3}
    assert all(problem.file == "parts.json" and not problem.blocking for problem in check(data.root))


def test_strips_that_overlap_share_no_pixel(tmp_path):
    source, marks = slide_folder(tmp_path, 1)
    write(marks / "s0.geojson", feature("Region*", square(0, 0, SIDE)), glands(0))
    found = slides.raw_set(source, str(marks), mpp=MPP, patch=64, stride=32, unlabelled=0)
    columns: dict[str | None, set[int]] = {}
    for item in found.items:
        columns.setdefault(item.part, set()).add(int(item.stem.split("-x")[1][:6]))
    assert max(columns["train"]) + 64 <= min(columns["validation"])
    assert max(columns["validation"]) + 64 <= min(columns["test"])


def test_areas_count_no_pixel_twice_where_patches_overlap(tmp_path):
    source, marks = slide_folder(tmp_path, 2)
    found = slides.raw_set(source, str(marks), mpp=MPP, patch=96, stride=40, unlabelled=0)
    list(found.items)
    areas = [0.0, 0.0]
    for number in range(2):
        counts = np.bincount(truth(number)[:KNOWN, :KNOWN].ravel(), minlength=2)
        areas = [area + count * (MPP / 1000) ** 2 for area, count in zip(areas, counts.tolist(), strict=True)]
    assert [row[2] for row in found.findings.rows] == [f"{area:.4g}" for area in areas]


def test_regions_begin_where_qupath_crops_to(tmp_path, monkeypatch):
    source, marks = slide_folder(tmp_path, 2)
    for number in range(2):
        write(marks / f"s{number}.geojson", feature("gland", square(0, 0, 64)))
    monkeypatch.setattr("mpamatch.slides.sources.openslide._bounds", lambda *_: Box(130, 260, 300, 200))
    options = {"mpp": MPP, "patch": PATCH, "unlabelled": 0}
    cropped = slides.raw_set(source, str(marks), **options)
    assert any("coordinates begin at 130, 260, where QuPath crops" in remark for remark in cropped.findings.remarks)
    (item, _) = cropped.items
    assert item.stem == "s0-x000128-y000256"
    inside = np.zeros((PATCH, PATCH), dtype=bool)
    inside[4:68, 2:66] = True
    np.testing.assert_array_equal(item.label, np.where(inside, 1, 255))
    (item, _) = slides.raw_set(source, str(marks), origin="slide", **options).items
    assert item.stem == "s0-x000000-y000000"


def test_patients_are_read_from_names(tmp_path):
    source, marks = slide_folder(tmp_path, 2)
    found = slides.raw_set(source, str(marks), mpp=MPP, patch=PATCH, group_regex=r"^(s)\d")
    assert {item.group for item in found.items} == {"s"}
    assert not any("own group" in remark for remark in found.findings.remarks)
    for regex, told in [("(", "is no regular expression"), ("z", "finds no group in 's0'")]:
        with pytest.raises(InputError, match=told):
            slides.raw_set(source, str(marks), mpp=MPP, patch=PATCH, group_regex=regex)


def test_what_was_not_understood_is_listed(tmp_path, capsys):
    source, marks = slide_folder(tmp_path, 2)
    more = [feature("stroma", square(0, 0, 40)), feature("[b]", square(0, 0, 9)), feature(None, square(0, 0, 9))]
    bow = feature("gland", [(0, 0), (40, 40), (40, 0), (0, 40)])
    write(marks / "s0.geojson", feature("Region*", square(0, 0, KNOWN)), glands(0), *more, more[1], bow)
    write(marks / "other.geojson", glands(1))
    prepared(tmp_path, source, marks, "--classes", "stroma,gland")
    said = " ".join(capsys.readouterr().out.split())
    assert "not among --classes, so not learned from where nothing else lies over them: [b] (2)." in said
    assert "1 regions without a class are left out." in said
    assert "1 annotation files have the name of no slide: other.geojson." in said
    assert "s0.tif: 1 outline crosses itself and was mended: number 7 (gland)." in said
    assert "stroma and gland overlap on" in said
    assert "which count as gland, the later of them (--classes sets the order)." in said
    assert "each slide is its own group" in said


def test_patches_that_are_almost_all_unknown_are_left_out(tmp_path):
    source, marks = slide_folder(tmp_path, 2)
    for number in range(2):
        spot = feature("gland", square(20, 20, 17))  # 1.8 % of a patch
        write(marks / f"s{number}.geojson", spot, feature("gland", square(200, 20, 19)))
    found = slides.raw_set(source, str(marks), mpp=MPP, patch=PATCH, unlabelled=0)
    assert [item.stem for item in found.items] == ["s0-x000128-y000000", "s1-x000128-y000000"]
    assert any(remark.startswith("2 patches at the rim") for remark in found.findings.remarks)


def test_a_bad_slide_stops_or_is_named_and_skipped(tmp_path, capsys):
    source, marks = slide_folder(tmp_path, 3)
    (source / "s1.tif").write_bytes((source / "s1.tif").read_bytes()[:5000])
    words = ["prepare", "slides", str(source), str(tmp_path / "data"), "--annotations", str(marks)]
    assert main([*words, *SIZES]) == 2
    assert "s1.tif: is broken or cut short" in (told := capsys.readouterr().err)
    assert "--on-error skip goes on without it" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["marks", "slides"], "nothing is half-written"
    data = prepared(tmp_path, source, marks, "--on-error", "skip", code=1)
    assert set(data.groups.values()) == {"s0", "s2"}
    said = capsys.readouterr().out
    assert f"left out: {source / 's1.tif'}: is broken or cut short" in said
    assert "next: mpamatch check" in said


def test_a_bad_annotation_file_is_skipped_with_its_slide(tmp_path, capsys):
    source, marks = slide_folder(tmp_path, 3)
    (marks / "s1.geojson").write_text("{")
    data = prepared(tmp_path, source, marks, "--on-error", "skip", code=1)
    assert set(data.groups.values()) == {"s0", "s2"}
    assert "s1.geojson: is no GeoJSON" in capsys.readouterr().out


def test_patches_on_a_corrupt_tile_are_not_taken(tmp_path, capsys):
    source, marks = slide_folder(tmp_path, 2, compression="jpeg")
    whole = {item.stem for item in slides.raw_set(source, str(marks), mpp=MPP, patch=PATCH).items}
    corrupt_tile(source / "s0.tif", 5)  # of four in a row: x 128, y 128
    data = prepared(tmp_path, source, marks, "--on-error", "skip", code=1)
    assert {Path(name).stem for name in data.groups} == whole - {"s0-x000128-y000128"}
    assert "s0.tif: 1 tiles cannot be decoded, and no patch is taken that shows one" in capsys.readouterr().out
    with pytest.raises(InputError, match="1 tiles cannot be decoded"):
        list(slides.raw_set(source, str(marks), mpp=MPP, patch=PATCH).items)


def test_a_slide_that_does_not_know_its_pixels(tmp_path, capsys):
    source, marks = slide_folder(tmp_path, 2)
    write_slide(source / "s1.tif", made(1)[0], mpp=None, compression=None)
    with pytest.raises(InputError, match=r"s1\.tif: does not say how large its pixels are.* --slide-mpp"):
        slides.raw_set(source, str(marks), mpp=MPP, patch=PATCH)
    found = slides.raw_set(source, str(marks), mpp=MPP, patch=PATCH, slide_mpp=MPP)
    assert {item.group for item in found.items} == {"s0", "s1"}
    write_slide(source / "s1.tif", made(1)[0], mpp=3.0, compression=None)
    found = slides.raw_set(source, str(marks), mpp=MPP, patch=PATCH)
    assert any("s1.tif: has pixels of 3 µm, which are enlarged to the 2" in one for one in found.findings.remarks)


def test_slides_are_looked_for_at_any_depth(tmp_path):
    source, marks = slide_folder(tmp_path, 2)
    (source / "in").mkdir()
    (source / "s1.tif").rename(source / "in" / "s1.tif")
    assert {item.group for item in slides.raw_set(source, str(marks), mpp=MPP, patch=PATCH).items} == {"s0", "s1"}
    assert {item.group for item in slides.raw_set(source / "s0.tif", str(marks), mpp=MPP, patch=PATCH).items} == {"s0"}
    (source / "in" / "s0.tif").write_bytes((source / "s0.tif").read_bytes())
    with pytest.raises(InputError, match=r"s0\.tif: has the same name as .*in.s0\.tif"):
        slides.raw_set(source, str(marks), mpp=MPP, patch=PATCH)


def test_a_multipolygon_is_one_region(tmp_path):
    source, marks = slide_folder(tmp_path, 2)
    several = feature("gland", square(0, 0, 1))
    several["geometry"] = {"type": "MultiPolygon", "coordinates": [[closed(square(x, 0, 64))] for x in (0, 64)]}
    write(marks / "s0.geojson", several)
    found = slides.raw_set(source, str(marks), mpp=MPP, patch=PATCH, unlabelled=0)
    item = next(item for item in found.items if item.stem == "s0-x000000-y000000")
    assert item.label is not None
    assert (item.label[:64] == 1).all()
    assert (item.label[64:] == 255).all()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"annotations": None}, "name the folder of the regions with --annotations"),
        ({"mpp": 0.0}, "--mpp 0: must be from 0.05 to 20"),
        ({"mpp": float("nan")}, "--mpp nan: must be from"),
        ({"patch": 8}, "--patch 8: must be from 32 to 4096"),
        ({"stride": 0}, "--stride 0: must be from 1"),
        ({"unlabelled": -1}, "--unlabelled -1: must be from 0"),
        ({"seed": -1}, "--seed -1: must be from 0"),
        ({"unpainted": "white"}, "--unpainted white: must be ignore or background"),
        ({"origin": "here"}, "--origin here: must be qupath or slide"),
        ({"on_error": "ask"}, "--on-error ask: must be stop or skip"),
        ({"classes": "glands"}, "--classes glands: no region has the class 'glands'; there are gland"),
        ({"slide_mpp": 50.0}, "50.0 µm per pixel of .*s0.tif: must be from 0.05 to 10"),
    ],
)
def test_options_out_of_range_are_refused(options, told, tmp_path):
    source, marks = slide_folder(tmp_path, 1)
    with pytest.raises(InputError, match=told):
        slides.raw_set(source, **({"annotations": str(marks)} | options))


def test_a_folder_without_slides_is_told(tmp_path):
    _, marks = slide_folder(tmp_path, 1)
    (tmp_path / "photos").mkdir()
    Image.fromarray(synthesize(0, 0, 64)[0]).save(tmp_path / "photos" / "a.png")
    with pytest.raises(InputError, match=r"holds no slide .*: for images and masks there is prepare folder"):
        slides.raw_set(tmp_path / "photos", str(marks))
    with pytest.raises(InputError, match="none: no such file or folder"):
        slides.raw_set(tmp_path / "none", str(marks))


def test_what_is_said_before_minutes_of_reading(tmp_path, capsys, monkeypatch):
    source, marks = slide_folder(tmp_path, 1)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").touch()
    monkeypatch.setattr(slides, "raw_set", lambda *_, **__: pytest.fail("the slides were opened"))
    words = ["prepare", "slides", str(source), str(tmp_path / "data"), "--annotations", str(marks)]
    assert main(words) == 2
    assert "is there already" in capsys.readouterr().err
    words[3] = str(tmp_path / "other")
    assert main([*words, "--microns-per-pixel", "0.5"]) == 2
    assert "--microns-per-pixel: prepare slides knows the size of a pixel itself" in capsys.readouterr().err


def test_without_the_extra_it_says_what_to_install():
    without = (
        "import sys\n"
        "sys.modules['shapely'] = None\n"
        "from mpamatch.cli import main\n"
        "sys.exit(main(['prepare', 'slides', 'slides', 'data', '--annotations', 'qupath']))\n"
    )  # in a process of its own: modules that are imported anew would be others than those that tests hold
    done = subprocess.run([sys.executable, "-c", without], capture_output=True, text=True)
    assert done.returncode == 2
    assert re.search(r"prepare slides: needs shapely, .*: pip install 'mpamatch\[slides\]'", done.stderr)
