"""KPIs: PAS-stained patches of whole mouse kidneys, healthy and of three disease models, glomeruli masked.

Kidney Pathology Image Segmentation challenge, MICCAI 2024 (Synapse syn54077668), its first task. As distributed:
<…>/<group>/<case>/img/*_img.jpg and <…>/<group>/<case>/mask/*_mask.jpg of 2048×2048 pixels, the groups 56Nx, DN,
NEP25 and normal, under data/ (training), validation/ and test/. Folders for slides (.tiff) are left alone.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpamatch.data.kinds import REGROUP, Kind
from mpamatch.data.prepared import Class, Item, RawSet
from mpamatch.data.raw import Findings
from mpamatch.data.sources.drawn import DrawnMasks
from mpamatch.data.sources.layout import (
    by_key,
    existing,
    of_files,
    official_parts,
    part_in,
    without_mask,
)
from mpamatch.errors import InputError
from mpamatch.images import default_colour
from mpamatch.names import visible_below

KIND = Kind(
    name="kpi",
    help="KPIs 2024: GROUP/CASE/img and GROUP/CASE/mask",
    module=__name__,
    options=(REGROUP,),
    recipes={"kpi": "kpi"},
)

_ENDING = re.compile(r"[_-](img|mask)$", re.IGNORECASE)


def raw_set(source: Path, regroup: bool = False) -> RawSet:
    """Reads KPIs: background and glomerulus, a case (one mouse) per group.

    `source` is any folder above the cases' img/ and mask/. A case is in validation or test if a folder
    between it and `source` says so, else in train; if there is no train or no test among them, or with
    `regroup`, all parts are drawn by case. A patch without a mask is unlabelled. JPEG masks are cut at 127.
    Raises InputError if `source` or every img/ is missing, a mask has no image, or two files of a case have
    one name.
    """
    folders = [path for path in visible_below(existing(source)) if path.name == "img" and path.is_dir()]
    pairs = [pair for folder in folders for pair in _pairs(source, folder)]
    if not pairs:
        raise InputError(f"{source}: holds no image; KPIs has <group>/<case>/img/*_img.jpg.")
    parts = official_parts([None if regroup else pair.part for pair in pairs], [pair.case for pair in pairs])
    findings = Findings()
    return RawSet(
        name="kpi",
        classes=(Class("background", default_colour(0)), Class("glomerulus", default_colour(1))),
        items=_items(pairs, parts, findings),
        count=len(pairs),
        microns_per_pixel=None,  # not in the files; --microns-per-pixel tells it
        source="KPIs challenge 2024, Synapse syn54077668",
        licence="see the terms of the KPIs challenge",
        remarks=_remarks(pairs),
        findings=findings,
    )


@dataclass(frozen=True)
class _Pair:
    case: str
    part: str
    image: Path
    mask: Path | None


def _pairs(source: Path, images: Path) -> list[_Pair]:
    masks = images.with_name("mask")
    image_by_key, mask_by_key = (by_key(folder, _key) for folder in (images, masks))
    for key, mask in mask_by_key.items():
        if key not in image_by_key:
            raise InputError(f"{mask}: is a mask without image in {images}: add the image or remove it.")
    above = images.parent.relative_to(source)
    # The training cases are written 12_116, those of the test 12-299.
    case = "-".join(above.parts[-2:] or (images.parent.resolve().name,)).replace("_", "-")
    part = part_in(above) or "train"
    return [_Pair(case, part, image, mask_by_key.get(key)) for key, image in image_by_key.items()]


def _key(path: Path) -> str:
    """The name of an image without _img or _mask: some copies name masks like their images."""
    return _ENDING.sub("", path.stem)


def _items(pairs: list[_Pair], parts: list[str | None], findings: Findings) -> Iterator[Item]:
    masks = DrawnMasks([pair.mask for pair in pairs if pair.mask is not None])
    for pair, part in zip(pairs, parts, strict=True):
        label = None if pair.mask is None else masks.read(pair.mask).astype(np.uint8)
        yield Item(f"{pair.case}-{_key(pair.image)}", pair.case, part, pair.image, label)
    findings.remarks += masks.findings()


def _remarks(pairs: list[_Pair]) -> tuple[str, ...]:
    unlabelled = without_mask((pair.image for pair in pairs if pair.mask is None), "patch")
    return (*unlabelled, *of_files(path.parent for one in pairs for path in (one.image, one.mask) if path is not None))
