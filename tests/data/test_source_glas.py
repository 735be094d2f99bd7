"""GlaS on a made-up folder of its layout: official parts, patients and grades in Grade.csv."""

from pathlib import Path

import numpy as np
import pytest

from mpamatch.commands import prepare
from mpamatch.data.prepared import PARTS, load_prepared
from mpamatch.data.sources import glas
from mpamatch.errors import InputError
from tests.data.raw import arguments, image, labels, mask

CLASSES = {"background", "gland"}


def warwick_folder(root: Path) -> Path:
    """Two training images of each patient 1..5 and a test image of each patient 1..4."""
    source = root / "Warwick"
    inner = source / "Warwick_QU_Dataset"
    rows = ["name, patient ID , Grade (GlaS),grade (Sirinukunwattana et al. 2015)"]
    for i in range(10):
        image(inner / f"train_{i + 1}.bmp", i)
        mask(inner / f"train_{i + 1}_anno.bmp", [0, 1, 7])
        rows.append(f"train_{i + 1},{i // 2 + 1}, {['benign', 'Malignant'][i % 2]},healthy")
    for i, name in enumerate(["testA_1", "testA_2", "testB_1", "testB_2"]):
        image(inner / f"{name}.bmp", 50 + i)
        mask(inner / f"{name}_anno.bmp", [0, 200])
        rows.append(f"{name},{i + 1}, benign, healthy")
    (inner / "Grade.csv").write_text("\ufeff" + "\n".join(rows) + "\n\n", encoding="utf-8")
    return source


def prepare_words(root: Path, data: Path) -> list[str]:
    return ["glas", str(warwick_folder(root)), str(data)]


@pytest.fixture
def warwick(tmp_path) -> Path:
    return warwick_folder(tmp_path)


def test_glas_official_parts(warwick):
    items = {one.stem: one for one in glas.raw_set(warwick).items}
    parts = {part: [stem for stem, one in items.items() if one.part == part] for part in PARTS}
    assert sorted(parts["test"]) == ["testA_1", "testA_2", "testB_1", "testB_2"]
    assert len(parts["validation"]) == 2
    assert len(parts["train"]) == 8
    assert not {items[s].group for s in parts["validation"]} & {items[s].group for s in parts["train"]}
    assert items["train_3"].group == items["testA_2"].group == "patient-2"
    assert labels(glas.raw_set(warwick))["testB_1"] == [0, 1]


def test_glas_keeps_the_numbers_of_its_glands(warwick, tmp_path):
    """Training masks hold 1 and 7; of test masks that hold 200 alone it is the one gland."""
    for task in ("gland", "grade"):
        items = {one.stem: one for one in glas.raw_set(warwick, task).items}
        assert items["train_1"].instances[0, :4].tolist() == [0, 1, 2, 0]
        assert items["testB_1"].instances[0, :3].tolist() == [0, 1, 0]
        assert all(np.array_equal(one.instances > 0, one.label > 0) for one in items.values())


def test_glas_masks_that_tell_no_glands_apart_give_no_numbers(warwick):
    inner = warwick / "Warwick_QU_Dataset"
    for i in range(10):
        mask(inner / f"train_{i + 1}_anno.bmp", [0, 255])
    raw = glas.raw_set(warwick)
    assert all(one.instances is None for one in raw.items)
    assert any("no mask holds two numbers" in one for one in raw.findings.remarks)


def test_glas_grades(warwick):
    raw = glas.raw_set(warwick, "grade")
    assert [one.name for one in raw.classes] == ["background", "benign", "malignant"]
    found = labels(raw)
    assert found["train_1"] == [0, 1]
    assert found["train_2"] == [0, 2]


def test_glas_command_says_that_parts_share_patients_and_regroup_mends_it(warwick, tmp_path, capsys):
    prepare.run(arguments(kind="glas", source=warwick, dest=tmp_path / "official"))
    assert "official GlaS parts share patients" in capsys.readouterr().out
    assert "4 groups are in more than one part" in load_prepared(tmp_path / "official").note
    prepare.run(arguments(kind="glas", source=warwick, dest=tmp_path / "mended", regroup=True))
    mended = load_prepared(tmp_path / "mended")
    assert mended.note == ""
    assert "share" not in capsys.readouterr().out
    groups = [{mended.groups[name] for name in mended.parts[part]} for part in PARTS]
    assert [len(one) for one in groups] == [3, 1, 1]
    assert len(set.union(*groups)) == 5
    assert mended.microns_per_pixel == 0.62


def test_glas_png_without_grade_csv(tmp_path):
    for name in ("train_1", "train_2", "testA_1"):
        image(tmp_path / f"{name}.png")
        mask(tmp_path / f"{name}_anno.png", [0, 255])
    raw = glas.raw_set(tmp_path)
    assert {one.stem: one.group for one in raw.items} == {n: n for n in ("testA_1", "train_1", "train_2")}
    assert "no Grade.csv" in raw.remarks[0]
    with pytest.raises(InputError, match=r"has no Grade\.csv"):
        glas.raw_set(tmp_path, "grade")


def test_glas_bad_input(warwick, tmp_path):
    table = warwick / "Warwick_QU_Dataset" / "Grade.csv"
    rows = table.read_text(encoding="utf-8-sig").splitlines()
    table.write_text("\n".join(rows[:1] + rows[2:]))
    assert "train_1" in glas.raw_set(warwick).remarks[0]
    with pytest.raises(InputError, match="no row for train_1"):
        list(glas.raw_set(warwick, "grade").items)
    table.write_text("\n".join([rows[0], "train_1,3"]))
    with pytest.raises(InputError, match="fewer columns"):
        glas.raw_set(warwick)
    table.write_text("image,patient ID\n")
    with pytest.raises(InputError, match="no column 'name'"):
        glas.raw_set(warwick)
    mask(table.with_name("train_99_anno.bmp"), [0])
    with pytest.raises(InputError, match=r"train_99_anno\.bmp: is a mask without image"):
        glas.raw_set(warwick)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no train_N"):
        glas.raw_set(tmp_path / "empty")
    with pytest.raises(InputError, match="did you mean 'grade'"):
        glas.raw_set(warwick, "grades")


@pytest.mark.parametrize("spoil", [b"\xe9", b'"' + b"x" * 200_000], ids=["latin", "long"])
def test_a_table_that_is_no_csv_in_utf8_is_named(warwick, spoil):
    """A name with an accent, saved by a spreadsheet in Latin-1; and what is no table."""
    path = next(warwick.rglob("Grade.csv"))
    path.write_bytes(path.read_bytes() + spoil)
    with pytest.raises(InputError, match=rf"^{path}: is no t"):
        glas.raw_set(warwick)
