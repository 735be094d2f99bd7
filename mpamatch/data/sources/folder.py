"""Any folder: images/ and masks/ with the same names in any format; an image without mask is unlabelled.

Names may end in _image or _img and _mask, _label, _anno or _gt: `case1_img.png` and `case1_mask.png` belong
together. If images/ has folders train, validation and test, these are the parts, and masks/ has the same folders;
training, val, valid and testing are understood in either.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mpamatch.data.kinds import REGROUP, Kind, Option
from mpamatch.data.parts import group_finder
from mpamatch.data.prepared import Item, RawSet
from mpamatch.data.raw import Findings
from mpamatch.data.sources.layout import (
    PART_OF_WORD,
    by_key,
    images_in,
    of_files,
    with_validation,
    without_mask,
)
from mpamatch.data.sources.mask_values import Meaning, meaning_of
from mpamatch.errors import InputError
from mpamatch.images import IMAGE_SUFFIXES
from mpamatch.names import visible

KIND = Kind(
    name="folder",
    help="images/ and masks/ by file name; images without a mask are unlabelled",
    module=__name__,
    options=(
        Option("--mask-values", "what masks show, as 0:background,255:gland or '#000000:background,#ff0000:gland'"),
        Option("--instances", "masks number their objects; all above 0 is one class, and the numbers are kept", bool),
        Option("--group-regex", "the part of a file name that tells the patient"),
        REGROUP,
    ),
)

_ENDING = re.compile(r"[_-](img|image|mask|label|anno|gt)$", re.IGNORECASE)


def raw_set(
    source: Path,
    mask_values: str | None = None,
    instances: bool = False,
    group_regex: str | None = None,
    regroup: bool = False,
) -> RawSet:
    """Reads a folder of images and masks.

    Args:
        source: holds images/ and masks/.
        mask_values: what one sees in the masks means, "0:background,255:gland" or "#000000:background,#ff0000:gland";
            the name `ignore` marks what is not to be learned. Without it the values must be 0 to C − 1, or 255 for
            ignore.
        instances: whether any value above 0 is the number of an object, of the one class "object".
        group_regex: finds the group (patient) in the file's name without suffix: its first capture group or the whole
            match. Without it each image is its own group.
        regroup: whether the parts are drawn by group even if images/ has folders for them.

    Raises:
        InputError: images/ or all masks are missing, a mask has no image, two files have one name, a value is not
            explained (the sentence has the option that would), or the regex is broken or does not match.
    """
    if instances and mask_values is not None:
        raise InputError("--instances and --mask-values exclude each other: give one of them.")
    pairs = _pairs(source)
    groups = _groups(pairs, group_regex)
    masks = [pair.mask for pair in pairs if pair.mask is not None]
    meaning, findings = meaning_of(masks, mask_values, instances), Findings()
    return RawSet(
        name=source.resolve().name,
        classes=meaning.classes,
        items=_items(pairs, groups, meaning, _parts(pairs, groups, regroup), findings),
        count=len(pairs),
        microns_per_pixel=None,
        source=f"folder {source.resolve().name}",
        licence="not stated",
        remarks=(*_remarks(pairs, group_regex), *meaning.remarks),
        findings=findings,
    )


@dataclass(frozen=True)
class _Pair:
    image: Path
    mask: Path | None
    part: str | None  # as images/ says

    @property
    def stem(self) -> str:
        return self.image.stem if self.part is None else f"{self.part}-{self.image.stem}"


def _pairs(source: Path) -> list[_Pair]:
    images, masks = source / "images", source / "masks"
    if not images.is_dir():
        raise InputError(f"{images}: no such folder; images/ and masks/ are expected in {source}.")
    parts, mask_parts = _parts_in(images), _parts_in(masks)
    if mask_parts and not parts:
        raise InputError(f"{next(iter(mask_parts.values()))}: is a part, but images/ has none: give it the same.")
    if parts and not mask_parts and images_in(masks):
        raise InputError(
            f"{masks}: has no folder {next(iter(parts.values())).name}, as images/ has: sort the masks too."
        )
    if not parts:
        pairs = _pairs_of(images, masks, None)
    else:
        for part, folder in mask_parts.items():
            if part not in parts and images_in(folder):
                raise InputError(f"{folder}: holds masks, but images/ has no such part: add the images or remove it.")
        pairs = [pair for part in parts for pair in _pairs_of(parts[part], mask_parts.get(part), part)]
    if not pairs:
        raise InputError(f"{images}: holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}).")
    if all(pair.mask is None for pair in pairs):
        raise InputError(f"{masks}: holds no mask with the name of an image: at least one is needed.")
    return pairs


def _parts_in(folder: Path) -> dict[str, Path]:
    """Finds the folders in images/ or masks/ by part. Raises InputError for one that is none, or files beside them."""
    folders = [path for path in visible(folder) if path.is_dir()]
    found: dict[str, Path] = {}
    for one in folders:
        part = PART_OF_WORD.get(one.name.lower())
        if part is None:
            files = f"its {folder.name} straight into {folder.name}/"
            raise InputError(f"{one}: is no part (train, validation, test): put {files}.")
        if part in found:
            raise InputError(f"{one}: is the {part} part, as {found[part].name} is: put their {folder.name} together.")
        found[part] = one
    if folders and images_in(folder):
        told = f"holds {folder.name} beside the folder {folders[0].name}: put them into a part too"
        raise InputError(f"{folder}: {told}.")
    return {part: found[part] for part in ("train", "validation", "test") if part in found}


def _pairs_of(images: Path, masks: Path | None, part: str | None) -> list[_Pair]:
    image_by_key, mask_by_key = (by_key(folder, _key) if folder else {} for folder in (images, masks))
    without = [path for key, path in mask_by_key.items() if key not in image_by_key]
    if without:
        more = f" (and {len(without) - 1} more)" if len(without) > 1 else ""
        raise InputError(f"{without[0]}{more}: is a mask without image in {images}: add the image or remove it.")
    return [_Pair(image, mask_by_key.get(key), part) for key, image in image_by_key.items()]


def _key(path: Path) -> str:
    return _ENDING.sub("", path.stem)


def _groups(pairs: list[_Pair], group_regex: str | None) -> list[str]:
    if group_regex is None:
        return [pair.stem for pair in pairs]
    find = group_finder(group_regex)
    return [find(pair.image.stem, pair.image) for pair in pairs]


def _parts(pairs: list[_Pair], groups: list[str], regroup: bool) -> list[str | None]:
    """Reads the part of each image from its folder; a missing validation part is taken from train."""
    if regroup or all(pair.part is None for pair in pairs):
        return [None] * len(pairs)
    return with_validation([pair.part for pair in pairs], groups)


def _items(
    pairs: list[_Pair], groups: list[str], meaning: Meaning, parts: list[str | None], findings: Findings
) -> Iterator[Item]:
    for pair, group, part in zip(pairs, groups, parts, strict=True):
        if pair.mask is None:
            yield Item(pair.stem, group, part, pair.image, None)
            continue
        label, objects = meaning.label_of(pair.mask), meaning.objects_of(pair.mask)
        yield Item(pair.stem, group, part, pair.image, label, instances=objects)
    findings.remarks += meaning.findings()


def _remarks(pairs: list[_Pair], group_regex: str | None) -> tuple[str, ...]:
    remarks = []
    if group_regex is None:
        remarks.append("each image is its own group: where several come from one patient, give --group-regex.")
    remarks += without_mask(pair.image for pair in pairs if pair.mask is None)
    remarks += of_files(path.parent for pair in pairs for path in (pair.image, pair.mask) if path is not None)
    return tuple(remarks)
