"""BUSI: breast ultrasound with lesions outlined, benign, malignant or none.

Al-Dhabyani et al., Dataset of breast ultrasound images, Data in Brief 2020, doi 10.1016/j.dib.2019.104863.
As distributed: benign/, malignant/ and normal/, in each `benign (1).png` beside `benign (1)_mask.png`, and
`benign (1)_mask_1.png`, … if an image shows several lesions. No patient ids are published.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mpamatch.data.image_facts import size_cause
from mpamatch.data.kinds import Kind, Option
from mpamatch.data.prepared import Class, Item, RawSet
from mpamatch.data.raw import Findings
from mpamatch.data.sources.drawn import DrawnMasks
from mpamatch.data.sources.layout import existing, images_in, of_files, without_mask
from mpamatch.errors import InputError, unknown
from mpamatch.images import default_colour, read_image_and_facts
from mpamatch.names import same, visible

KIND = Kind(
    name="busi",
    help="BUSI ultrasound: benign, malignant and normal, each with its _mask and _mask_1",
    module=__name__,
    options=(Option("--task", "lesion or classes"),),
    recipes={"busi-lesion": "busi", "busi-classes": "busi"},
)

TASKS = ("lesion", "classes")
LESIONS = ("benign", "malignant")
NORMAL = "normal"

_MASK = re.compile(r"(.+)_mask(?:_\d+)?", re.IGNORECASE)


def raw_set(source: Path, task: str = "lesion") -> RawSet:
    """Reads BUSI for one task: lesion (background, lesion) or classes (background, benign, malignant).

    The masks of an image are united. Images of normal/ are background all over, with or without a mask; an
    image of the other two folders without one is unlabelled. Images of equal pixels are one group, every other
    image is its own. `source` may also be the folder that holds the three; normal/ may be missing.
    Raises InputError for an unknown task, a missing folder, a mask without image, and, while the items are
    read, for a file that cannot be decoded or a mask that is not of its image's size.
    """
    if task not in TASKS:
        raise unknown("task of busi", task, TASKS)
    root = _root(existing(source))
    samples = [sample for kind in (*LESIONS, NORMAL) for sample in _samples(root / kind, kind)]
    names = ("background", "lesion") if task == "lesion" else ("background", *LESIONS)
    findings = Findings()
    return RawSet(
        name=f"busi-{task}",
        classes=tuple(Class(name, default_colour(i)) for i, name in enumerate(names)),
        items=_items(samples, task, findings),
        count=len(samples),
        microns_per_pixel=None,
        source="BUSI, doi 10.1016/j.dib.2019.104863",
        licence="not stated; see the terms of its authors",
        remarks=_remarks(samples),
        findings=findings,
    )


@dataclass(frozen=True)
class _Sample:
    kind: str  # benign, malignant or normal
    image: Path
    masks: tuple[Path, ...]


def _root(source: Path) -> Path:
    """Finds the folder that holds benign/ and malignant/: `source` or, as the archive unpacks, a folder in it."""
    for folder in (source, *(path for path in visible(source) if path.is_dir())):
        if (folder / LESIONS[0]).is_dir():
            for name in LESIONS:
                existing(folder / name)
            return folder
    raise InputError(f"{source / LESIONS[0]}: no such folder; BUSI has benign, malignant and normal.")


def _samples(folder: Path, kind: str) -> list[_Sample]:
    if kind == NORMAL and not folder.is_dir():
        return []
    images: dict[str, Path] = {}
    masks: dict[str, list[Path]] = {}
    for path in images_in(folder):
        stem = same(path.stem)
        match = _MASK.fullmatch(stem)
        if match is not None:
            masks.setdefault(match[1], []).append(path)
        elif stem in images:
            raise InputError(f"{path}: has the same name as {images[stem].name}: rename or remove one of them.")
        else:
            images[stem] = path
    for stem, paths in masks.items():
        if stem not in images:
            raise InputError(f"{paths[0]}: is a mask without image: add {stem}{paths[0].suffix} or remove it.")
    return [_Sample(kind, image, tuple(masks.get(stem, ()))) for stem, image in sorted(images.items())]


def _items(samples: list[_Sample], task: str, findings: Findings) -> Iterator[Item]:
    masks = DrawnMasks([mask for sample in samples if sample.kind != NORMAL for mask in sample.masks])
    first: dict[bytes, str] = {}  # pixels -> stem of the first image that has them
    for sample in samples:
        image, facts = read_image_and_facts(sample.image)
        stem = re.sub(r"\W+", "-", sample.image.stem).strip("-")
        # The set holds some pictures twice, under both lesions too: as one group they stay in one part.
        pixels = hashlib.sha256(image.tobytes() + str(image.shape).encode()).digest()
        label = _label(sample, image.shape[:2], task, masks, facts.turn)
        yield Item(stem, first.setdefault(pixels, stem), None, sample.image, label)
    findings.remarks += masks.findings()


def _label(sample: _Sample, size: tuple[int, ...], task: str, masks: DrawnMasks, turn: int) -> NDArray[np.uint8] | None:
    if not sample.masks and sample.kind != NORMAL:
        return None
    label = np.zeros(size, dtype=np.uint8)
    if sample.kind == NORMAL:
        return label
    index = 1 if task == "lesion" else 1 + LESIONS.index(sample.kind)
    for mask in sample.masks:
        drawn = masks.read(mask)
        if drawn.shape != size:
            raise InputError(
                f"{mask}: is {drawn.shape[1]}×{drawn.shape[0]} pixels, its image {size[1]}×{size[0]}: "
                f"{size_cause(turn)}"
            )
        label[drawn] = index
    return label


def _remarks(samples: list[_Sample]) -> tuple[str, ...]:
    remarks = [
        "BUSI publishes no patient ids: each image counts as a patient of its own, so images of one patient may "
        "be in two parts and in and out of a split; scores are likely too high."
    ]
    remarks += without_mask(one.image for one in samples if not one.masks and one.kind != NORMAL)
    return (*remarks, *of_files(one.image.parent for one in samples))
