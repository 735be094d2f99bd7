import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mpamatch.data.prepared as prepared_module
from mpamatch.data.parts import held_out, parts_by_group
from mpamatch.data.prepared import (
    PARTS,
    Class,
    Item,
    RawSet,
    load_prepared,
    training_lists,
    write_prepared,
)
from mpamatch.errors import InputError
from mpamatch.images import read_image, read_mask

CLASSES = (Class("background", (0, 0, 0)), Class("gland", (0, 200, 83)))


def item(number: int, *, group: str | None = None, part: str | None = None, labelled: bool = True) -> Item:
    rng = np.random.default_rng(number)
    label = rng.integers(0, 2, (16, 20), dtype=np.uint8) if labelled else None
    image = rng.integers(0, 256, (16, 20, 3), dtype=np.uint8)
    return Item(f"i{number:02d}", group or f"g{number // 2}", part, image, label)


def write(dest: Path, items, *, keep_shared_groups: str | None = None):
    return write_prepared(dest, RawSet("set", CLASSES, items, len(items), 0.5, "here", "none", keep_shared_groups))


def set_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_is_written_is_read_back(tmp_path):
    items = [item(i, labelled=i % 5 != 4) for i in range(20)]
    written = write(tmp_path / "new" / "set", items)
    assert load_prepared(tmp_path / "new" / "set") == written
    assert written.class_names == ("background", "gland")
    assert written.colours == ((0, 0, 0), (0, 200, 83))
    assert written.microns_per_pixel == 0.5
    for one in items:
        name = f"{one.stem}.png"
        assert written.groups[name] == one.group
        assert np.array_equal(read_image(written.image_path(name)), one.image)
        mask = written.mask_path(name)
        assert (mask is None) == (one.label is None)
        if mask is not None:
            assert np.array_equal(read_mask(mask), one.label)
    assert sum(len(written.labelled(part)) for part in PARTS) == 16
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["set"], "no temporary folder is left"


def test_no_group_is_in_two_parts_and_no_part_is_empty(tmp_path):
    written = write(tmp_path / "set", [item(i) for i in range(30)])
    groups = {part: {written.groups[name] for name in written.parts[part]} for part in PARTS}
    assert [len(groups[part]) for part in PARTS] == [9, 3, 3]
    assert not groups["train"] & groups["validation"]
    assert not (groups["train"] | groups["validation"]) & groups["test"]


def test_groups_without_any_mask_go_to_train(tmp_path):
    items = [item(i) for i in range(10)] + [item(i, group="plain", labelled=False) for i in range(10, 40)]
    written = write(tmp_path / "set", items)
    assert {name for name, group in written.groups.items() if group == "plain"} <= set(written.parts["train"])
    assert all(written.labelled(part) for part in PARTS)


def test_parts_by_group_depends_on_names_alone():
    names = [f"p{i}" for i in range(50)]
    parts = parts_by_group(names)
    assert parts == parts_by_group(reversed(names))
    assert [list(parts.values()).count(part) for part in PARTS] == [30, 10, 10]
    for count in range(3, 12):
        assert set(parts_by_group(names[:count]).values()) == set(PARTS)
    assert sorted(parts_by_group(["a", "b"]).values()) == ["train", "validation"]
    assert parts_by_group(["a"]) == {"a": "train"}


def test_held_out_takes_about_a_fifth_of_the_images_in_whole_groups():
    groups = [f"p{i // 5}" for i in range(100)]
    assert len(held_out(groups)) == 4
    assert held_out(["a"] * 90 + ["b"] * 10) == {"b"}
    assert held_out(["a"] * 6 + ["b"] * 5) == {"b"}, "where no group fits, the smallest is taken"
    assert held_out(["a", "a"]) == set()


def test_shared_groups_need_a_reason(tmp_path):
    items = [
        item(0, group="p", part="train"),
        item(1, group="p", part="test"),
        item(2, group="q", part="validation"),
    ]
    with pytest.raises(InputError, match="'p' is in test and train"):
        write(tmp_path / "set", items)
    written = write(tmp_path / "set", items, keep_shared_groups="official parts.")
    assert written.note == "1 groups are in more than one part: official parts."
    assert write(tmp_path / "two", [item(i) for i in range(9)], keep_shared_groups="official parts.").note == ""


def test_rgb_files_are_copied_byte_for_byte_and_others_converted(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    sources = {"a": "a.jpg", "b": "b.PNG", "c": "c.bmp", "d": "d.png"}
    for stem, name in sources.items():
        Image.fromarray(array[..., 0] if stem == "d" else array).save(tmp_path / name)
    label = np.zeros((16, 20), np.uint8)
    written = write(
        tmp_path / "set", [Item(stem, stem, None, tmp_path / name, label) for stem, name in sources.items()]
    )
    images = {path.name: path.read_bytes() for path in (written.root / "images").iterdir()}
    assert sorted(images) == ["a.jpg", "b.png", "c.png", "d.png"]
    assert images["a.jpg"] == (tmp_path / "a.jpg").read_bytes()
    assert images["b.png"] == (tmp_path / "b.PNG").read_bytes()
    assert Image.open(written.root / "images" / "d.png").mode == "RGB"


def wrong_size() -> Item:
    return Item("odd", "g", None, np.zeros((16, 20, 3), np.uint8), np.zeros((16, 21), np.uint8))


def wrong_index() -> Item:
    return Item("odd", "g", None, np.zeros((16, 20, 3), np.uint8), np.full((16, 20), 7, np.uint8))


@pytest.mark.parametrize(
    ("items", "named"),
    [
        ([item(0), wrong_size()], "odd: the image is 20×16 pixels and its mask 21×16"),
        ([item(0), wrong_index()], "odd: its mask holds the class index 7, but there are only 2"),
        ([item(0), item(0)], "i00: another image has the name"),
        ([item(0), Item("x", "g", None, Path("/no/x.png"), None)], "/no/x.png: no such file"),
        ([item(0, labelled=False)], "none of the 1 images has a mask"),
        ([], "no image was found"),
    ],
)
def test_bad_items_leave_nothing_behind(tmp_path, items, named):
    with pytest.raises(InputError, match=named):
        write(tmp_path / "set", items)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_and_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepared_module, "json_bytes", full)
    with pytest.raises(InputError, match="No space left on device"):
        write(tmp_path / "set", [item(0)])
    assert list(tmp_path.iterdir()) == []


