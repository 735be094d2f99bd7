"""EBHI-Seg on a made-up folder of its layout: tasks, soft masks, patients in names."""

from pathlib import Path

import pytest

from mpamatch.commands import prepare
from mpamatch.data.prepared import PARTS, load_prepared
from mpamatch.data.sources import ebhi_seg
from mpamatch.errors import InputError
from tests.data.raw import arguments, image, labels, mask

CLASSES = {"background", "gland"}


def ebhi_folder(root: Path) -> Path:
    """Three biopsies of each lesion: two of one patient, in two spellings, and one of another; a mask is missing."""
    for i, lesion in enumerate(ebhi_seg.LESIONS):
        for j, name in enumerate(("GT2012508-1-400-001", "GTXC2012508-1-400-002", f"GTgt201300{i}-1-400-001")):
            image(root / lesion / "image" / f"{name}.png", 10 * i + j)
            mask(root / lesion / "label" / f"{name}.png", [0, 3, 127, 128, 255])
    (root / "Low-grade IN" / "label" / "GT2012508-1-400-001.png").unlink()
    return root


def prepare_words(root: Path, data: Path) -> list[str]:
    return ["ebhi-seg", str(ebhi_folder(root / "EBHI-SEG")), str(data)]


@pytest.fixture
def ebhi(tmp_path) -> Path:
    return ebhi_folder(tmp_path)


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
@pytest.mark.slow
def test_real_ebhi_seg(ebhi_seg, tmp_path, task, groups):
    assert prepare.run(arguments(kind="ebhi-seg", source=ebhi_seg, dest=tmp_path / "set", task=task)) == 0
    prepared = load_prepared(tmp_path / "set")
    assert len(set(prepared.groups.values())) == groups
    by_part = [{prepared.groups[name] for name in prepared.parts[part]} for part in PARTS]
    assert sum(map(len, by_part)) == groups, "no patient is in two parts"
    unlabelled = [name for part in PARTS for name in prepared.parts[part] if not prepared.mask_path(name)]
    assert len(unlabelled) == (0 if task == "cancer" else 2)
    assert set(unlabelled) <= set(prepared.parts["train"])
