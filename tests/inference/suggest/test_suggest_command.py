"""`mpamatch suggest` on prepared sets, folders and slides, and the way back into a set by the command that it names."""

import csv
import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mpamatch.cli import main
from mpamatch.data.prepared import Prepared, load_prepared, parts_of_groups, training_lists
from mpamatch.data.synthetic import synthesize
from mpamatch.images import colour_label, read_image, read_mask
from mpamatch.inference.checkpoint import best_checkpoint, load_segmenter, save_segmenter
from mpamatch.inference.suggest.uncertainty import Look, look_at_each
from mpamatch.slides.reader import open_slide
from tests.slides.files import write_slide
from tests.slides.qupath import problems
from tests.tiny import SPLIT, make_set, tiny_flags

CPU = ["--device", "cpu"]


def ended(*words: object) -> int:
    return main([str(word) for word in words])


def next_words(printed: str) -> list[str]:
    """The command that the last line names, without its first word."""
    line = printed.strip().splitlines()[-1]
    assert line.startswith("next: ")
    command = line[line.index("mpamatch ") :].split(", or ")[0]
    return shlex.split(command)[1:]


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "suggestions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set and a run on it, which calls about half of the pixels gland: seconds of training call nothing so."""
    folder = tmp_path_factory.mktemp("ready")
    make_set(folder / "set")
    flags = tiny_flags(folder / "set", "supervised", {"engine.steps": 6})
    assert ended("train", "--recipe", "demo", "--run", folder / "run", *flags) == 0
    segmenter = load_segmenter(folder / "run", "cpu")
    p = segmenter.probabilities(synthesize(20, 0, 160)[0])
    with torch.no_grad():
        last = [module for module in segmenter.model.modules() if isinstance(module, nn.Conv2d)][-1]
        assert last.bias is not None
        last.bias[1] -= (p[1].log() - p[0].log()).median()
    save_segmenter(best_checkpoint(folder / "run"), segmenter)
    return folder


@pytest.fixture
def unlabelled(ready: Path, tmp_path: Path) -> Prepared:
    """The set, in which no other training images than those of the split have a mask."""
    shutil.copytree(ready / "set", tmp_path / "set")
    prepared = load_prepared(tmp_path / "set")
    for name in training_lists(prepared, SPLIT)[1]:
        mask = prepared.mask_path(name)
        assert mask is not None
        mask.unlink()
    return prepared


def looks(run: Path, images: list[np.ndarray]) -> list[Look]:
    return list(look_at_each(load_segmenter(run, "cpu"), images))


# A prepared set


def test_corrected_masks_come_back_as_labelled_images(ready, unlabelled, tmp_path, capsys) -> None:
    out = tmp_path / "next"
    assert ended("suggest", ready / "run", unlabelled.root, "--count", 3, "--out", out, *CPU) == 0
    words = next_words(capsys.readouterr().out)
    found = rows(out)
    labelled, others = training_lists(unlabelled, None)
    by_stem = {Path(name).stem: name for name in others}
    chosen = [by_stem[row["name"]] for row in found]
    assert [row["rank"] for row in found] == ["1", "2", "3"]
    assert [row["patient"] for row in found] == [unlabelled.groups[name] for name in chosen]
    assert {path.name for path in out.iterdir()} == {"suggestions.csv", "sheet.png", "labelled.txt", "images", "masks"}
    assert (out / "labelled.txt").read_text().split() == [*labelled, *(name for name in others if name in chosen)]

    first = out / "masks" / f"{found[0]['name']}.png"
    predicted = read_mask(first)
    np.testing.assert_array_equal(
        predicted, looks(ready / "run", [read_image(unlabelled.image_path(chosen[0]))])[0].label
    )
    assert (out / "images" / chosen[0]).read_bytes() == unlabelled.image_path(chosen[0]).read_bytes()
    corrected = predicted.copy()
    corrected[:10, :10], corrected[20, 20] = 1, 255
    image = Image.open(first)
    edited = Image.fromarray(corrected)
    edited.putpalette(image.getpalette())
    edited.save(first)

    assert ended(*words) == 0
    again = load_prepared(unlabelled.root)
    split = words[words.index("--name") + 1]
    assert set(training_lists(again, split)[0]) == {*labelled, *chosen}
    np.testing.assert_array_equal(read_mask(again.mask_path(chosen[0])), corrected)
    with Image.open(again.mask_path(chosen[0])) as mask:
        assert mask.mode == "L"
    assert ended(*words) == 0, "the same command again changes nothing"
    capsys.readouterr()
    assert (
        ended("suggest", ready / "run", again.root, "--count", 3, "--out", tmp_path / "b", "--split", split, *CPU) == 0
    )
    assert not {row["name"] for row in rows(tmp_path / "b")} & {row["name"] for row in found}


