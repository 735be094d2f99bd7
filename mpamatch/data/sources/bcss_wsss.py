"""BCSS-WSSS: breast cancer patches of 224×224 pixels, image-level labels to learn from, masks to score by.

Han et al., Multi-layer pseudo-supervision for histopathology tissue semantic segmentation, Medical Image Analysis
2022, cut from BCSS (Amgad et al., Bioinformatics 2019, doi 10.1093/bioinformatics/btz083). As distributed:
train/TCGA-A1-A0SK-DX1_xmin45749_ymin25055_MPP-0.2500+0[1101].png, the four digits telling whether tumour, stroma,
lymphocytic infiltrate and necrosis are there; val/img, val/mask, test/img and test/mask under the same names. The
masks are palette PNGs: 0 tumour (red), 1 stroma (green), 2 lymphocytes (blue), 3 necrosis (violet), 4 white
background or excluded.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mpamatch.data.kinds import Kind
from mpamatch.data.prepared import Class, Item, RawSet
from mpamatch.data.sources.layout import by_key, existing, images_in, of_files
from mpamatch.data.sources.mask_survey import packed, written
from mpamatch.errors import InputError
from mpamatch.images import IGNORE, StoredMask, read_stored_mask
from mpamatch.names import visible

KIND = Kind(
    name="bcss-wsss",
    help="BCSS-WSSS: train/ with image-level labels in the names, val/ and test/ with img/ and mask/",
    module=__name__,
    recipes={"bcss-wsss": "bcss-wsss"},
)

# The colours of the published palette; the background, which no mask shows, is drawn black.
CLASSES = (
    Class("background", (0, 0, 0)),
    Class("tumour", (255, 0, 0)),
    Class("stroma", (0, 255, 0)),
    Class("lymphocytes", (0, 0, 255)),
    Class("necrosis", (153, 0, 255)),
)
# Stored index -> class. 4 is excluded tissue as well as white slide, so it is nothing to score.
LABEL_OF_INDEX = np.array([1, 2, 3, 4, IGNORE], dtype=np.uint8)
TISSUES = (*(one.name for one in CLASSES[1:]), "white")
FURTHEST = 128.0  # levels, from the published colour of an index
SHOWN = np.array([*(one.colour for one in CLASSES[1:]), (255, 255, 255)], dtype=float)  # colour of each index

_IMAGE_LEVEL = re.compile(r"(.+?)\[([01](?:[ ,]*[01]){3})\]")
_BRACKETS = re.compile(r"\[.*\]")
_PATIENT = re.compile(r"TCGA-[^-_]+-[^-_]+")


def raw_set(source: Path) -> RawSet:
    """Reads BCSS-WSSS: training patches with image-level labels and no mask, validation and test patches with both.

    The classes are background and the four tissues. What the set excludes (index 4) is ignored, so the background
    occurs in no label; the foreground means of an evaluation are those over the tissues. The image-level label of a
    validation or test patch is the tissues in its mask. The group is the patient of the TCGA barcode, the
    parts are the published ones. `source` may also be the folder that holds train/; training/ for train/ and
    valid/ for val/ are understood, and images in an img/ within train/.
    Raises InputError if one of the folders is missing or holds no image, an image of val/ or test/ has no mask,
    a mask no image, a training name no four digits of 0 and 1 in brackets, a name no patient, or, while the items
    are read, a mask another index than 0 to 4.
    """
    root = _root(existing(source))
    training = _folder(root, "train", "training")
    weak = images_in(training / "img" if (training / "img").is_dir() else training)
    if not weak:
        raise InputError(f"{training}: holds no image; TCGA-….png with [1101] at the end of the name are expected.")
    samples = [_weak(path) for path in weak]
    for part, names in (("validation", ("val", "valid", "validation")), ("test", ("test",))):
        samples += _masked(_folder(root, *names), part)
    return RawSet(
        name="bcss-wsss",
        classes=CLASSES,
        items=_items(samples),
        count=len(samples),
        microns_per_pixel=None,  # the names give that of BCSS, 0.25; whether the patches were shrunk they do not
        source="BCSS-WSSS, from BCSS, doi 10.1093/bioinformatics/btz083",
        licence="see the terms of BCSS and BCSS-WSSS",
        keep_shared_groups="the published parts of BCSS-WSSS share patients.",
        remarks=of_files(path.parent for one in samples for path in (one.image, one.mask) if path is not None),
    )


@dataclass(frozen=True)
class _Sample:
    part: str
    stem: str
    image: Path
    mask: Path | None
    present: tuple[int, ...]  # of a training patch


def _root(source: Path) -> Path:
    """Finds the folder that holds train/: `source` itself or, as the archive unpacks, a folder in it."""
    for folder in (source, *(path for path in visible(source) if path.is_dir())):
        if any((folder / name).is_dir() for name in ("train", "training")):
            return folder
    raise InputError(f"{source / 'train'}: no such folder; BCSS-WSSS has train, val and test.")


def _folder(root: Path, *names: str) -> Path:
    return next((root / name for name in names if (root / name).is_dir()), None) or existing(root / names[0])


def _weak(path: Path) -> _Sample:
    match = _IMAGE_LEVEL.fullmatch(path.stem)
    if match is None:
        found = _BRACKETS.search(path.stem)
        told = f"names {found[0]!r}" if found else "has no image-level label"
        raise InputError(f"{path}: {told}: the name must end in four digits of 0 and 1 in brackets, as [1101].")
    present = tuple(1 + i for i, digit in enumerate(re.findall("[01]", match[2])) if digit == "1")
    return _Sample("train", f"train-{match[1]}", path, None, present)


def _masked(folder: Path, part: str) -> list[_Sample]:
    images, masks = (by_key(existing(folder / kind)) for kind in ("img", "mask"))
    if not images:
        raise InputError(f"{folder / 'img'}: holds no image.")
    for stem, image in images.items():
        if stem not in masks:
            raise InputError(f"{image}: has no mask: add {folder / 'mask' / image.name} or remove it.")
    for stem, mask in masks.items():
        if stem not in images:
            raise InputError(f"{mask}: is a mask without image: add {folder / 'img' / mask.name} or remove it.")
    return [_Sample(part, f"{part}-{stem}", image, masks[stem], ()) for stem, image in images.items()]


def _items(samples: list[_Sample]) -> Iterator[Item]:
    for one in samples:
        patient = _PATIENT.match(one.image.name)
        if patient is None:
            raise InputError(f"{one.image}: names no patient: a TCGA barcode as TCGA-A1-A0SK is expected in front.")
        label = None if one.mask is None else _label(one.mask)
        present = one.present if label is None else tuple(set(np.unique(label).tolist()) - {IGNORE})
        yield Item(one.stem, patient[0], one.part, one.image, label, present)


def _label(path: Path) -> NDArray[np.uint8]:
    mask = read_stored_mask(path)
    values = mask.values
    if values.ndim == 3:
        raise InputError(f"{path}: is a coloured mask: BCSS-WSSS has palette masks, an index from 0 to 4 per pixel.")
    _check_palette(path, mask)
    if values.max() >= len(LABEL_OF_INDEX):
        raise InputError(f"{path}: holds the index {values.max()}; BCSS-WSSS has 0 to {len(LABEL_OF_INDEX) - 1}.")
    return LABEL_OF_INDEX[values]


def _check_palette(path: Path, mask: StoredMask) -> None:
    """Raises InputError if a palette shows an index in the colour of another one, as one that was made anew does."""
    if mask.palette is None:
        return
    used = [index for index in np.unique(mask.values).tolist() if index < min(len(SHOWN), len(mask.palette))]
    if all((mask.palette[index] == index).all() for index in used):
        return  # greys that are the indices themselves
    for index in used:
        off = np.linalg.norm(SHOWN - mask.palette[index].astype(float), axis=1)
        if off.argmin() != index or off[index] > FURTHEST:
            raise InputError(
                f"{path}: shows the index {index} in {written(int(packed(mask.palette)[index]))}, not in the colour of "
                f"{TISSUES[index]}, so its palette was made anew: take the mask as it was published."
            )
