"""KPIs on a made-up folder of its layout: cases, parts by folder, JPEG masks."""

import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mpamatch.cli import main
from mpamatch.commands import prepare
from mpamatch.data.checks import check
from mpamatch.data.prepared import PARTS, load_prepared
from mpamatch.data.sources import kpi
from mpamatch.errors import InputError
from tests.data.raw import SIZE, arguments, image

CLASSES = {"background", "glomerulus"}


def kpi_drawn(seed: int) -> np.ndarray:
    """(H, W) bool: a block at a place of the seed's."""
    label = np.zeros((SIZE[1], SIZE[0]), dtype=bool)
    label[4:13, 3 + seed % 8 : 13 + seed % 8] = True
    return label


def kpi_case(folder: Path, names: list[str], ending: str = "_mask") -> None:
    for i, name in enumerate(names):
        image(folder / "img" / f"{name}_img.jpg", zlib.crc32(name.encode()))
        (folder / "mask").mkdir(exist_ok=True)
        Image.fromarray(np.uint8(255) * kpi_drawn(i)).save(folder / "mask" / f"{name}{ending}.jpg", quality=70)


def kpi_folder(root: Path) -> Path:
    """KPIs: five training cases of two groups and a test case, and a folder of slides that is not read."""
    source = root / "KPIs24"
    training = source / "KPIs24 Training Data" / "Task1_patch_level" / "data"
    for number in (116, 117, 118):
        kpi_case(training / "56Nx" / f"12_{number}", [f"56Nx_12_{number}_{i}_4096_0" for i in range(2)])
    for number in (361, 362):
        kpi_case(training / "DN" / f"11-{number}", [f"11-{number}_{i}_0_0" for i in range(2)], ending="_img")
    test = source / "KPIs24 Testing Data" / "Task1_patch_level" / "test"
    kpi_case(test / "56Nx" / "12-299", ["12-299_37_11264_1024", "12-299_38_0_0"])
    (source / "KPIs24 Training Data" / "Task2_WSI_level" / "56Nx").mkdir(parents=True)
    (source / "KPIs24 Training Data" / "Task2_WSI_level" / "56Nx" / "12-116_wsi.tiff").write_bytes(b"a slide")
    return source


def prepare_words(root: Path, data: Path) -> list[str]:
    return ["kpi", str(kpi_folder(root)), str(data)]


@pytest.fixture
def kidneys(tmp_path) -> Path:
    return kpi_folder(tmp_path)


def test_cases_and_parts(kidneys):
    items = {one.stem: one for one in kpi.raw_set(kidneys).items}
    assert len(items) == kpi.raw_set(kidneys).count == 12
    assert {one.group for one in items.values()} == {
        *(f"56Nx-12-{number}" for number in (116, 117, 118, 299)),
        *(f"DN-11-{number}" for number in (361, 362)),
    }
    assert {one.group for one in items.values() if one.part == "test"} == {"56Nx-12-299"}
    validated = {one.group for one in items.values() if one.part == "validation"}
    assert len(validated) == 1, "a fifth of five cases"
    assert {one.group for one in items.values() if one.part == "train"}.isdisjoint(validated)
    assert {one.part for one in kpi.raw_set(kidneys, regroup=True).items} == {None}


def test_an_official_validation_part_is_kept(kidneys):
    kpi_case(kidneys / "KPIs24_Validation_Data" / "Task1_patch_level" / "validation" / "DN" / "11-370", ["a", "b"])
    items = list(kpi.raw_set(kidneys).items)
    assert {one.group for one in items if one.part == "validation"} == {"DN-11-370"}
    assert sum(one.part == "train" for one in items) == 10


