import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mpamatch.commands import check as check_command
from mpamatch.data.checks import check, examine, write_contact_sheet
from mpamatch.data.prepared import Class, Item, RawSet, write_prepared
from mpamatch.data.splits import write_split
from mpamatch.errors import InputError
from mpamatch.images import read_image

CLASSES = (Class("background", (0, 0, 0)), Class("gland", (0, 200, 83)))


@pytest.fixture
def root(tmp_path) -> Path:
    """Nine images of as many patients: 5 train (i4 unlabelled), 2 validation, 2 test; all half gland."""
    items = []
    for i, part in enumerate(["train"] * 5 + ["validation"] * 2 + ["test"] * 2):
        image = np.random.default_rng(i).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        label = np.zeros((20, 30), np.uint8)
        label[:10] = 1
        items.append(Item(f"i{i}", f"p{i}", part, image, None if i == 4 else label))
    return write_prepared(tmp_path / "set", RawSet("set", CLASSES, items, len(items), None, "", "")).root


def save_mask(path: Path, rows: list[int], width: int = 30) -> None:
    row = np.resize(np.array(rows, dtype=np.uint8), 20)
    Image.fromarray(np.repeat(row[:, None], width, axis=1)).save(path)


def change_json(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_sound_set_has_no_problem(root):
    report = examine(root)
    assert report.problems == ()
    assert not report.blocking
    train = report.counts["train"]
    assert (train.images, train.labelled, train.groups, train.pixels) == (5, 4, 5, (1200, 1200))
    assert report.counts["test"].pixels == (600, 600)


def size(root):
    save_mask(root / "masks" / "i0.png", [0, 1], width=31)


def index(root):
    save_mask(root / "masks" / "i0.png", [0, 1, 5])


def binary(root):
    save_mask(root / "masks" / "i0.png", [0, 255])


def truncated_image(root):
    path = root / "images" / "i1.png"
    path.write_bytes(path.read_bytes()[:700])


def truncated_mask(root):
    path = root / "masks" / "i1.png"
    path.write_bytes(path.read_bytes()[:50])


def missing_image(root):
    (root / "images" / "i2.png").unlink()


def twice_in_one_part(root):
    shutil.copy(root / "images" / "i1.png", root / "images" / "i0.png")


def twice_across_parts(root):
    shutil.copy(root / "images" / "i8.png", root / "images" / "i0.png")


def leak(root):
    change_json(root / "parts.json", lambda content: content["groups"].update({"i8.png": "p0"}))


def leak_with_reason(root):
    leak(root)
    change_json(root / "parts.json", lambda content: content.update(note="official parts share patients"))


def empty_class(root):
    for i in range(4):
        save_mask(root / "masks" / f"i{i}.png", [0])


def empty_class_in_test(root):
    for i in (7, 8):
        save_mask(root / "masks" / f"i{i}.png", [0])


def no_validation(root):
    for i in (5, 6):
        (root / "masks" / f"i{i}.png").unlink()


def no_test(root):
    for i in (7, 8):
        (root / "masks" / f"i{i}.png").unlink()


def stray_mask(root):
    save_mask(root / "masks" / "stray.png", [0, 1])


def mask_in_another_format(root):
    Image.new("L", (30, 20)).save(root / "masks" / "i4.tif")


def stray_image(root):
    shutil.copy(root / "images" / "i0.png", root / "images" / "stray.png")


def split_of_missing(root):
    (root / "splits" / "old.json").write_text(json.dumps({"labelled": ["i0.png", "gone.png"]}))


def split_that_is_no_json(root):
    (root / "splits" / "old.json").write_text("{")


@pytest.mark.parametrize(
    ("harm", "file", "named", "blocking"),
    [
        (size, "masks/i0.png", "31×20 pixels, its image 30×20", True),
        (index, "masks/i0.png", "holds 5, but the classes are 0..1", True),
        (binary, "masks/i0.png", "only 0 and 255", True),
        (truncated_image, "images/i1.png", "cannot be decoded", True),
        (truncated_mask, "masks/i1.png", "cannot be decoded", True),
        (missing_image, "images/i2.png", "no such file", True),
        (twice_in_one_part, "images/i1.png", "same picture as i0.png", False),
        (twice_across_parts, "images/i8.png", "one is in train, the other in test", True),
        (leak, "parts.json", "group p0 is in train and test", True),
        (leak_with_reason, "parts.json", "official parts share patients", False),
        (empty_class, "dataset.json", "no train mask shows the class gland", True),
        (empty_class_in_test, "dataset.json", "no test mask shows the class gland", False),
        (no_validation, "parts.json", "validation part has no labelled image", True),
        (no_test, "parts.json", "test part has no labelled image", False),
        (stray_mask, "masks/stray.png", "mask without image", False),
        (mask_in_another_format, "masks/i4.tif", "is no PNG", True),
        (stray_image, "images/stray.png", "in no part", False),
        (split_of_missing, "splits/old.json", "names gone.png, which is not in images", True),
        (split_that_is_no_json, "splits/old.json", "is no JSON", True),
    ],
)
def test_each_harm_is_the_one_problem_found(root, harm, file, named, blocking):
    harm(root)
    problems = check(root)
    assert [problem.file for problem in problems] == [file]
    assert named in problems[0].problem
    assert problems[0].blocking is blocking
    assert check_command.run(argparse.Namespace(data=str(root))) == int(blocking)


def test_0_and_255_is_fine_where_255_is_known_to_mean_ignore(root):
    binary(root)
    save_mask(root / "masks" / "i1.png", [0, 1, 255])
    assert [problem.blocking for problem in check(root)] == [False]


def test_0_and_255_is_no_mistake_in_a_partly_labelled_set(root):
    binary(root)
    change_json(root / "dataset.json", lambda about: about.update(partly_labelled=True))
    assert check(root) == []


def test_blocking_problems_come_first(root):
    stray_image(root)
    size(root)
    assert [problem.blocking for problem in check(root)] == [True, False]


def test_no_prepared_folder_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="prepare it first"):
        check(tmp_path)


def test_the_contact_sheet_shows_images_masks_and_overlays(root, tmp_path):
    report = examine(root)
    assert write_contact_sheet(report, tmp_path / "sheet.png") == 8
    sheet = read_image(tmp_path / "sheet.png")
    assert sheet.shape[1] == 1200
    first_mask = sheet[20:140, 206:390].reshape(-1, 3)
    assert {tuple(pixel) for pixel in np.unique(first_mask, axis=0).tolist()} == {(0, 0, 0), (0, 200, 83)}


def test_the_contact_sheet_leaves_broken_images_out(root, tmp_path):
    size(root)
    truncated_image(root)
    assert write_contact_sheet(examine(root), tmp_path / "sheet.png") == 6
    for path in (root / "masks").iterdir():
        path.unlink()
    assert write_contact_sheet(examine(root), tmp_path / "none.png") == 0
    assert not (tmp_path / "none.png").exists()


def test_the_command_prints_counts_and_problems(root, capsys):
    stray_image(root)
    write_split(examine(root).prepared, "1", 0)
    assert check_command.run(argparse.Namespace(data=str(root))) == 0
    said = capsys.readouterr().out
    assert "50.0" in said
    assert "images/stray.png" in said
    assert "0 problems that spoil training, 1 to know about" in said
    assert (root / "check.png").is_file()
