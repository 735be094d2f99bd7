"""ACDC: short-axis cardiac MRI of 150 patients at two moments each, with both ventricles and the myocardium.

Bernard et al., IEEE Transactions on Medical Imaging 2018, doi 10.1109/TMI.2018.2837502. Read as distributed,
training/patient001/patient001_frame01.nii.gz with patient001_frame01_gt.nii.gz (and testing/), or as many papers
share it, HDF5 with `image` and `label`: slices patient001_frame01_slice_1.h5 or volumes patient001_frame01.h5.
The labels are 0 background, 1 right ventricle, 2 myocardium, 3 left ventricle.
"""

import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpamatch.data.kinds import REGROUP, Kind
from mpamatch.data.prepared import Class, Item, RawSet
from mpamatch.data.sources.layout import existing, official_parts, part_in
from mpamatch.errors import InputError
from mpamatch.images import SMALLEST_SIDE, default_colour
from mpamatch.names import visible_below

KIND = Kind(
    name="acdc",
    help="ACDC cardiac MRI: NIfTI as distributed, or HDF5 slices",
    module=__name__,
    options=(REGROUP,),
    recipes={"acdc": "acdc"},
)

CLASSES = ("background", "right ventricle", "myocardium", "left ventricle")
WINDOW = (1.0, 99.0)  # percentiles of a volume that become black and white

_NIFTI = re.compile(r"(patient\d+)_frame(\d+)(_gt)?\.nii(\.gz)?")
_HDF5 = re.compile(r"(patient\d+)_frame(\d+)(?:_slice_?(\d+))?\.(?:h5|hdf5)")


def raw_set(source: Path, regroup: bool = False) -> RawSet:
    """Reads ACDC slice by slice, a patient per group; 4D files are left alone.

    Greys are cut at the 1st and the 99th percentile of all slices of a frame (a patient at one moment), spread
    over 0..255 and repeated as R, G and B; slices keep their pixels, whose size differs between patients. The
    parts are those of val.list and test.list (a frame or slice per line) if both lie in the folder; else the
    folders training and testing with a fifth of the training patients as validation; else, if one of them is
    missing or testing has no ground truth, or with `regroup`, drawn by patient. What has no ground truth is
    unlabelled. Of slices and a volume of one frame the slices are read; slices of a volume are numbered from 0.
    Raises InputError if `source` holds no such file or both forms, a patient is in both lists, a ground truth
    has no image or h5py or nibabel is not installed, and, while the items are read, for a file that cannot be
    decoded, an image and a label of two shapes, or a label outside 0..3.
    """
    frames = _frames(existing(source))
    parts = [None] * len(frames) if regroup else _parts(source, frames)
    return RawSet(
        name="acdc",
        classes=tuple(Class(name, default_colour(i)) for i, name in enumerate(CLASSES)),
        items=(item for frame, part in zip(frames, parts, strict=True) for item in _items(frame, part)),
        count=sum(_slice_count(frame) for frame in frames),
        microns_per_pixel=None,  # differs between patients
        source="ACDC challenge, doi 10.1109/TMI.2018.2837502",
        licence="see the terms of the ACDC challenge",
        remarks=_remarks(frames),
    )


@dataclass(frozen=True)
class _Frame:
    """A patient at one moment, as one file of all slices or as one file per slice."""

    patient: str
    number: str
    part: str | None  # as the folders say
    slices: dict[int, Path]  # empty if `volume` holds them all
    volume: Path | None
    truth: Path | None = None  # of a NIfTI volume; an HDF5 file holds image and label


@dataclass(frozen=True)
class _Slice:
    number: int
    file: Path
    image: NDArray[np.floating]  # (H, W)
    label: NDArray[Any] | None  # (H, W)