def test_a_set_that_has_the_masks_needs_the_list_alone(ready, tmp_path, capsys) -> None:
    shutil.copytree(ready / "set", tmp_path / "set")
    out = tmp_path / "next"
    assert ended("suggest", ready / "run", tmp_path / "set", "--count", 2, "--out", out, *CPU) == 0
    words = next_words(capsys.readouterr().out)
    assert "--masks" not in words
    assert {path.name for path in out.iterdir()} == {"suggestions.csv", "sheet.png", "labelled.txt"}
    assert ended(*words) == 0
    assert len(training_lists(load_prepared(tmp_path / "set"), f"{SPLIT}-plus-2")[0]) == 6


def test_the_scores_are_those_of_the_images_and_the_first_is_the_highest(ready, unlabelled, tmp_path) -> None:
    out = tmp_path / "next"
    words = ["suggest", ready / "run", unlabelled.root, "--out", out, "--no-spread", "--count", 5, *CPU]
    assert ended(*words) == 0
    others = training_lists(unlabelled, None)[1]
    seen = looks(ready / "run", [read_image(unlabelled.image_path(name)) for name in others])
    score = {Path(name).stem: look.score for name, look in zip(others, seen, strict=True)}
    best = sorted(score, key=lambda name: -score[name])[:5]
    assert [row["name"] for row in rows(out)] == best
    assert [float(row["score"]) for row in rows(out)] == pytest.approx([score[name] for name in best], abs=1e-6)
    assert all(0 <= float(row["distance"]) <= 2 for row in rows(out))


@pytest.mark.parametrize("by", ["entropy", "disagreement"])
def test_the_same_words_give_the_same_bytes(ready, unlabelled, tmp_path, by) -> None:
    words = ["suggest", ready / "run", unlabelled.root, "--count", 4, "--by", by, *CPU]
    for name in ("a", "b"):
        assert ended(*words, "--out", tmp_path / name) == 0
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 3 + 2 * 4
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_no_more_of_a_patient_than_asked_for_and_a_note_says_so(ready, unlabelled, tmp_path, capsys) -> None:
    out = tmp_path / "next"
    words = ["suggest", ready / "run", unlabelled.root, "--out", out, "--per-patient", 1, *CPU]
    assert ended(*words) == 0
    patients = [row["patient"] for row in rows(out)]
    assert len(patients) == len(set(patients)) > 1
    assert f"{len(patients)} instead of 20, as --per-patient 1 allows no more" in capsys.readouterr().out


def test_more_than_there_are_is_all_of_them(ready, unlabelled, tmp_path, capsys) -> None:
    out = tmp_path / "next"
    assert ended("suggest", ready / "run", unlabelled.root, "--out", out, "--count", 500, *CPU) == 0
    others = training_lists(unlabelled, None)[1]
    assert {row["name"] for row in rows(out)} == {Path(name).stem for name in others}
    assert f"{len(others)} instead of 500, as there are no more" in capsys.readouterr().out


def test_the_sheet_is_a_picture_with_a_row_for_two(ready, unlabelled, tmp_path) -> None:
    for count in (1, 4):
        out = tmp_path / str(count)
        assert ended("suggest", ready / "run", unlabelled.root, "--out", out, "--count", count, *CPU) == 0
    heights = [read_image(tmp_path / name / "sheet.png").shape[0] for name in ("1", "4")]
    assert heights[1] > 1.8 * heights[0]
    masks = sorted((tmp_path / "4" / "masks").iterdir())
    painted = np.array(Image.open(masks[0]).convert("RGB"))
    np.testing.assert_array_equal(painted, colour_label(read_mask(masks[0]), unlabelled.colours))


# A folder