def test_the_training_folder_alone_is_drawn_by_case(kidneys):
    source = kidneys / "KPIs24 Training Data" / "Task1_patch_level" / "data"
    items = list(kpi.raw_set(source).items)
    assert {one.part for one in items} == {None}
    assert {one.group for one in items} >= {"56Nx-12-116", "DN-11-362"}
    assert {one.group for one in kpi.raw_set(source / "DN").items} == {"11-361", "11-362"}
    assert {one.group for one in kpi.raw_set(source / "DN" / "11-361").items} == {"11-361"}


def test_jpeg_masks_take_the_nearer_of_two_values(kidneys):
    path = next(kidneys.rglob("56Nx_12_116_1_4096_0_mask.jpg"))
    with Image.open(path) as stored:
        assert len(np.unique(np.asarray(stored))) > 2
    items = {one.stem: one for one in kpi.raw_set(kidneys).items}
    assert np.array_equal(items["56Nx-12-116-56Nx_12_116_1_4096_0"].label, kpi_drawn(1))
    assert np.array_equal(items["DN-11-361-11-361_0_0_0"].label, kpi_drawn(0)), "a mask that is named like its image"


def test_prepared_checked_and_split_by_case(kidneys, tmp_path, capsys):
    data = tmp_path / "data"
    next(kidneys.rglob("56Nx_12_116_1_4096_0_mask.jpg")).unlink()
    assert main(["prepare", "kpi", str(kidneys), str(data), "--microns-per-pixel", "0.5"]) == 0
    said = capsys.readouterr().out
    assert "1 patch has no mask, so unlabelled: 56Nx_12_116_1_4096_0_img.jpg." in said
    assert f"--recipe kpi --data.root {data}" in said
    prepared = load_prepared(data)
    assert sum(len(prepared.labelled(part)) for part in PARTS) == 11
    assert prepared.microns_per_pixel == 0.5
    assert not any(problem.blocking for problem in check(data))
    assert main(["split", str(data), "--labelled", "2"]) == 0
    said = capsys.readouterr().out
    assert "2 of 4 patients" in said
    assert "patient of their own" not in said


def test_bad_input(kidneys, tmp_path):
    with pytest.raises(InputError, match="nowhere: no such folder"):
        kpi.raw_set(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: holds no image; KPIs has"):
        kpi.raw_set(tmp_path / "empty")
    folder = next(kidneys.rglob("12_116"))
    twice = image(folder / "img" / "56Nx_12_116_0_4096_0.png")
    with pytest.raises(InputError, match="has the same name as"):
        kpi.raw_set(kidneys)
    twice.unlink()
    stray = folder / "mask" / "stray_mask.jpg"
    Image.new("L", SIZE).save(stray)
    with pytest.raises(InputError, match=r"stray_mask\.jpg: is a mask without image"):
        kpi.raw_set(kidneys)
    stray.unlink()
    Image.new("L", (SIZE[0], 20)).save(folder / "mask" / "56Nx_12_116_0_4096_0_mask.jpg")
    with pytest.raises(
        InputError, match=r"56Nx_12_116_0_4096_0_img\.jpg: the image is 24×18 pixels and its mask 24×20"
    ):
        prepare.run(arguments(kind="kpi", source=kidneys, dest=tmp_path / "out"))
    (folder / "mask" / "56Nx_12_116_0_4096_0_mask.jpg").write_bytes(b"\xff\xd8 cut")
    with pytest.raises(InputError, match=r"56Nx_12_116_0_4096_0_mask\.jpg: cannot be decoded"):
        prepare.run(arguments(kind="kpi", source=kidneys, dest=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_case_in_two_parts_is_refused(kidneys, tmp_path):
    kpi_case(kidneys / "KPIs24 Testing Data" / "Task1_patch_level" / "test" / "56Nx" / "12-116", ["new"])
    with pytest.raises(InputError, match="the group '56Nx-12-116' is in"):
        prepare.run(arguments(kind="kpi", source=kidneys, dest=tmp_path / "out"))
    prepare.run(arguments(kind="kpi", source=kidneys, dest=tmp_path / "out", regroup=True))