def _frames(source: Path) -> list[_Frame]:
    files = [path for path in visible_below(source) if path.name.startswith("patient") and path.is_file()]
    nifti = [path for path in files if _NIFTI.fullmatch(path.name)]
    hdf5 = [path for path in files if _HDF5.fullmatch(path.name)]
    if nifti and hdf5:
        raise InputError(f"{source}: holds {nifti[0].name} and {hdf5[0].name}: name the folder of one form.")
    if not nifti and not hdf5:
        raise InputError(f"{source}: holds no patientNNN_frameNN.nii.gz and no patientNNN_frameNN_slice_N.h5.")
    return _nifti_frames(source, nifti) if nifti else _hdf5_frames(source, hdf5)


def _nifti_frames(source: Path, files: list[Path]) -> list[_Frame]:
    images: dict[tuple[str, str], Path] = {}
    truths: dict[tuple[str, str], Path] = {}
    for path in files:
        patient, number, truth = _groups(_NIFTI, path)[:3]
        _add(truths if truth else images, (patient, number), path)
    for key, path in truths.items():
        if key not in images:
            raise InputError(f"{path}: is a ground truth without image: add it or remove this one.")
    return [
        _Frame(patient, number, part_in(path.parent.relative_to(source)), {}, path, truths.get((patient, number)))
        for (patient, number), path in images.items()
    ]


def _hdf5_frames(source: Path, files: list[Path]) -> list[_Frame]:
    volumes: dict[tuple[str, str], Path] = {}
    slices: dict[tuple[str, str], dict[int, Path]] = {}
    for path in files:
        patient, number, index = _groups(_HDF5, path)
        if index:
            _add(slices.setdefault((patient, number), {}), int(index), path)
        else:
            _add(volumes, (patient, number), path)
    frames = []
    for key in sorted(volumes.keys() | slices.keys()):
        of_frame = dict(sorted(slices.get(key, {}).items()))
        first = next(iter(of_frame.values())) if of_frame else volumes[key]
        volume = None if of_frame else first
        frames.append(_Frame(*key, part_in(first.parent.relative_to(source)), of_frame, volume))
    return frames


def _groups(pattern: re.Pattern[str], path: Path) -> tuple[str, ...]:
    """Returns the groups of `pattern` in a name that fits it; an optional group that is missing is empty."""
    match = pattern.fullmatch(path.name)
    assert match is not None, "the files were chosen by this pattern"
    return match.groups(default="")


def _add(found: dict[Any, Path], key: Any, path: Path) -> None:
    if key in found:
        raise InputError(f"{path}: is there as {found[key]} too: remove one of them.")
    found[key] = path


def _parts(source: Path, frames: list[_Frame]) -> list[str | None]:
    found = {path.name: path for path in reversed([*visible_below(source)])}  # the first of a name
    lists = [found.get(name) for name in ("val.list", "test.list")]
    if lists[0] is not None and lists[1] is not None:
        return _listed_parts(lists[0], lists[1], frames)
    tested = [frame for frame in frames if frame.part == "test"]
    if all(frame.truth is None and _is_nifti(frame.volume) for frame in tested):
        return [None] * len(frames)
    return official_parts([frame.part for frame in frames], [frame.patient for frame in frames])


def _listed_parts(validation: Path, test: Path, frames: list[_Frame]) -> list[str | None]:
    validated, tested = (
        set(re.findall(r"patient\d+", path.read_text(encoding="utf-8"))) for path in (validation, test)
    )
    if validated & tested:
        raise InputError(f"{test}: lists {min(validated & tested)}, whom {validation} lists too: keep one of them.")
    return [
        "validation" if frame.patient in validated else "test" if frame.patient in tested else "train"
        for frame in frames
    ]


def _is_nifti(path: Path | None) -> bool:
    return path is not None and _NIFTI.fullmatch(path.name) is not None


def _slice_count(frame: _Frame) -> int:
    if frame.volume is None:
        return len(frame.slices)
    if _is_nifti(frame.volume):
        return int(_opened_nifti(frame.volume).shape[-1])
    return len(_read_hdf5(frame.volume)[0])


