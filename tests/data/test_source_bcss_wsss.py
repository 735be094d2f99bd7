"""BCSS-WSSS on a made-up folder of its layout: image-level labels in names, palette masks."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mpamatch.cli import main
from mpamatch.commands import prepare
from mpamatch.data.checks import check
from mpamatch.data.prepared import PARTS, load_prepared, weak_training_lists
from mpamatch.data.sources import bcss_wsss
from mpamatch.errors import InputError
from tests.data.raw import SIZE, arguments, image

CLASSES = {"background", "tumour", "stroma", "lymphocytes", "necrosis"}
PALETTE = [255, 0, 0, 0, 255, 0, 0, 0, 255, 153, 0, 255, 255, 255, 255]
REGION = "DX1_xmin45749_ymin25055_MPP-0.2500"


def palette_mask(path: Path, indices: list[int]) -> Path:
    """A palette mask whose columns take `indices` in turn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    row = np.resize(np.array(indices, dtype=np.uint8), SIZE[0])
    stored = Image.fromarray(np.repeat(row[None], SIZE[1], axis=0), mode="P")
    stored.putpalette(PALETTE)
    stored.save(path)
    return path


def breast_folder(root: Path) -> Path:
    """Five training patches of two patients, two validation patches, a test patch of a third and a fourth."""
    source = root / "BCSS-WSSS"
    for i, digits in enumerate(("1101", "0010", "1000", "0111")):
        image(source / "train" / f"TCGA-A1-A0SK-{REGION}+{i}[{digits}].png", i)
    image(source / "train" / f"TCGA-A2-A04P-{REGION}+0[1111].png", 9)
    for i, indices in enumerate(([0, 1, 4], [2, 3, 2])):
        image(source / "val" / "img" / f"TCGA-EW-A1PB-{REGION}+{i}.png", 20 + i)
        palette_mask(source / "val" / "mask" / f"TCGA-EW-A1PB-{REGION}+{i}.png", indices)
    image(source / "test" / "img" / f"TCGA-D8-A27F-{REGION}+0.png", 30)
    palette_mask(source / "test" / "mask" / f"TCGA-D8-A27F-{REGION}+0.png", [0, 1, 2, 3, 4])
    (source / "Readme.txt").write_text("words")
    return source


def prepare_words(root: Path, data: Path) -> list[str]:
    return ["bcss-wsss", str(breast_folder(root)), str(data)]


@pytest.fixture
def breast(tmp_path) -> Path:
    return breast_folder(tmp_path)


def test_image_level_labels_masks_and_parts(breast):
    for source in (breast, breast.parent):
        items = {one.stem: one for one in bcss_wsss.raw_set(source).items}
        assert len(items) == bcss_wsss.raw_set(source).count == 8
        present = {stem[-1]: one.present for stem, one in items.items() if one.group == "TCGA-A1-A0SK"}
        assert present == {"0": (1, 2, 4), "1": (3,), "2": (1,), "3": (2, 3, 4)}
        test = items[f"test-TCGA-D8-A27F-{REGION}+0"]
        assert test.label[0, :5].tolist() == [1, 2, 3, 4, 255]
        assert sorted(test.present) == [1, 2, 3, 4]
        assert sorted(items[f"validation-TCGA-EW-A1PB-{REGION}+0"].present) == [1, 2]
        assert [sum(one.part == part for one in items.values()) for part in PARTS] == [5, 2, 1]
        assert all((one.label is None) == (one.part == "train") for one in items.values())
    assert [one.name for one in bcss_wsss.CLASSES] == ["background", "tumour", "stroma", "lymphocytes", "necrosis"]


def test_other_spellings(breast):
    (breast / "train").rename(breast / "moved")
    (breast / "training").mkdir()
    (breast / "moved").rename(breast / "training" / "img")
    (breast / "val").rename(breast / "valid")
    spaced = breast / "training" / "img" / f"TCGA-A1-A0SK-{REGION}+0[1101].png"
    spaced.rename(spaced.with_name(f"TCGA-A1-A0SK-{REGION}+0[1, 1, 0, 1].png"))
    items = {one.stem: one for one in bcss_wsss.raw_set(breast).items}
    assert len(items) == 8
    assert items[f"train-TCGA-A1-A0SK-{REGION}+0"].present == (1, 2, 4)