def test_corrected_masks_of_a_folder_become_a_set(ready, tmp_path, capsys) -> None:
    source = tmp_path / "plain"
    source.mkdir()
    for seed in range(6):
        Image.fromarray(synthesize(seed, 0, 48)[0]).save(source / f"p{seed % 3}_{seed}.{'png' if seed % 2 else 'bmp'}")
    out = tmp_path / "next"
    words = ["suggest", ready / "run", source, "--out", out, "--count", 4, "--group-regex", "p[0-9]", *CPU]
    assert ended(*words) == 0
    command = next_words(capsys.readouterr().out)
    found = rows(out)
    assert [row["patient"] for row in found] == [row["name"][:2] for row in found]
    names = load_segmenter(ready / "run", "cpu").class_names
    command[command.index("DEST")] = str(tmp_path / "made")
    assert ended(*command) == 0
    made = load_prepared(tmp_path / "made")
    assert made.class_names == names
    assert {Path(name).stem for part in made.parts for name in made.labelled(part)} == {row["name"] for row in found}
    for row in found:
        mask = made.root / "masks" / f"{row['name']}.png"
        np.testing.assert_array_equal(read_mask(mask), read_mask(out / "masks" / mask.name))
    assert set(made.groups.values()) == {row["patient"] for row in found}


# Slides


@pytest.fixture(scope="module")
def slides(ready: Path) -> Path:
    for number in range(2):
        image = synthesize(20 + number, 0, 160)[0]
        write_slide(ready / "slides" / f"s{number}.tif", image, mpp=0.5, compression=None)
    return ready / "slides"


@pytest.mark.slow
def test_regions_come_back_through_qupath_bit_for_bit(ready, slides, tmp_path, capsys) -> None:
    out = tmp_path / "next"
    words = ["suggest", ready / "run", slides, "--out", out, "--count", 6, "--tissue", "all", "--simplify", 0, *CPU]
    assert ended(*words) == 0
    command = next_words(capsys.readouterr().out)
    found = rows(out)
    files = sorted(out.glob("*.geojson"))
    assert {path.stem for path in files} == {row["name"] for row in found}
    assert [problem for path in files for problem in problems(path)] == []
    segmenter = load_segmenter(ready / "run", "cpu")
    for path in files:
        features = json.loads(path.read_text(encoding="utf-8"))["features"]
        assert all(one["properties"]["isLocked"] is False for one in features)
        assert all(one["properties"]["objectType"] == "annotation" for one in features)
        colours = dict(zip(segmenter.class_names, segmenter.settings.colours, strict=True)) | {"Region*": (0, 0, 180)}
        for one in features:
            given = one["properties"]["classification"]
            assert tuple(given["color"]) == colours[given["name"]]
        regions = [one for one in features if one["properties"]["classification"]["name"] == "Region*"]
        assert len(regions) == sum(row["name"] == path.stem for row in found)

    command[command.index("DEST")] = str(tmp_path / "made")
    assert ended(*command, "--unlabelled", 10) == 0
    made = load_prepared(tmp_path / "made")
    masks = {
        read_image(made.image_path(name)).tobytes(): read_mask(made.mask_path(name))
        for part in made.parts
        for name in made.labelled(part)
    }
    assert len(masks) == len(found)
    for row in found:
        x, y, width, height = (int(row[name]) for name in ("x", "y", "width", "height"))
        with open_slide(slides / f"{row['name']}.tif") as slide:
            pixels = slide.read(x, y, width, height)
        look = looks(ready / "run", [pixels])[0]
        np.testing.assert_array_equal(masks[pixels.tobytes()], look.label)
        assert float(row["score"]) == pytest.approx(look.score, abs=1e-5)


@pytest.mark.slow
def test_slides_of_the_set_of_the_run_keep_their_parts(slides, tmp_path, capsys) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    square = {"type": "Polygon", "coordinates": [[[0, 0], [96, 0], [96, 96], [0, 96], [0, 0]]]}
    for path in slides.glob("*.tif"):
        known = {"type": "Feature", "geometry": square, "properties": {"classification": {"name": "Region*"}}}
        gland = {"type": "Feature", "geometry": square, "properties": {"classification": {"name": "gland"}}}
        (marks / f"{path.stem}.geojson").write_text(json.dumps([known, gland]))
    words = ["prepare", "slides", slides, tmp_path / "data", "--annotations", marks, "--patch", 32, "--tissue", "all"]
    assert ended(*words, "--unlabelled", 9) == 0
    flags = tiny_flags(tmp_path / "data", "supervised")
    assert ended("train", "--recipe", "demo", "--run", tmp_path / "run", *flags) == 0
    words = ["suggest", tmp_path / "run", slides, "--annotations", marks, "--out", tmp_path / "next", "--tissue", "all"]
    capsys.readouterr()
    assert ended(*words, "--count", 3, *CPU) == 0
    command = next_words(capsys.readouterr().out)
    assert command[-2:] == ["--parts-of", str(tmp_path / "data")]
    command[command.index("DEST")] = str(tmp_path / "made")
    assert ended(*command, "--unlabelled", 9) == 0
    assert parts_of_groups(load_prepared(tmp_path / "made")) == parts_of_groups(load_prepared(tmp_path / "data"))