def _items(frame: _Frame, part: str | None) -> Iterator[Item]:
    slices = _read(frame)
    low, high = np.percentile(np.concatenate([one.image.ravel() for one in slices]), WINDOW)
    for one in slices:
        grey = np.rint(255 * np.clip((one.image - low) / max(high - low, 1e-6), 0, 1)).astype(np.uint8)
        stem = f"{frame.patient}-frame{frame.number}-slice{one.number:02d}"
        label = None if one.label is None else one.label.astype(np.uint8)
        yield Item(stem, frame.patient, part, np.repeat(grey[..., None], 3, axis=2), label)


def _read(frame: _Frame) -> list[_Slice]:
    """Reads the slices of a frame and checks them."""
    if frame.volume is None:
        found = [_Slice(number, path, *_read_hdf5(path)) for number, path in frame.slices.items()]
    else:
        if _is_nifti(frame.volume):
            image = _read_nifti(frame.volume)
            label = None if frame.truth is None else _read_nifti(frame.truth)
        else:
            image, label = _read_hdf5(frame.volume)
        if image.ndim != 3:
            raise InputError(f"{frame.volume}: has the shape {image.shape}: a volume has three axes.")
        _check_shapes(frame.truth or frame.volume, image, label)
        labels = [None] * len(image) if label is None else list(label)
        found = [
            _Slice(i, frame.truth or frame.volume, *pair) for i, pair in enumerate(zip(image, labels, strict=True))
        ]
    for one in found:
        _check(one)
    return found


def _check(one: _Slice) -> None:
    if one.image.ndim != 2 or min(one.image.shape) < SMALLEST_SIDE:
        raise InputError(
            f"{one.file}: holds a slice of shape {one.image.shape}: two axes of at least {SMALLEST_SIDE} are needed."
        )
    if not np.isfinite(one.image).all():
        raise InputError(f"{one.file}: holds greys that are no numbers: take it out of the data.")
    if one.label is None:
        return
    _check_shapes(one.file, one.image, one.label)
    wrong = np.setdiff1d(one.label, range(len(CLASSES)))
    if wrong.size:
        raise InputError(f"{one.file}: holds the label {wrong[0]:g}; ACDC has 0 to {len(CLASSES) - 1}.")


def _check_shapes(file: Path, image: NDArray[Any], label: NDArray[Any] | None) -> None:
    if label is not None and label.shape != image.shape:
        raise InputError(f"{file}: the label has the shape {label.shape}, its image {image.shape}: they must agree.")


def _read_hdf5(path: Path) -> tuple[NDArray[np.floating], NDArray[Any] | None]:
    h5py = _library("h5py", path)
    try:
        with h5py.File(path, "r") as file:
            arrays = {name: np.asarray(file[name]) for name in ("image", "label") if name in file}
    except Exception as error:  # h5py raises OSError, RuntimeError and KeyError for broken files
        raise _broken(path, error) from error
    if "image" not in arrays:
        raise InputError(f"{path}: holds no `image`: an HDF5 slice or volume with `image` and `label` is expected.")
    return arrays["image"].astype(np.float32), arrays.get("label")


def _opened_nifti(path: Path) -> Any:
    nibabel = _library("nibabel", path)
    try:
        return nibabel.load(path)
    except Exception as error:  # nibabel raises kinds of its own, and those of gzip and zlib
        raise _broken(path, error) from error


def _read_nifti(path: Path) -> NDArray[np.float32]:
    """Reads a volume as (slices, H, W): NIfTI counts the axes the other way round."""
    opened = _opened_nifti(path)
    try:
        return np.asarray(opened.dataobj, dtype=np.float32).T
    except Exception as error:  # a file that ends too early shows it only here
        raise _broken(path, error) from error


def _library(name: str, path: Path) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"{path}: is read by {name}, which is not installed; pip install 'mpamatch[acdc]'.") from error


def _broken(path: Path, error: Exception) -> InputError:
    told = " ".join(str(error).split()) or type(error).__name__
    return InputError(f"{path}: cannot be decoded ({told}): replace it or take it out of the data.")


def _remarks(frames: list[_Frame]) -> tuple[str, ...]:
    without = sum(_is_nifti(frame.volume) and frame.truth is None for frame in frames)
    return (f"{without} frames have no ground truth and are unlabelled.",) if without else ()
