"""EBHI-Seg: colorectal biopsies at 400×, six classes of lesion, one soft mask per image.

Shi et al., EBHI-Seg, Front. Med. 2023, doi 10.3389/fmed.2023.1114673; figshare 21540159, CC BY 4.0.
As distributed: <class>/image/*.png and <class>/label/*.png under the same name.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpamatch.data.kinds import Kind, Option
from mpamatch.data.prepared import Class, Item, RawSet
from mpamatch.data.raw import Findings
from mpamatch.data.sources.drawn import DrawnMasks
from mpamatch.data.sources.layout import by_key, existing, of_files, without_mask
from mpamatch.errors import InputError, unknown
from mpamatch.images import default_colour

KIND = Kind(
    name="ebhi-seg",
    help="EBHI-SEG: CLASS/image and CLASS/label",
    module=__name__,
    options=(Option("--task", "gland, cancer, all, classes or weak"),),
    recipes={
        "ebhi-seg-gland": "ebhi-seg-gland",
        "ebhi-seg-cancer": "ebhi-seg-cancer",
        "ebhi-seg-classes": "ebhi-seg-classes",
        "ebhi-seg-weak": "ebhi-seg-weak",
    },
)

LESIONS = ("Normal", "Polyp", "Low-grade IN", "High-grade IN", "Serrated adenoma", "Adenocarcinoma")
CANCER = "Adenocarcinoma"
TASKS = ("gland", "cancer", "all", "classes", "weak")
BY_LESION = ("classes", "weak")  # tasks whose classes are the lesions

# The prefix before the patient's number varies: GT2012508, GTxc2012508 and GTXC2012508 are one patient.
_PATIENT = re.compile(r"[A-Za-z]+(\d{7})-")


def raw_set(source: Path, task: str = "gland") -> RawSet:
    """Reads EBHI-Seg for one task.

    gland: background and gland, all lesions but adenocarcinoma; cancer: background and cancer, adenocarcinoma
    alone; all: background and gland, every image; classes: background and the six lesions, inside the masks;
    weak: the same, and the lesion whose folder an image lies in is its image-level label, which is what training
    sees: the masks are for validation and test.
    Raises InputError for an unknown task, a missing folder, a mask without image or a name without patient.
    """
    if task not in TASKS:
        raise unknown("task of ebhi-seg", task, TASKS)
    pairs = [pair for lesion in _lesions(task) for pair in _pairs(existing(source), lesion)]
    findings = Findings()
    return RawSet(
        name=f"ebhi-seg-{task}",
        classes=_classes(task),
        items=_items(pairs, task, findings),
        count=len(pairs),
        microns_per_pixel=None,  # the paper gives the magnification alone
        source="EBHI-Seg, doi 10.3389/fmed.2023.1114673, figshare 21540159",
        licence="CC BY 4.0",
        remarks=_remarks(pairs),
        findings=findings,
    )


@dataclass(frozen=True)
class _Pair:
    lesion: str
    image: Path
    mask: Path | None


def _lesions(task: str) -> tuple[str, ...]:
    if task == "cancer":
        return (CANCER,)
    return tuple(lesion for lesion in LESIONS if task != "gland" or lesion != CANCER)


def _classes(task: str) -> tuple[Class, ...]:
    foreground = LESIONS if task in BY_LESION else ("cancer",) if task == "cancer" else ("gland",)
    return tuple(Class(name, default_colour(i)) for i, name in enumerate(("background", *foreground)))


def _pairs(source: Path, lesion: str) -> list[_Pair]:
    folders = [source / lesion / kind for kind in ("image", "label")]
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; EBHI-Seg has <class>/image and <class>/label.")
    images, masks = (by_key(folder) for folder in folders)
    for stem, mask in masks.items():
        if stem not in images:
            raise InputError(f"{mask}: is a mask without image: add {folders[0] / mask.name} or remove it.")
    return [_Pair(lesion, image, masks.get(stem)) for stem, image in images.items()]


def _items(pairs: list[_Pair], task: str, findings: Findings) -> Iterator[Item]:
    masks = DrawnMasks([pair.mask for pair in pairs if pair.mask is not None])
    for pair in pairs:
        patient = _PATIENT.match(pair.image.name)
        if patient is None:
            raise InputError(f"{pair.image}: names no patient: letters, seven digits and a hyphen are expected.")
        index = 1 + LESIONS.index(pair.lesion) if task in BY_LESION else 1
        # The masks are soft, 0..255. A name may occur under two lesions, so the lesion goes into the stem.
        label = None if pair.mask is None else np.where(masks.read(pair.mask), index, 0).astype(np.uint8)
        stem = f"{pair.lesion.lower().replace(' ', '-')}-{pair.image.stem}"
        yield Item(stem, patient[1], None, pair.image, label, (index,) if task == "weak" else None)
    findings.remarks += masks.findings()


def _remarks(pairs: list[_Pair]) -> tuple[str, ...]:
    unlabelled = without_mask(pair.image for pair in pairs if pair.mask is None)
    return (*unlabelled, *of_files(path.parent for one in pairs for path in (one.image, one.mask) if path is not None))