@pytest.mark.slow
def test_outlines_are_simplified_by_a_pixel_unless_told_otherwise(ready, slides, tmp_path) -> None:
    words = ["suggest", ready / "run", slides / "s0.tif", "--count", 4, "--tissue", "all", *CPU]
    assert ended(*words, "--out", tmp_path / "one") == 0
    assert ended(*words, "--out", tmp_path / "all", "--simplify", 0) == 0
    assert rows(tmp_path / "one") == rows(tmp_path / "all")
    sizes = [(tmp_path / name / "s0.geojson").stat().st_size for name in ("one", "all")]
    assert sizes[0] < sizes[1]


@pytest.mark.slow
def test_what_is_annotated_already_is_not_suggested_again(ready, slides, tmp_path, capsys) -> None:
    words = ["suggest", ready / "run", slides, "--count", 5, "--tissue", "all", *CPU]
    assert ended(*words, "--out", tmp_path / "first") == 0
    assert ended(*words, "--out", tmp_path / "second", "--annotations", tmp_path / "first") == 0
    places = [{(row["name"], row["x"], row["y"]) for row in rows(tmp_path / name)} for name in ("first", "second")]
    assert len(places[0]) == len(places[1]) == 5
    assert not places[0] & places[1]
    assert f"--annotations {tmp_path / 'first'}" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.slow
def test_annotations_without_a_region_are_warned_of(ready, slides, tmp_path, capsys) -> None:
    marks = tmp_path / "marks"
    ring = [[0, 0], [40, 0], [40, 40], [0, 40], [0, 0]]
    one = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]},
           "properties": {"classification": {"name": "gland"}}}  # fmt: skip
    marks.mkdir()
    (marks / "s0.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [one]}))
    words = ["suggest", ready / "run", slides, "--count", 100, "--tissue", "all", *CPU, "--annotations", marks]
    assert ended(*words, "--out", tmp_path / "out") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "have no Region*" in said
    assert said.count("have no Region*") == 1
    touched = [
        row for row in rows(tmp_path / "out") if row["name"] == "s0" and int(row["x"]) < 40 and int(row["y"]) < 40
    ]
    assert touched == []


def test_a_slide_smaller_than_a_window_gives_a_region_of_its_size(ready, tmp_path) -> None:
    write_slide(tmp_path / "tiny.tif", synthesize(3, 0, 128)[0][:24, :70], levels=1, mpp=0.5, compression=None)
    out = tmp_path / "out"
    assert (
        ended("suggest", ready / "run", tmp_path / "tiny.tif", "--tissue", "all", "--simplify", 0, "--out", out, *CPU)
        == 0
    )
    assert {row["height"] for row in rows(out)} == {"24"}
    assert sorted(int(row["x"]) for row in rows(out)) == [0, 32], "the third would overlap the second"
    assert problems(out / "tiny.geojson") == []


# What is refused


def refused(capsys, tmp_path: Path, *words: object) -> str:
    """The sentence; nothing is left behind."""
    before = sorted(tmp_path.rglob("*"))
    assert ended("suggest", *words, *CPU) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1, said
    assert sorted(tmp_path.rglob("*")) == before
    return said[0]


def test_a_set_without_an_unlabelled_image_is_refused(ready, tmp_path, capsys) -> None:
    shutil.copytree(ready / "set", tmp_path / "set")
    (tmp_path / "set" / "splits" / f"{SPLIT}.json").unlink()
    said = refused(capsys, tmp_path, ready / "run", tmp_path / "set", "--out", tmp_path / "out")
    assert "every training image is labelled" in said


def test_a_run_of_other_classes_is_refused(ready, tmp_path, capsys) -> None:
    shutil.copytree(ready / "set", tmp_path / "set")
    about = json.loads((tmp_path / "set" / "dataset.json").read_text())
    about["classes"].append({"name": "stroma", "colour": [1, 2, 3]})
    (tmp_path / "set" / "dataset.json").write_text(json.dumps(about))
    said = refused(capsys, tmp_path, ready / "run", tmp_path / "set", "--out", tmp_path / "out")
    assert "are not those of the run" in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["SET", "--count", "0"], "--count 0: must be at least 1"),
        (["SET", "--per-patient", "0"], "--per-patient 0"),
        (["SET", "--split", "nope"], "nope"),
        (["SET", "--tissue", "all"], "--tissue"),
        (["SET", "--group-regex", "x"], "--group-regex"),
        (["SET", "SET/images"], "name it alone"),
        (["SET/images", "--split", SPLIT], "--split"),
        (["SET/images", "--per-patient", "1"], "--group-regex"),
        (["SET/images", "--mpp", "0.5"], "--mpp"),
        (["SET/images", "--group-regex", "("], "no regular expression"),
        (["SET/images", "SLIDES"], "one kind at a time"),
        (["SLIDES", "--simplify", "-1"], "--simplify"),
        (["SLIDES", "--annotations", "SET/splits"], "of 1 annotation files none"),
        (["SLIDES", "--tissue", "SET/dataset.json"], "is of one slide"),
        (["nothing"], "no such file or folder"),
    ],
)
def test_a_wrong_word_gets_one_sentence(ready, slides, tmp_path, capsys, words, says) -> None:
    full = [word.replace("SET", str(ready / "set")).replace("SLIDES", str(slides)) for word in words]
    assert says in refused(capsys, tmp_path, ready / "run", *full, "--out", tmp_path / "out")