def test_what_stands_at_the_destination_stays(tmp_path):
    (tmp_path / "set").mkdir()
    write(tmp_path / "set", [item(i) for i in range(6)])
    before = (tmp_path / "set" / "parts.json").read_bytes()
    with pytest.raises(InputError, match="is there already"):
        write(tmp_path / "set", [item(9)])
    assert (tmp_path / "set" / "parts.json").read_bytes() == before


def test_ignore_255_is_no_class_out_of_range(tmp_path):
    label = np.full((16, 20), 255, np.uint8)
    image = np.zeros((16, 20, 3), np.uint8)
    written = write(tmp_path / "set", [item(0), Item("edge", "g", None, image, label)])
    mask = written.mask_path("edge.png")
    assert mask is not None
    assert (read_mask(mask) == 255).all()


@pytest.fixture
def folder(tmp_path) -> Path:
    """12 images of one patient each: 8 train (1 of them unlabelled), 2 validation, 2 test."""
    parts = ["train"] * 8 + ["validation"] * 2 + ["test"] * 2
    items = [item(i, group=f"p{i}", part=part, labelled=i != 7) for i, part in enumerate(parts)]
    return write(tmp_path / "set", items).root


def test_loading_what_is_no_prepared_folder(tmp_path, folder):
    with pytest.raises(InputError, match="no such folder"):
        load_prepared(tmp_path / "nowhere")
    with pytest.raises(InputError, match="prepare it first"):
        load_prepared(tmp_path)
    (folder / "images" / "i03.png").unlink()
    with pytest.raises(InputError, match=r"i03\.png: is listed in train"):
        load_prepared(folder)


@pytest.mark.parametrize(
    ("file", "changes", "named"),
    [
        ("dataset.json", {"classes": [{"name": "one", "colour": [0, 0, 0]}]}, "has 1 classes"),
        ("dataset.json", {"classes": [{"name": "a", "colour": [0, 0, 0]}] * 2}, "'a' twice"),
        ("dataset.json", {"classes": [{"name": "a"}]}, "needs a name and a colour"),
        ("dataset.json", {"classes": "a"}, "'classes' must be a list"),
        ("dataset.json", {"microns_per_pixel": -1}, "positive number"),
        ("parts.json", {"parts": {"trian": []}}, "did you mean 'train'"),
        ("parts.json", {"parts": {"train": ["i00.png", "i00.png"]}}, "twice"),
        ("parts.json", {"parts": {"test": ["i00.png"]}}, "no training image"),
        ("parts.json", {"groups": {}}, "no group for i00.png"),
    ],
)
def test_wrong_fields_are_named(folder, file, changes, named):
    set_json(folder / file, **changes)
    with pytest.raises(InputError, match=named) as caught:
        load_prepared(folder)
    assert file in str(caught.value)


def test_missing_field_names_the_nearest(folder):
    path = folder / "dataset.json"
    content = json.loads(path.read_text())
    content["license"] = content.pop("licence")
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="no field 'licence' \\(is it 'license'\\?\\)"):
        load_prepared(folder)


def write_split(folder: Path, name: str, images: list[str]) -> None:
    (folder / "splits" / f"{name}.json").write_text(json.dumps({"labelled": images}))


def test_training_lists_without_a_split_take_every_mask(folder):
    labelled, unlabelled = training_lists(load_prepared(folder), None)
    assert labelled == tuple(f"i{i:02d}.png" for i in range(7))
    assert unlabelled == ("i07.png",)


def test_training_lists_with_one_and_with_several_splits(folder):
    write_split(folder, "few", ["i02.png", "i01.png"])
    prepared = load_prepared(folder)
    labelled, unlabelled = training_lists(prepared, None)
    assert labelled == ("i01.png", "i02.png")
    assert unlabelled == tuple(f"i{i:02d}.png" for i in (0, 3, 4, 5, 6, 7))
    assert training_lists(prepared, "few.json") == (labelled, unlabelled)
    write_split(folder, "more", ["i02.png"])
    with pytest.raises(InputError, match=r"several splits.*few, more"):
        training_lists(prepared, None)
    with pytest.raises(InputError, match="did you mean 'more'"):
        training_lists(prepared, "mroe")


@pytest.mark.parametrize(
    ("images", "named"),
    [
        (["i00.png", "gone.png"], "gone.png, which is not in images"),
        (["i08.png"], "i08.png, which is no training image"),
        (["i07.png"], "i07.png, which has no mask"),
        ([], "names no image"),
    ],
)
def test_a_split_that_does_not_fit_is_refused(folder, images, named):
    write_split(folder, "bad", images)
    with pytest.raises(InputError, match=named) as caught:
        training_lists(load_prepared(folder), "bad")
    assert "bad.json" in str(caught.value)


def test_no_label_at_all_is_refused(folder):
    for mask in (folder / "masks").iterdir():
        mask.unlink()
    prepared = load_prepared(folder)
    with pytest.raises(InputError, match="no training image is labelled"):
        training_lists(prepared, None)
    with pytest.raises(InputError, match="has no split 'few': write one first"):
        training_lists(prepared, "few")
