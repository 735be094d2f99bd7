"""ACDC on made-up folders of its layouts: NIfTI as distributed, HDF5 slices and volumes with lists."""

import importlib
from pathlib import Path

import numpy as np
import pytest

from mpamatch.cli import main
from mpamatch.commands import prepare
from mpamatch.data.checks import check
from mpamatch.data.prepared import PARTS, load_prepared
from mpamatch.data.sources import acdc
from mpamatch.errors import InputError

h5py = pytest.importorskip("h5py", reason="extra acdc is not installed")
nibabel = pytest.importorskip("nibabel", reason="extra acdc is not installed")

from tests.data.acdc_files import DEPTH, HEIGHT, WIDTH, acdc_folder, hdf5, nifti, slices, volume  # noqa: E402
from tests.data.raw import arguments  # noqa: E402

CLASSES = {"background", "right ventricle", "myocardium", "left ventricle"}


def prepare_words(root: Path, data: Path) -> list[str]:
    return ["acdc", str(acdc_folder(root)), str(data)]


@pytest.fixture
def distributed(tmp_path) -> Path:
    return acdc_folder(tmp_path)


def test_nifti_is_cut_into_slices_with_their_labels(distributed):
    raw = acdc.raw_set(distributed)
    items = {one.stem: one for one in raw.items}
    assert len(items) == raw.count == 7 * 2 * DEPTH
    _, label = volume(7)
    for z in range(DEPTH):
        one = items[f"patient003-frame12-slice{z:02d}"]
        assert one.group == "patient003"
        assert one.image.shape == (HEIGHT, WIDTH, 3)
        assert np.array_equal(one.label, label[z])
    assert [one.name for one in raw.classes] == ["background", "right ventricle", "myocardium", "left ventricle"]


def test_greys_are_cut_at_the_percentiles_of_the_frame(distributed):
    items = {one.stem: one for one in acdc.raw_set(distributed).items}
    image, _ = volume(2)
    low, high = np.percentile(image, (1, 99))
    assert high < 400, "the outlier does not set the white"
    for z in range(DEPTH):
        found = items[f"patient001-frame01-slice{z:02d}"].image
        wanted = np.clip((image[z] - low) / (high - low), 0, 1) * 255
        assert np.abs(found.astype(float) - wanted[..., None]).max() <= 0.501
    assert items["patient001-frame01-slice00"].image[0, 0].tolist() == [255, 255, 255]


def test_official_parts(distributed):
    items = list(acdc.raw_set(distributed).items)
    groups = {part: {one.group for one in items if one.part == part} for part in PARTS}
    assert groups["test"] == {"patient101", "patient102"}
    assert [len(groups[part]) for part in PARTS] == [4, 1, 2]
    assert {one.part for one in acdc.raw_set(distributed, regroup=True).items} == {None}
    assert {one.part for one in acdc.raw_set(distributed / "database" / "training").items} == {None}


def test_a_testing_folder_without_ground_truth_is_unlabelled_and_no_test_part(distributed):
    for path in distributed.rglob("patient10*_gt.nii.gz"):
        path.unlink()
    raw = acdc.raw_set(distributed)
    items = list(raw.items)
    assert {one.part for one in items} == {None}
    assert {one.group for one in items if one.label is None} == {"patient101", "patient102"}
    assert raw.remarks == ("4 frames have no ground truth and are unlabelled.",)


def test_hdf5_slices_and_volumes_give_the_same_pixels(tmp_path):
    slices(tmp_path / "a" / "ACDC_training_slices", 4)
    image, label = volume(8)
    hdf5(tmp_path / "b" / "patient004_frame01.h5", image=image.astype(np.float32), label=label)
    nibabel.save(nibabel.Nifti1Image(image.T, np.eye(4)), tmp_path / "patient004_frame01.nii")
    (tmp_path / "c").mkdir()
    (tmp_path / "patient004_frame01.nii").rename(tmp_path / "c" / "patient004_frame01.nii")
    found = [list(acdc.raw_set(tmp_path / name).items) for name in "abc"]
    assert [one.stem[-2:] for one in found[0]] == ["01", "02", "03"], "as the files say"
    assert [one.stem[-2:] for one in found[1]] == ["00", "01", "02"]
    for of_slices, of_volume, of_nifti in zip(*found, strict=True):
        assert np.array_equal(of_slices.image, of_volume.image)
        assert np.array_equal(of_slices.image, of_nifti.image)
        assert np.array_equal(of_slices.label, of_volume.label)
        assert of_nifti.label is None