def test_a_folder_that_holds_something_is_kept(ready, tmp_path, capsys) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    said = refused(capsys, tmp_path, ready / "run", ready / "set", "--out", tmp_path / "out")
    assert "is there already" in said


def test_a_file_that_is_no_run_is_refused(ready, tmp_path, capsys) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")
    said = refused(capsys, tmp_path, tmp_path / "model.onnx", ready / "set", "--out", tmp_path / "out")
    assert "run folder" in said


def test_an_image_that_is_broken_is_named_and_nothing_is_left(ready, unlabelled, tmp_path, capsys) -> None:
    name = training_lists(unlabelled, None)[1][3]
    path = unlabelled.image_path(name)
    path.write_bytes(path.read_bytes()[:100])
    said = refused(capsys, tmp_path, ready / "run", unlabelled.root, "--out", tmp_path / "out")
    assert str(path) in said
    assert "--on-error skip goes on without it." in said


def test_an_image_that_is_broken_is_skipped_by_name_and_the_rest_ranked(ready, unlabelled, tmp_path, capsys) -> None:
    labelled, others = training_lists(unlabelled, None)
    words = (ready / "run", unlabelled.root, "--count", 99, "--on-error", "skip")
    for name in (others[3], labelled[0]):
        path = unlabelled.image_path(name)
        path.write_bytes(path.read_bytes()[:100])
    assert ended("suggest", *words, "--out", tmp_path / "out", "--device", "cpu") == 1
    said = capsys.readouterr().out
    for name in (others[3], labelled[0]):
        assert said.count(f"not looked at: {unlabelled.image_path(name)}: ") == 1
    assert {row["name"] for row in rows(tmp_path / "out")} == {Path(one).stem for one in others} - {
        Path(others[3]).stem
    }


def test_where_nothing_can_be_read_the_first_is_named(ready, tmp_path, capsys) -> None:
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(b"none")
    words = (ready / "run", tmp_path / "a.png", tmp_path / "b.png", "--on-error", "skip", "--out", tmp_path / "out")
    assert "a.png: " in refused(capsys, tmp_path, *words)


@pytest.mark.slow
def test_a_slide_that_is_broken_is_skipped_unless_told_otherwise(ready, slides, tmp_path, capsys) -> None:
    folder = tmp_path / "slides"
    shutil.copytree(slides, folder)
    good = next(path for path in sorted(folder.iterdir()) if path.suffix == ".tif")
    (folder / "0.svs").write_bytes(good.read_bytes()[:1000])
    words = (ready / "run", folder, "--count", 2, "--model-mpp", 0.5, "--device", "cpu")
    assert "0.svs: " in refused(capsys, tmp_path, *words, "--on-error", "stop", "--out", tmp_path / "out")
    assert ended("suggest", *words, "--out", tmp_path / "out") == 1
    assert f"not looked at: {folder / '0.svs'}: " in capsys.readouterr().out
    assert {row["name"] for row in rows(tmp_path / "out")} <= {path.stem for path in folder.glob("*.tif")}
