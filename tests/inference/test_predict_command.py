"""From a slide that is annotated in QuPath to a slide that is predicted, and back: the whole story by its commands."""

import csv
import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mpamatch.benchmarks.make_slide import make_slide
from mpamatch.cli import main
from mpamatch.data.prepared import load_prepared
from mpamatch.images import read_mask
from mpamatch.slides.mask import MaskFile
from tests.slides.qupath import problems
from tests.tiny import FIELDS

PATCH = 128


def mpamatch(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """make_slide → prepare slides → train → predict, exactly and simplified; the folder."""
    folder = tmp_path_factory.mktemp("story")
    make_slide(folder / "slides" / "a.tif", 1600, truth=folder / "qupath" / "a.geojson")
    words = ["--annotations", folder / "qupath", "--patch", PATCH, "--unlabelled", 20, "--unpainted", "background"]
    assert mpamatch("prepare", "slides", folder / "slides", folder / "data", *words) == 0
    fields = {
        **FIELDS,
        "data.root": folder / "data",
        "engine.steps": 20,
        "method.name": "supervised",
        "run": folder / "run",
    }
    del fields["data.unlabelled_batch"]
    flags = [word for name, value in fields.items() for word in (f"--{name}", value)]
    assert mpamatch("train", "--recipe", "folder", *flags) == 0
    for name, simplify in (("exact", 0), ("out", 1)):
        words = [folder / "run", folder / "slides" / "a.tif", "--out", folder / name, "--device", "cpu"]
        assert mpamatch("predict", *words, "--simplify", simplify, "--tissue", "all") == 0
    return folder


def test_the_mask_has_the_pixels_of_the_training_set(story: Path) -> None:
    with MaskFile(story / "out" / "a" / "mask.ome.tif") as label:
        assert label.shape == (1600, 1600)
        assert label.mpp == pytest.approx(load_prepared(story / "data").microns_per_pixel)
        assert label.info.classes == load_prepared(story / "data").class_names
        assert len(np.unique(label.array())) > 1


def test_qupath_loads_the_regions_with_the_classes_it_gave(story: Path) -> None:
    for name in ("out", "exact"):
        assert problems(story / name / "a" / "regions.geojson.gz") == []
    found = json.loads(gzip.decompress((story / "out" / "a" / "regions.geojson.gz").read_bytes()))["features"]
    given = json.loads((story / "qupath" / "a.geojson").read_text())
    features = given["features"] if isinstance(given, dict) else given
    colours = {
        one["properties"]["classification"]["name"]: one["properties"]["classification"]["color"] for one in features
    }
    for one in found:
        classification = one["properties"]["classification"]
        assert classification["color"] == colours[classification["name"]]


@pytest.mark.parametrize(("name", "most"), [("exact", 0.0), ("out", 0.01)])
def test_what_was_predicted_is_prepared_again(story: Path, tmp_path: Path, name: str, most: float) -> None:
    """Bitwise if every corner was kept, else within the tolerance."""
    marked = tmp_path / "marked"
    marked.mkdir()
    (marked / "a.geojson.gz").write_bytes((story / name / "a" / "regions.geojson.gz").read_bytes())
    words = [
        "--annotations",
        marked,
        "--patch",
        PATCH,
        "--unlabelled",
        0,
        "--unpainted",
        "background",
        "--tissue",
        "all",
    ]
    assert mpamatch("prepare", "slides", story / "slides", tmp_path / "data", *words) == 0
    again = load_prepared(tmp_path / "data")
    with MaskFile(story / name / "a" / "mask.ome.tif") as label:
        whole, classes = label.array(), label.info.classes
    table = np.array([again.class_names.index(one) if one in again.class_names else 0 for one in classes])
    differing = pixels = 0
    masks = sorted((tmp_path / "data" / "masks").iterdir())
    assert len(masks) > 50
    for mask in masks:
        x, y = (int(part[1:]) for part in mask.stem.split("-")[-2:])
        stored = read_mask(mask)
        expected = table[whole[y : y + PATCH, x : x + PATCH]]
        differing += int((stored != expected).sum())
        pixels += stored.size
    assert differing <= most * pixels
    assert (differing == 0) == (most == 0)


def test_areas_of_regions_and_table_agree(story: Path) -> None:
    with (story / "out" / "areas.csv").open(encoding="utf-8") as stream:
        (row,) = csv.DictReader(stream)
    content = json.loads(gzip.decompress((story / "out" / "a" / "regions.geojson.gz").read_bytes()))
    for name in load_prepared(story / "data").class_names[1:]:
        of_class = [
            one["properties"]["measurements"]["Area mm^2"]
            for one in content["features"]
            if one["properties"]["classification"]["name"] == name
        ]
        assert sum(of_class) == pytest.approx(float(row[f"{name} mm2"]), rel=1e-3)
    assert float(row["tissue mm2"]) == pytest.approx(1600**2 * 0.25e-6, rel=1e-3)


def test_a_bad_slide_is_named_the_rest_done_and_the_code_is_not_0(
    story: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.svs"
    bad.write_bytes(b"no slide")
    words = ["predict", story / "run", bad, story / "slides" / "a.tif", "--device", "cpu"]
    assert mpamatch(*words, "--out", tmp_path / "out") == 1
    printed = capsys.readouterr().out
    assert f"not predicted: {bad}" in printed
    assert (tmp_path / "out" / "a" / "done.json").is_file()
    assert mpamatch(*words, "--out", tmp_path / "stopped", "--on-error", "stop") == 2
    assert str(bad) in capsys.readouterr().err
    assert mpamatch(*words, "--out", tmp_path / "out", "--overlap", "0.5") == 2
    assert "other overlap" in capsys.readouterr().err


def test_images_and_slides_in_one_command(story: Path, tmp_path: Path) -> None:
    image = sorted((story / "data" / "images").iterdir())[0]
    words = ["predict", story / "run", image, story / "slides" / "a.tif", "--out", tmp_path / "out", "--device", "cpu"]
    assert mpamatch(*words) == 0
    with (tmp_path / "out" / "areas.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["name"] for row in rows] == [image.stem, "a"]
    assert [bool(row["tissue mm2"]) for row in rows] == [False, True]
    assert mpamatch(*words) == 0  # all done: nothing to go on with


def test_without_the_extra_images_are_predicted_and_slides_say_what_to_install(story: Path, tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "for name in ('shapely', 'tifffile', 'openslide', 'imagecodecs', 'defusedxml'): sys.modules[name] = None\n"
        "from mpamatch.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    image = sorted((story / "data" / "images").iterdir())[0]
    for given, code in ((image, 0), (story / "slides" / "a.tif", 2)):
        words = ["predict", story / "run", given, "--out", tmp_path / f"out{code}", "--device", "cpu"]
        done = subprocess.run([sys.executable, "-c", script, *map(str, words)], capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert ("pip install 'mpamatch[slides]'" in done.stderr) == (code == 2)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--tissue", "all"], "is for whole slides"),
        (["--shard", "1/2"], "shares whole slides"),
    ],
)
def test_options_of_slides_are_refused_for_images(
    story: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    image = sorted((story / "data" / "images").iterdir())[0]
    assert mpamatch("predict", story / "run", image, "--out", tmp_path / "out", *words) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--shard", "3/2"], "--shard 3/2"),
        (["--simplify", "-1"], "simplify"),
        (["--overlap", "2"], "overlap 2"),
        (["--tissue", "gone.geojson"], "gone.geojson"),
        (["--model-mpp", "0"], "--model-mpp 0"),
    ],
)
def test_options_of_slides_refused(
    story: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    slide = story / "slides" / "a.tif"
    assert mpamatch("predict", story / "run", slide, "--out", tmp_path / "out", "--device", "cpu", *words) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