def test_prepared_and_checked(breast, tmp_path, capsys):
    data = tmp_path / "data"
    assert main(["prepare", "bcss-wsss", str(breast), str(data)]) == 0
    said = capsys.readouterr().out
    assert "image-level labels" in said
    assert "mpamatch split" not in said, "there is nothing to choose"
    prepared = load_prepared(data)
    assert prepared.note == ""
    assert len(weak_training_lists(prepared, None)[0]) == 5
    stored = json.loads((data / "present.json").read_text())
    assert stored[f"train-TCGA-A1-A0SK-{REGION}+0.png"] == ["tumour", "stroma", "necrosis"]
    with Image.open(data / "masks" / f"test-TCGA-D8-A27F-{REGION}+0.png") as mask:
        assert mask.mode == "L"
        assert np.unique(np.asarray(mask)).tolist() == [1, 2, 3, 4, 255]
    assert not any(problem.blocking for problem in check(data))


def test_patients_in_two_parts_are_kept_and_said(breast, tmp_path):
    image(breast / "test" / "img" / f"TCGA-A1-A0SK-{REGION}+9.png", 40)
    palette_mask(breast / "test" / "mask" / f"TCGA-A1-A0SK-{REGION}+9.png", [0])
    prepare.run(arguments(kind="bcss-wsss", source=breast, dest=tmp_path / "data"))
    assert "1 groups are in more than one part" in load_prepared(tmp_path / "data").note


def renamed(path: Path, name: str) -> None:
    path.rename(path.with_name(name))


def emptied(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


BAD = {
    "digits": (lambda s: image(s / "train" / f"TCGA-A1-A0SK-{REGION}+5[110].png"), r"names '\[110\]': the name must"),
    "none": (lambda s: image(s / "train" / f"TCGA-A1-A0SK-{REGION}+5.png"), r"\+5\.png: has no image-level label"),
    "twice": (lambda s: image(s / "train" / f"TCGA-A1-A0SK-{REGION}+0[0000].png"), "another image has the name"),
    "patient": (lambda s: image(s / "train" / "patch[1000].png"), r"patch\[1000\]\.png: names no patient"),
    "stray": (lambda s: palette_mask(s / "val" / "mask" / "x.png", [0]), r"x\.png: is a mask without image"),
    "no mask": (lambda s: image(s / "test" / "img" / "TCGA-D8-A27F-x.png"), r"x\.png: has no mask: add"),
    "index": (
        lambda s: palette_mask(s / "test" / "mask" / f"TCGA-D8-A27F-{REGION}+0.png", [0, 5]),
        r"mask/TCGA-D8-A27F-.*\+0\.png: holds the index 5; BCSS-WSSS has 0 to 4",
    ),
    "broken": (
        lambda s: (s / "test" / "mask" / f"TCGA-D8-A27F-{REGION}+0.png").write_bytes(b"\x89PNG cut"),
        r"mask/TCGA-D8-A27F-.*\+0\.png: cannot be decoded",
    ),
    "size": (
        lambda s: Image.new("L", (SIZE[0], 20)).save(s / "val" / "mask" / f"TCGA-EW-A1PB-{REGION}+1.png"),
        r"img/TCGA-EW-A1PB-.*\+1\.png: the image is 24×18 pixels and its mask 24×20",
    ),
    "no val": (lambda s: renamed(s / "val", "other"), "val: no such folder"),
    "no mask folder": (lambda s: renamed(s / "val" / "mask", "other"), "mask: no such folder"),
    "no train": (lambda s: renamed(s / "train", "other"), "train: no such folder; BCSS-WSSS has train, val and test"),
    "empty": (lambda s: emptied(s / "train"), "train: holds no image"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_named_and_nothing_is_written(breast, tmp_path, what):
    spoil, says = BAD[what]
    spoil(breast)
    with pytest.raises(InputError, match=says):
        prepare.run(arguments(kind="bcss-wsss", source=breast, dest=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