def test_slices_stand_over_a_volume_and_lists_tell_the_parts(tmp_path):
    for patient in range(1, 5):
        slices(tmp_path / "data" / "slices", patient)
    for patient in (3, 4, 5):
        image, label = volume(2 * patient)
        hdf5(tmp_path / "data" / f"patient{patient:03d}_frame01.h5", image=image, label=label)
    (tmp_path / "val.list").write_text("patient003_frame01\n")
    (tmp_path / "test.list").write_text("patient004_frame01\npatient005_frame01\n")
    raw = acdc.raw_set(tmp_path)
    items = list(raw.items)
    assert len(items) == raw.count == 5 * DEPTH
    parts = {one.group: one.part for one in items}
    assert [parts[f"patient00{i}"] for i in range(1, 6)] == ["train", "train", "validation", "test", "test"]
    (tmp_path / "val.list").write_text("patient004_frame01\n")
    with pytest.raises(InputError, match=r"test\.list: lists patient004, whom .*val\.list lists too"):
        acdc.raw_set(tmp_path)


def test_prepared_checked_and_split_by_patient(distributed, tmp_path, capsys):
    data = tmp_path / "data"
    assert main(["prepare", "acdc", str(distributed), str(data)]) == 0
    assert f"--recipe acdc --data.root {data}" in capsys.readouterr().out
    prepared = load_prepared(data)
    assert [len(prepared.parts[part]) for part in PARTS] == [24, 6, 12]
    assert not any(problem.blocking for problem in check(data))
    assert main(["split", str(data), "--labelled", "1"]) == 0
    assert "1 of 4 patients, 6 of 24 images labelled" in capsys.readouterr().out


def test_a_constant_volume_is_black(tmp_path):
    flat = np.full((HEIGHT, WIDTH), 7, dtype=np.float32)
    hdf5(tmp_path / "patient001_frame01_slice_1.h5", image=flat, label=np.zeros((HEIGHT, WIDTH)))
    assert not next(iter(acdc.raw_set(tmp_path).items)).image.any()


def test_bad_folders(distributed, tmp_path):
    with pytest.raises(InputError, match="nowhere: no such folder"):
        acdc.raw_set(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: holds no patientNNN_frameNN\.nii\.gz"):
        acdc.raw_set(tmp_path / "empty")
    patient = distributed / "database" / "training" / "patient001"
    (patient / "patient001_frame01.nii.gz").unlink()
    with pytest.raises(InputError, match=r"patient001_frame01_gt\.nii\.gz: is a ground truth without image"):
        acdc.raw_set(distributed)
    slices(distributed, 9)
    with pytest.raises(InputError, match="name the folder of one form"):
        acdc.raw_set(distributed)
    slices(tmp_path / "one", 1)
    slices(tmp_path / "one" / "copy", 1)
    with pytest.raises(InputError, match=r"patient001_frame01_slice_1\.h5: is there as"):
        acdc.raw_set(tmp_path / "one")


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"label": np.zeros((20, 20))}, "holds no `image`"),
        ({"image": np.zeros((20, 20)), "label": np.zeros((20, 19))}, r"label has the shape \(20, 19\), its image"),
        ({"image": np.zeros((20, 20)), "label": np.full((20, 20), 4)}, "holds the label 4; ACDC has 0 to 3"),
        ({"image": np.zeros((20, 20)), "label": np.full((20, 20), 0.5)}, "holds the label 0.5"),
        ({"image": np.full((20, 20), np.nan), "label": np.zeros((20, 20))}, "greys that are no numbers"),
        ({"image": np.zeros((20, 8)), "label": np.zeros((20, 8))}, r"slice of shape \(20, 8\)"),
        ({"image": np.zeros((2, 20, 20)), "label": np.zeros((2, 20, 20))}, r"slice of shape \(2, 20, 20\)"),
    ],
)
def test_bad_slices_are_named_and_nothing_is_written(tmp_path, arrays, says):
    hdf5(tmp_path / "raw" / "patient001_frame01_slice_1.h5", **arrays)
    with pytest.raises(InputError, match=rf"patient001_frame01_slice_1\.h5: .*{says}"):
        prepare.run(arguments(kind="acdc", source=tmp_path / "raw", dest=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kept", [0, 60, 2000])
def test_unreadable_files_are_named(tmp_path, kept):
    """A file of nothing, one that ends in its header, one that ends in its data."""
    nifti(tmp_path / "nifti", 1)
    broken = tmp_path / "nifti" / "patient001" / "patient001_frame01.nii.gz"
    broken.write_bytes(broken.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"patient001_frame01\.nii\.gz: cannot be decoded"):
        list(acdc.raw_set(tmp_path / "nifti").items)
    slices(tmp_path / "hdf5", 1)
    broken = tmp_path / "hdf5" / "patient001_frame01_slice_2.h5"
    broken.write_bytes(broken.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"patient001_frame01_slice_2\.h5: cannot be decoded"):
        list(acdc.raw_set(tmp_path / "hdf5").items)


def test_a_library_that_is_missing_is_named(distributed, tmp_path, monkeypatch):
    def absent(name: str):
        raise ImportError(name)

    slices(tmp_path / "hdf5", 1)
    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(InputError, match=r"is read by nibabel, .* pip install 'mpamatch\[acdc\]'"):
        acdc.raw_set(distributed)
    with pytest.raises(InputError, match=r"slice_1\.h5: is read by h5py, .* pip install 'mpamatch\[acdc\]'"):
        list(acdc.raw_set(tmp_path / "hdf5").items)
