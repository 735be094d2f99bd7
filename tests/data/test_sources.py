import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mpamatch.commands import prepare
from mpamatch.data.prepared import PARTS, load_prepared
from mpamatch.data.sources import ebhi_seg, folder, glas, synthetic
from mpamatch.errors import InputError
from mpamatch.images import read_mask
from tests.data.raw import SIZE, arguments, image, labels, mask

# EBHI-Seg


@pytest.fixture
def ebhi(tmp_path) -> Path:
    for i, lesion in enumerate(ebhi_seg.LESIONS):
        for j, name in enumerate(("GT2012508-1-400-001", "GTXC2012508-1-400-002", f"GTgt201300{i}-1-400-001")):
            image(tmp_path / lesion / "image" / f"{name}.png", 10 * i + j)
            mask(tmp_path / lesion / "label" / f"{name}.png", [0, 3, 127, 128, 255])
    (tmp_path / "Low-grade IN" / "label" / "GT2012508-1-400-001.png").unlink()
    return tmp_path


def test_ebhi_seg_tasks(ebhi):
    gland = ebhi_seg.raw_set(ebhi, "gland")
    assert gland.count == 15
    assert not any("adenocarcinoma" in one.stem for one in gland.items)
    cancer = ebhi_seg.raw_set(ebhi, "cancer")
    assert [one.name for one in cancer.classes] == ["background", "cancer"]
    assert set(labels(cancer)) == {
        "adenocarcinoma-GT2012508-1-400-001",
        "adenocarcinoma-GTXC2012508-1-400-002",
        "adenocarcinoma-GTgt2013005-1-400-001",
    }
    found = labels(ebhi_seg.raw_set(ebhi, "classes"))
    assert found["normal-GTXC2012508-1-400-002"] == [0, 1]
    assert found["high-grade-in-GTXC2012508-1-400-002"] == [0, 4]
    assert found["adenocarcinoma-GTXC2012508-1-400-002"] == [0, 6]
    assert found["low-grade-in-GT2012508-1-400-001"] is None
    assert len(found) == 18


def test_ebhi_seg_masks_are_cut_above_127_and_prefixes_are_one_patient(ebhi):
    items = {one.stem: one for one in ebhi_seg.raw_set(ebhi, "all").items}
    assert len(items) == 18
    assert items["polyp-GT2012508-1-400-001"].label[0, :5].tolist() == [0, 0, 0, 1, 1]
    assert {one.group for one in items.values()} == {"2012508"} | {f"201300{i}" for i in range(6)}


def test_ebhi_seg_bad_input(ebhi):
    with pytest.raises(InputError, match="did you mean 'gland'"):
        ebhi_seg.raw_set(ebhi, "glands")
    with pytest.raises(InputError, match="nowhere: no such folder"):
        ebhi_seg.raw_set(ebhi / "nowhere")
    stray = mask(ebhi / "Polyp" / "label" / "GT2012999-1-400-001.png", [0])
    with pytest.raises(InputError, match="is a mask without image"):
        ebhi_seg.raw_set(ebhi, "all")
    stray.rename(stray.with_name("x.png"))
    image(ebhi / "Polyp" / "image" / "x.png")
    with pytest.raises(InputError, match=r"x\.png: names no patient"):
        list(ebhi_seg.raw_set(ebhi, "all").items)


@pytest.mark.real
@pytest.mark.parametrize(("task", "groups"), [("gland", 172), ("cancer", 60), ("classes", 217)])
def test_real_ebhi_seg(ebhi_seg, tmp_path, task, groups):
    assert prepare.run(arguments(kind="ebhi-seg", source=ebhi_seg, dest=tmp_path / "set", task=task)) == 0
    prepared = load_prepared(tmp_path / "set")
    assert len(set(prepared.groups.values())) == groups
    by_part = [{prepared.groups[name] for name in prepared.parts[part]} for part in PARTS]
    assert sum(map(len, by_part)) == groups, "no patient is in two parts"
    unlabelled = [name for part in PARTS for name in prepared.parts[part] if not prepared.mask_path(name)]
    assert len(unlabelled) == (0 if task == "cancer" else 2)
    assert set(unlabelled) <= set(prepared.parts["train"])


# GlaS


@pytest.fixture
def warwick(tmp_path) -> Path:
    """Two training images of each patient 1..5 and a test image of each patient 1..4."""
    source = tmp_path / "Warwick"
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


def test_glas_official_parts(warwick):
    items = {one.stem: one for one in glas.raw_set(warwick).items}
    parts = {part: [stem for stem, one in items.items() if one.part == part] for part in PARTS}
    assert sorted(parts["test"]) == ["testA_1", "testA_2", "testB_1", "testB_2"]
    assert len(parts["validation"]) == 2
    assert len(parts["train"]) == 8
    assert not {items[s].group for s in parts["validation"]} & {items[s].group for s in parts["train"]}
    assert items["train_3"].group == items["testA_2"].group == "patient-2"
    assert labels(glas.raw_set(warwick))["testB_1"] == [0, 1]


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


# Any folder


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
    assert "1 images have no mask" in raw.remarks[0]


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


# Synthetic and the command


def test_synthetic_is_written_and_repeats(tmp_path, capsys):
    for name in ("one", "two"):
        prepare.run(arguments(kind="synthetic", dest=tmp_path / name, images=12, size=48, seed=3))
    assert "mpamatch split" in capsys.readouterr().out
    one, two = (load_prepared(tmp_path / name) for name in ("one", "two"))
    assert one.parts == two.parts
    assert len(set(one.groups.values())) == 3
    for name in one.groups:
        assert one.image_path(name).read_bytes() == two.image_path(name).read_bytes()
    for options in ({"images": 3}, {"size": 8}, {"seed": -1}):
        with pytest.raises(InputError, match=f"--{next(iter(options))}"):
            synthetic.raw_set(**options)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"kind": "galas"}, "did you mean 'glas'"),
        ({"kind": "folder", "task": "gland"}, "--task: is an option of busi, ebhi-seg, glas, not of folder"),
        ({"kind": "glas", "mask_values": "0:a,1:b"}, "--mask-values: is an option of folder, not of glas"),
        ({"kind": "ebhi-seg", "images": 3}, "--images: is an option of synthetic"),
        ({"kind": "folder", "source": None}, "name the source folder"),
        ({"kind": "folder", "instances": True, "microns_per_pixel": -1.0}, "--microns-per-pixel -1"),
    ],
)
def test_prepare_refuses(plain, given, named):
    with pytest.raises(InputError, match=named):
        prepare.run(arguments(**({"source": plain, "dest": plain / "out"} | given)))
    assert not (plain / "out").exists()


def test_prepare_folder_end_to_end(plain, capsys):
    prepare.run(arguments(kind="folder", source=plain, dest=plain / "out", instances=True, microns_per_pixel=0.25))
    about = json.loads((plain / "out" / "dataset.json").read_text())
    assert about["microns_per_pixel"] == 0.25
    assert "give --group-regex" in capsys.readouterr().out
