"""Image-level labels: written by prepare, read back, checked on opening and against the masks."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mpamatch.data.checks import check
from mpamatch.data.prepared import (
    Class,
    Item,
    RawSet,
    load_prepared,
    training_lists,
    weak_training_lists,
    write_prepared,
)
from mpamatch.data.sources import ebhi_seg
from mpamatch.errors import InputError
from tests.data.places import assert_one_sentence

CLASSES = (Class("background", (0, 0, 0)), Class("Polyp", (0, 200, 83)), Class("Normal", (200, 0, 83)))


def item(number: int, part: str, present: tuple[int, ...] | None, label: int | None) -> Item:
    rng = np.random.default_rng(number)
    shown = None if label is None else np.full((16, 20), label, np.uint8)
    image = rng.integers(0, 256, (16, 20, 3), dtype=np.uint8)
    return Item(f"i{number}", f"p{number}", part, image, shown, present)


def write(dest: Path, items: list[Item]):
    return write_prepared(dest, RawSet("weak", CLASSES, items, len(items), None, "", ""))


ITEMS = [
    item(0, "train", (1,), None),
    item(1, "train", (2, 1, 2), 2),
    item(2, "train", (), 0),
    item(3, "train", None, 1),
    item(4, "validation", (1,), 1),
    item(5, "validation", (2,), 2),
    item(6, "test", (2,), 0),
]


@pytest.fixture
def root(tmp_path) -> Path:
    return write(tmp_path / "set", ITEMS).root


def change(root: Path, **present) -> None:
    path = root / "present.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | present))


def test_what_is_written_is_read_back(root):
    content = json.loads((root / "present.json").read_text())
    assert content["i1.png"] == ["Polyp", "Normal"]
    assert content["i2.png"] == []
    assert "i3.png" not in content
    prepared = load_prepared(root)
    assert prepared.present == {
        **{"i0.png": (1,), "i1.png": (1, 2), "i2.png": (), "i4.png": (1,)},
        **{"i5.png": (2,), "i6.png": (2,)},
    }
    assert prepared.with_present("train") == ("i0.png", "i1.png", "i2.png")


def test_a_set_without_image_level_labels_has_no_such_file(tmp_path):
    written = write(tmp_path / "set", [item(0, "train", None, 1)])
    assert written.present == {}
    assert not (written.root / "present.json").exists()
    with pytest.raises(InputError, match="no training image has an image-level label") as caught:
        weak_training_lists(written, None)
    assert_one_sentence(caught.value, [str(written.root), "ebhi-seg --task weak"])


def test_no_mask_is_needed_beside_image_level_labels(tmp_path):
    written = write(tmp_path / "set", [item(0, "train", (1,), None), item(1, "test", (2,), None)])
    assert weak_training_lists(written, None) == (("i0.png",), ())


@pytest.mark.parametrize("index", [0, 3, -1])
def test_an_index_that_is_no_foreground_class_is_refused(index, tmp_path):
    with pytest.raises(InputError, match=f"i0: its image-level label holds the class index {index}"):
        write(tmp_path / "set", [item(0, "train", (1, index), None)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("present", "named"),
    [
        ({"i0.png": ["Polip"]}, "i0.png: unknown class 'Polip': did you mean 'Polyp'?"),
        ({"i0.png": ["background"]}, "i0.png: 'background' is the background"),
        ({"i0.png": "Polyp"}, "i0.png must have a list of class names"),
        ({"gone.png": ["Polyp"]}, "names 'gone.png', which parts.json does not list"),
    ],
)
def test_bad_labels_are_named(root, present, named):
    change(root, **present)
    with pytest.raises(InputError) as caught:
        load_prepared(root)
    assert_one_sentence(caught.value, [str(root / "present.json"), named])


def test_a_file_of_another_form_is_refused(root):
    (root / "present.json").write_text("[]")
    with pytest.raises(InputError, match=r"present\.json: must be a JSON object"):
        load_prepared(root)


def test_weak_training_lists(root):
    prepared = load_prepared(root)
    assert weak_training_lists(prepared, None) == (("i0.png", "i1.png", "i2.png"), ("i3.png",))
    (root / "splits" / "few.json").write_text(json.dumps({"labelled": ["i1.png"]}))
    assert weak_training_lists(prepared, "few") == (("i1.png",), ("i0.png", "i2.png", "i3.png"))
    assert weak_training_lists(prepared, None)[0] == ("i0.png", "i1.png", "i2.png")
    assert training_lists(prepared, None)[0] == ("i1.png",)
    (root / "splits" / "wrong.json").write_text(json.dumps({"labelled": ["i1.png", "i3.png"]}))
    with pytest.raises(InputError, match=r"wrong\.json: names i3\.png, which has no image-level label"):
        weak_training_lists(prepared, "wrong")
    with pytest.raises(InputError, match="unknown split 'fwe': did you mean 'few'"):
        weak_training_lists(prepared, "fwe")


def test_check_compares_masks_with_image_level_labels(root):
    assert [(one.file, one.blocking) for one in check(root) if "image-level" in one.problem] == []
    Image.fromarray(np.full((16, 20), 2, np.uint8)).save(root / "masks" / "i4.png")
    Image.fromarray(np.full((16, 20), 1, np.uint8)).save(root / "masks" / "i2.png")
    found = [(one.file, one.problem, one.blocking) for one in check(root) if "image-level" in one.problem]
    told = "shows the class {}, which the image-level label does not name"
    assert found == [("masks/i2.png", told.format("Polyp"), False), ("masks/i4.png", told.format("Normal"), False)]


def test_check_asks_for_every_class_in_training(root):
    change(root, **{"i1.png": ["Polyp"]})
    found = [(one.file, one.problem) for one in check(root) if one.blocking]
    assert found == [("present.json", "no training image has the class Normal in its image-level label")]


def test_ebhi_seg_weak_labels_an_image_by_its_folder(tmp_path):
    for lesion in ebhi_seg.LESIONS:
        for kind in ("image", "label"):
            path = tmp_path / lesion / kind / "GT2012508-1-400-001.png"
            path.parent.mkdir(parents=True)
            pixels = np.full((8, 8, 3), 90, np.uint8) if kind == "image" else np.eye(8, dtype=np.uint8) * 255
            Image.fromarray(pixels).save(path)
    weak, classes = (ebhi_seg.raw_set(tmp_path, task) for task in ("weak", "classes"))
    assert (weak.name, weak.classes) == ("ebhi-seg-weak", classes.classes)
    for number, (one, other) in enumerate(zip(weak.items, classes.items, strict=True), start=1):
        assert (one.present, other.present) == ((number,), None)
        assert np.array_equal(one.label, np.eye(8) * number)


@pytest.mark.real
def test_real_ebhi_seg_has_an_image_level_label_for_every_image(ebhi_seg):
    from mpamatch.data.sources.ebhi_seg import raw_set

    raw = raw_set(ebhi_seg, "weak")
    items = list(raw.items)
    assert len(items) == raw.count == 536
    assert {one.present for one in items} == {(index,) for index in range(1, 7)}
    assert all(set(np.unique(one.label)) <= {0, *one.present} for one in items if one.label is not None)
