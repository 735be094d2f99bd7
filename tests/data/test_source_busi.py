"""BUSI on a made-up folder of its layout: masks united, normal images, no patients."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mpamatch.cli import main
from mpamatch.commands import prepare
from mpamatch.data.checks import check
from mpamatch.data.prepared import PARTS, load_prepared
from mpamatch.data.sources import busi
from mpamatch.errors import InputError
from tests.data.raw import SIZE, arguments, image, labels, mask

CLASSES = {"background", "lesion"}


def busi_folder(root: Path) -> Path:
    """BUSI as the archive unpacks: six images of each kind, one with two masks."""
    source = root / "Dataset_BUSI_with_GT"
    for k, kind in enumerate(("benign", "malignant", "normal")):
        for i in range(1, 7):
            image(source / kind / f"{kind} ({i}).png", 10 * k + i)
            mask(source / kind / f"{kind} ({i})_mask.png", [0] if kind == "normal" else [0, 0, 255])
    mask(source / "benign" / "benign (1)_mask_1.png", [255, 0, 0])
    return source


def prepare_words(root: Path, data: Path) -> list[str]:
    return ["busi", str(busi_folder(root)), str(data)]


@pytest.fixture
def ultrasound(tmp_path) -> Path:
    """The folder that holds Dataset_BUSI_with_GT; some masks are missing."""
    source = busi_folder(tmp_path)
    (source / "malignant" / "malignant (3)_mask.png").unlink()
    (source / "normal" / "normal (2)_mask.png").unlink()
    return tmp_path


def test_the_masks_of_an_image_are_united(ultrasound):
    for source in (ultrasound, ultrasound / "Dataset_BUSI_with_GT"):
        items = {one.stem: one for one in busi.raw_set(source).items}
        assert items["benign-1"].label[0, :6].tolist() == [1, 0, 1, 1, 0, 1]
        assert items["benign-2"].label[0, :6].tolist() == [0, 0, 1, 0, 0, 1]
        assert len(items) == busi.raw_set(source).count == 18


def test_tasks(ultrasound):
    lesion = labels(busi.raw_set(ultrasound))
    assert lesion["benign-4"] == lesion["malignant-4"] == [0, 1]
    raw = busi.raw_set(ultrasound, "classes")
    assert [one.name for one in raw.classes] == ["background", "benign", "malignant"]
    found = labels(raw)
    assert found["benign-4"] == [0, 1]
    assert found["malignant-4"] == [0, 2]
    assert found["normal-1"] == found["normal-2"] == [0], "background with a mask and without one"
    assert found["malignant-3"] is None
    assert any("malignant (3).png" in remark for remark in raw.remarks)


def test_one_bit_masks_of_0_and_1_count(ultrasound):
    drawn = np.zeros((SIZE[1], SIZE[0]), dtype=bool)
    drawn[3:9] = True
    Image.fromarray(drawn).save(ultrasound / "Dataset_BUSI_with_GT" / "benign" / "benign (2)_mask.png")
    items = {one.stem: one for one in busi.raw_set(ultrasound).items}
    assert np.array_equal(items["benign-2"].label, drawn)


def test_equal_pictures_are_one_group(ultrasound):
    """Whatever their files: a copy saved as BMP under another kind."""
    root = ultrasound / "Dataset_BUSI_with_GT"
    Image.open(root / "benign" / "benign (2).png").save(root / "malignant" / "malignant (9).bmp")
    items = {one.stem: one for one in busi.raw_set(ultrasound).items}
    assert items["malignant-9"].group == items["benign-2"].group == "benign-2"
    assert len({one.group for one in items.values()}) == len(items) - 1


def test_prepared_checked_and_split_with_a_word_on_patients(ultrasound, tmp_path, capsys):
    data = tmp_path / "data"
    assert main(["prepare", "busi", str(ultrasound), str(data), "--task", "classes"]) == 0
    said = capsys.readouterr().out
    assert "publishes no patient ids" in said
    assert f"--recipe busi --data.root {data}" in said
    prepared = load_prepared(data)
    assert [len(prepared.parts[part]) for part in PARTS] == [12, 3, 3]
    assert not any(problem.blocking for problem in check(data))
    assert main(["split", str(data), "--labelled", "50%"]) == 0
    assert "18 of 18 images each count as a patient of their own" in capsys.readouterr().out


def test_bad_input(ultrasound, tmp_path):
    root = ultrasound / "Dataset_BUSI_with_GT"
    with pytest.raises(InputError, match="did you mean 'lesion'"):
        busi.raw_set(ultrasound, "lesions")
    with pytest.raises(InputError, match="nowhere: no such folder"):
        busi.raw_set(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"benign: no such folder; BUSI has benign, malignant and normal"):
        busi.raw_set(root / "benign")
    stray = mask(root / "benign" / "benign (77)_mask_1.png", [255])
    with pytest.raises(InputError, match=r"benign \(77\)_mask_1\.png: is a mask without image"):
        busi.raw_set(ultrasound)
    stray.unlink()
    twice = image(root / "benign" / "benign (1).bmp")
    with pytest.raises(InputError, match="has the same name as"):
        busi.raw_set(ultrasound)
    twice.unlink()
    Image.new("L", (SIZE[0] + 1, SIZE[1])).save(root / "benign" / "benign (1)_mask_1.png")
    with pytest.raises(InputError, match=r"benign \(1\)_mask_1\.png: is 25×18 pixels, its image 24×18"):
        list(busi.raw_set(ultrasound).items)
    (root / "benign" / "benign (1)_mask_1.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"benign \(1\)_mask_1\.png: cannot be decoded"):
        prepare.run(arguments(kind="busi", source=ultrasound, dest=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    for path in (root / "malignant").iterdir():
        path.unlink()
    (root / "malignant").rmdir()
    with pytest.raises(InputError, match="malignant: no such folder"):
        busi.raw_set(ultrasound)
