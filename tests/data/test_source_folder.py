"""Any folder of images and masks: what mask values mean, groups, parts, names."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mpamatch.cli import main
from mpamatch.commands import prepare
from mpamatch.data.prepared import PARTS, load_prepared
from mpamatch.data.sources import folder
from mpamatch.errors import InputError
from mpamatch.images import read_mask
from tests.data.raw import SIZE, arguments, image, labels, mask

CLASSES = {"background", "gland"}


def prepare_words(root: Path, data: Path) -> list[str]:
    """Two images of each of eight patients; those of the last two have no mask."""
    source = root / "mine"
    for i in range(16):
        image(source / "images" / f"p{i // 2}_{i % 2}_img.jpg", i)
        if i < 12:
            mask(source / "masks" / f"p{i // 2}_{i % 2}_mask.png", [0, 255])
    meaning = ["--mask-values", "0:background,255:gland", "--group-regex", "p[0-9]"]
    return ["folder", str(source), str(data), *meaning]


@pytest.fixture
def plain(tmp_path) -> Path:
    """images/ in four formats, masks of 0 and 255 for three of them."""
    for i, name in enumerate(["p1_a.png", "p1_b.jpg", "p2_a.bmp", "p3_a.tif"]):
        image(tmp_path / "images" / name, i)
    for stem in ("p1_a", "p1_b", "p2_a"):
        mask(tmp_path / "masks" / f"{stem}.png", [0, 255])
    return tmp_path


def test_folder_with_mask_values_and_groups(plain):
    raw = folder.raw_set(plain, mask_values="0:background, 255:gland", group_regex=r"^(p\d)_")
    assert labels(raw) == {"p1_a": [0, 1], "p1_b": [0, 1], "p2_a": [0, 1], "p3_a": None}
    again = folder.raw_set(plain, mask_values="0:background,255:gland", group_regex="p[0-9]+")
    assert [one.group for one in again.items] == ["p1", "p1", "p2", "p3"]
    assert [one.name for one in raw.classes] == ["background", "gland"]
    assert raw.remarks == ("1 image has no mask, so unlabelled: p3_a.tif.",)


def test_folder_suggests_the_line_that_works(plain):
    with pytest.raises(InputError, match="--mask-values 0:background,255:object") as caught:
        folder.raw_set(plain)
    line = str(caught.value).rsplit("--mask-values ", 1)[1]
    assert labels(folder.raw_set(plain, mask_values=line))["p1_a"] == [0, 1]
    mask(plain / "masks" / "p1_a.png", [0, 100, 200])
    with pytest.raises(InputError, match="0:background,100:class-100,200:class-200,255:class-255"):
        folder.raw_set(plain)


def test_folder_takes_class_indices_as_they_are(plain):
    for stem in ("p1_a", "p1_b", "p2_a"):
        mask(plain / "masks" / f"{stem}.png", [0, 1, 2, 255])
    raw = folder.raw_set(plain)
    assert [one.name for one in raw.classes] == ["class-0", "class-1", "class-2"]
    assert labels(raw)["p2_a"] == [0, 1, 2, 255]


def test_folder_with_instances(plain):
    mask(plain / "masks" / "p1_a.png", [0, 700, 70], dtype=np.uint16)
    raw = folder.raw_set(plain, instances=True)
    assert [one.name for one in raw.classes] == ["background", "object"]
    assert next(iter(raw.items)).label[0, :3].tolist() == [0, 1, 1]
    mask(plain / "masks" / "p1_a.png", list(range(24)))
    with pytest.raises(InputError, match="add --instances"):
        folder.raw_set(plain)
    with pytest.raises(InputError, match="exclude each other"):
        folder.raw_set(plain, instances=True, mask_values="0:a,1:b")


def test_folder_keeps_the_numbers_of_instances(plain):
    mask(plain / "masks" / "p1_a.png", [0, 700, 70], dtype=np.uint16)
    prepare.run(arguments(kind="folder", source=plain, dest=plain / "out", instances=True))
    prepared = load_prepared(plain / "out")
    numbers = {name: prepared.instances_path(name) for name in prepared.groups}
    assert {name for name, path in numbers.items() if path is None} == {"p3_a.png"}  # it has no mask
    assert read_mask(numbers["p1_a.png"])[0, :4].tolist() == [0, 2, 1, 0]
    assert np.unique(read_mask(numbers["p1_b.jpg"])).tolist() == [0, 1]


def test_folder_keeps_no_numbers_that_tell_nothing_apart(plain, capsys):
    assert all(one.instances is None for one in folder.raw_set(plain, instances=True).items)
    prepare.run(arguments(kind="folder", source=plain, dest=plain / "out", instances=True))
    assert "tell no objects apart (no mask holds two of them)" in " ".join(capsys.readouterr().out.split())
    assert not (plain / "out" / "instances").exists()
    mask(plain / "masks" / "p1_a.png", [0, 1, 2])
    mask(plain / "masks" / "p1_b.png", [0] * 8 + [200] * 8).rename(plain / "masks" / "p1_b.jpg")
    Image.open(plain / "masks" / "p1_b.jpg").save(plain / "masks" / "p1_b.jpg", "JPEG")
    raw = folder.raw_set(plain, instances=True)
    assert any("p1_b.jpg is JPEG, which smears them" in remark for remark in raw.remarks)
    assert all(one.instances is None for one in raw.items)


def test_folder_refuses_more_objects_than_16_bits_number(plain):
    values = np.arange(300 * 300, dtype=np.int32).reshape(300, 300)
    Image.fromarray(values).save(plain / "masks" / "p1_a.tif")
    (plain / "masks" / "p1_a.png").unlink()
    with pytest.raises(InputError, match=r"p1_a\.tif: holds 89999 numbers of objects"):
        list(folder.raw_set(plain, instances=True).items)


def test_folder_several_values_for_one_class_and_ignore(plain):
    for stem in ("p1_a", "p1_b", "p2_a"):
        mask(plain / "masks" / f"{stem}.png", [0, 50, 100, 9])
    raw = folder.raw_set(plain, mask_values="0:background,50:gland,100:gland,9:ignore")
    assert next(iter(raw.items)).label[0, :4].tolist() == [0, 1, 1, 255]


def test_folder_jpeg_masks_take_the_nearer_of_two_values(plain):
    drawn = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    drawn[:, 5:14] = 255
    (plain / "masks" / "p1_a.png").unlink()
    Image.fromarray(drawn).save(plain / "masks" / "p1_a.jpg", quality=60)
    assert len(np.unique(read_mask(plain / "masks" / "p1_a.jpg"))) > 2
    raw = folder.raw_set(plain, mask_values="0:background,255:gland")
    assert np.array_equal(next(iter(raw.items)).label, drawn > 127)


def test_folder_pairs_names_with_endings(tmp_path):
    image(tmp_path / "images" / "case1_img.jpg")
    image(tmp_path / "images" / "case2_img.jpg")
    mask(tmp_path / "masks" / "case1_mask.png", [0, 1])
    assert labels(folder.raw_set(tmp_path)) == {"case1_img": [0, 1], "case2_img": None}


def test_folder_with_parts(tmp_path):
    for part, count in (("train", 10), ("val", 2), ("test", 3)):
        for i in range(count):
            image(tmp_path / "images" / part / f"{i}.png", i)
            mask(tmp_path / "masks" / part / f"{i}.png", [0, 1])
    found = [one.part for one in folder.raw_set(tmp_path).items]
    assert [found.count(part) for part in PARTS] == [10, 2, 3]
    assert len({one.stem for one in folder.raw_set(tmp_path).items}) == 15
    assert {one.part for one in folder.raw_set(tmp_path, regroup=True).items} == {None}
    for path in (tmp_path / "images" / "val", tmp_path / "masks" / "val"):
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    found = [one.part for one in folder.raw_set(tmp_path).items]
    assert [found.count(part) for part in PARTS] == [8, 2, 3], "a fifth of train where there is no validation"
    (tmp_path / "images" / "extra").mkdir()
    with pytest.raises(InputError, match="extra: is no part"):
        folder.raw_set(tmp_path)


def test_folder_bad_layout(tmp_path, plain):
    with pytest.raises(InputError, match="images: no such folder"):
        folder.raw_set(tmp_path / "nowhere")
    with pytest.raises(InputError, match="finds no group in 'p1_a'"):
        folder.raw_set(plain, instances=True, group_regex=r"q(\d)")
    with pytest.raises(InputError, match="is no regular expression"):
        folder.raw_set(plain, instances=True, group_regex="(")
    mask(plain / "masks" / "p9.png", [0, 255])
    with pytest.raises(InputError, match=r"p9\.png: is a mask without image"):
        folder.raw_set(plain)
    (plain / "masks" / "p9.png").unlink()
    image(plain / "images" / "p1_a.bmp")
    with pytest.raises(InputError, match="has the same name as"):
        folder.raw_set(plain)
    (tmp_path / "none" / "images").mkdir(parents=True)
    with pytest.raises(InputError, match="holds no image"):
        folder.raw_set(tmp_path / "none")
    image(tmp_path / "none" / "images" / "a.png")
    with pytest.raises(InputError, match="holds no mask"):
        folder.raw_set(tmp_path / "none")


@pytest.mark.parametrize("line", ["", "0", "0:a", "0:a,x:b", "0:a,0:b", "0:a,-1:b", "0:a,1:", "0:a,1:ignore"])
def test_folder_bad_mask_values(plain, line):
    with pytest.raises(InputError, match="--mask-values"):
        folder.raw_set(plain, mask_values=line)


def test_folder_value_that_is_not_explained(plain):
    with pytest.raises(InputError, match=r"p1_a\.png: holds the value 255, which --mask-values does not"):
        list(folder.raw_set(plain, mask_values="0:background,1:gland").items)


def test_folder_end_to_end(plain, capsys):
    prepare.run(arguments(kind="folder", source=plain, dest=plain / "out", instances=True, microns_per_pixel=0.25))
    about = json.loads((plain / "out" / "dataset.json").read_text())
    assert about["microns_per_pixel"] == 0.25
    assert "give --group-regex" in capsys.readouterr().out


def prepared(capsys, source: Path, data: Path, *words: str, code: int = 0) -> str:
    """Runs `mpamatch prepare folder`; returns what it says."""
    assert main(["prepare", "folder", str(source), str(data), *words]) == code
    said = capsys.readouterr()
    return said.err.splitlines()[-1] if code else said.out


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (("train", "val", "test"), ("training", "validation", "testing")),
        (("Training", "valid", "TEST"), ("train", "val", "test")),
    ],
)
def test_parts_that_images_and_masks_call_otherwise(tmp_path, capsys, images, masks):
    for of_images, of_masks, count in zip(images, masks, (6, 2, 2), strict=True):
        for i in range(count):
            image(tmp_path / "mine" / "images" / of_images / f"{i}.png", 10 * count + i + len(of_images))
            mask(tmp_path / "mine" / "masks" / of_masks / f"{i}.png", [0, 1])
    assert "unlabelled" not in prepared(capsys, tmp_path / "mine", tmp_path / "data")
    found = load_prepared(tmp_path / "data")
    assert [len(found.labelled(part)) for part in PARTS] == [6, 2, 2]


def test_parts_that_do_not_fit_are_refused_by_name(tmp_path, capsys):
    source, data = tmp_path / "mine", tmp_path / "data"
    image(source / "images" / "train" / "a.png")
    mask(source / "masks" / "a.png", [0, 1])
    told = prepared(capsys, source, data, code=2)
    assert told == f"mpamatch: {source / 'masks'}: has no folder train, as images/ has: sort the masks too."
    (source / "masks" / "train").mkdir()
    told = prepared(capsys, source, data, code=2)
    assert told == f"mpamatch: {source / 'masks'}: holds masks beside the folder train: put them into a part too."
    (source / "masks" / "a.png").rename(source / "masks" / "train" / "a.png")
    image(source / "images" / "training" / "b.png")
    assert "training: is the train part, as train is: put their images together." in prepared(
        capsys, source, data, code=2
    )
    (source / "images" / "training" / "b.png").rename(source / "images" / "train" / "b.png")
    (source / "images" / "training").rmdir()
    mask(source / "masks" / "val" / "c.png", [0, 1])
    assert "val: holds masks, but images/ has no such part" in prepared(capsys, source, data, code=2)
    (source / "masks" / "val").rename(source / "masks" / "extra")
    assert "extra: is no part (train, validation, test)" in prepared(capsys, source, data, code=2)
    assert not data.exists()
    for name in ("a", "b"):
        (source / "images" / "train" / f"{name}.png").rename(source / "images" / f"{name}.png")
    (source / "images" / "train").rmdir()
    shutil.rmtree(source / "masks" / "extra")
    assert "masks/train: is a part, but images/ has none" in prepared(capsys, source, data, code=2)


def test_masks_in_any_format_and_images_without_one_are_named(tmp_path, capsys):
    source = tmp_path / "mine"
    for i, ending in enumerate(["png", "gif", "webp", "jfif", "jp2", "tga", "bmp"] + ["png"] * 5):
        image(source / "images" / f"p{i}.{ending}", i)
    for i, ending in enumerate(["gif", "png", "bmp", "tif", "png", "pgm", "jp2"]):
        mask(source / "masks" / f"p{i}.{ending}", [0, 1])
    for name in ("a.xyz", "b.nd2", "c.txt", "d.czi"):
        (source / "images" / name).write_bytes(b"?")
    (source / "masks" / "p7.npy").write_bytes(b"?")
    said = prepared(capsys, source, tmp_path / "data")
    assert "note: 5 images have no mask, so unlabelled: p10.png, p11.png, p7.png and 2 more." in said
    passed = "passed over, as no image ends so"
    assert f"note: {source / 'images'}: 4 files were {passed}: a.xyz, b.nd2, c.txt and 1 more." in said
    assert f"note: {source / 'masks'}: 1 file was {passed}: p7.npy." in said
    found = load_prepared(tmp_path / "data")
    assert sum(len(found.labelled(part)) for part in PARTS) == 7
