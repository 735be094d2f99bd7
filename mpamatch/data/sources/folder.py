"""Any folder: images/ and masks/ with the same names in any format; an image without mask is unlabelled.

Names may end in _image or _img and _mask, _label, _anno or _gt: `case1_img.png` and `case1_mask.png` belong
together. If images/ has folders train, validation (or val) and test, these are the parts, and masks/ has the
same folders.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mpamatch.data.kinds import REGROUP, Kind, Option
from mpamatch.data.prepared import Class, Item, RawSet, with_progress
from mpamatch.data.sources.layout import with_validation
from mpamatch.errors import InputError
from mpamatch.images import IGNORE, IMAGE_SUFFIXES, default_colour, read_mask

KIND = Kind(
    name="folder",
    help="images/ and masks/ by file name; images without a mask are unlabelled",
    module=__name__,
    options=(
        Option("--mask-values", "what stored values mean, as 0:background,255:gland"),
        Option("--instances", "masks hold instance ids; all above 0 is one class", bool),
        Option("--group-regex", "the part of a file name that tells the patient"),
        REGROUP,
    ),
)

_PARTS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
_ENDING = re.compile(r"[_-](img|image|mask|label|anno|gt)$", re.IGNORECASE)

# More values than this in masks without --mask-values are instance numbers or a lossy format, not classes.
_MOST_UNEXPLAINED = 20


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
        mask_values: what the values in the masks mean, "0:background,255:gland"; the name `ignore` marks what is not to
            be learned. Without it the values must be 0 to C − 1, or 255 for ignore.
        instances: whether any value above 0 is the one class "object".
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
    meaning = _meaning(pairs, mask_values, instances)
    return RawSet(
        name=source.resolve().name,
        classes=meaning.classes,
        items=_items(pairs, groups, meaning, _parts(pairs, groups, regroup)),
        count=len(pairs),
        microns_per_pixel=None,
        source=f"folder {source.resolve().name}",
        licence="not stated",
        remarks=_remarks(pairs, group_regex),
    )


@dataclass(frozen=True)
class _Pair:
    image: Path
    mask: Path | None
    part: str | None  # as images/ says

    @property
    def stem(self) -> str:
        return self.image.stem if self.part is None else f"{self.part}-{self.image.stem}"


@dataclass(frozen=True)
class _Meaning:
    """What the values in the masks mean."""

    classes: tuple[Class, ...]
    index: dict[int, int]  # value -> class index or 255
    instances: bool


def _pairs(source: Path) -> list[_Pair]:
    images = source / "images"
    if not images.is_dir():
        raise InputError(f"{images}: no such folder; images/ and masks/ are expected in {source}.")
    folders = sorted(path for path in images.iterdir() if path.is_dir() and not path.name.startswith("."))
    for folder in folders:
        if folder.name not in _PARTS:
            raise InputError(f"{folder}: is no part (train, validation, test): put its images straight into images/.")
    if folders and _by_key(images):
        raise InputError(f"{images}: holds images beside the folder {folders[0].name}: put them into a part too.")
    if not folders:
        pairs = _pairs_of(images, source / "masks", None)
    else:
        pairs = [pair for f in folders for pair in _pairs_of(f, source / "masks" / f.name, _PARTS[f.name])]
    if not pairs:
        raise InputError(f"{images}: holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}).")
    if all(pair.mask is None for pair in pairs):
        raise InputError(f"{source / 'masks'}: holds no mask with the name of an image: at least one is needed.")
    return pairs


def _pairs_of(images: Path, masks: Path, part: str | None) -> list[_Pair]:
    image_by_key, mask_by_key = _by_key(images), _by_key(masks)
    without = [path for key, path in mask_by_key.items() if key not in image_by_key]
    if without:
        more = f" (and {len(without) - 1} more)" if len(without) > 1 else ""
        raise InputError(f"{without[0]}{more}: is a mask without image in {images}: add the image or remove it.")
    return [_Pair(image, mask_by_key.get(key), part) for key, image in image_by_key.items()]


def _by_key(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
            continue
        key = _ENDING.sub("", path.stem)
        if key in found:
            raise InputError(f"{path}: has the same name as {found[key].name}: rename or remove one of them.")
        found[key] = path
    return found


def _groups(pairs: list[_Pair], group_regex: str | None) -> list[str]:
    if group_regex is None:
        return [pair.stem for pair in pairs]
    try:
        pattern = re.compile(group_regex)
    except re.error as error:
        raise InputError(f"--group-regex {group_regex!r}: is no regular expression ({error}).") from error
    groups = []
    for pair in pairs:
        match = pattern.search(pair.image.stem)
        group = match and (match[1] if pattern.groups else match[0])
        if not group:
            raise InputError(f"{pair.image}: --group-regex {group_regex!r} finds no group in {pair.image.stem!r}.")
        groups.append(group)
    return groups


def _parts(pairs: list[_Pair], groups: list[str], regroup: bool) -> list[str | None]:
    """Reads the part of each image from its folder; a missing validation part is taken from train."""
    if regroup or all(pair.part is None for pair in pairs):
        return [None] * len(pairs)
    return with_validation([pair.part for pair in pairs], groups)


def _meaning(pairs: list[_Pair], mask_values: str | None, instances: bool) -> _Meaning:
    if instances:
        return _Meaning(_classes(["background", "object"]), {}, instances=True)
    if mask_values is not None:
        return _parsed(mask_values)
    masks = [pair.mask for pair in pairs if pair.mask is not None]
    looked_at = with_progress(masks, "reading masks", len(masks))
    values = sorted({int(value) for mask in looked_at for value in np.unique(read_mask(mask))})
    classes = [value for value in values if value != IGNORE]
    if len(classes) < 2 or len(classes) > _MOST_UNEXPLAINED or classes != list(range(len(classes))):
        raise InputError(_suggestion(pairs, values))
    names = ["background", "object"] if len(classes) == 2 else [f"class-{value}" for value in classes]
    return _Meaning(_classes(names), {value: value for value in values}, instances=False)


def _parsed(mask_values: str) -> _Meaning:
    index: dict[int, int] = {}
    names: list[str] = []
    for entry in mask_values.split(","):
        value, colon, name = (text.strip() for text in entry.partition(":"))
        if not colon or not name or not value.isascii() or not value.isdigit() or int(value) in index:
            raise InputError(
                f"--mask-values {mask_values!r}: {entry!r} should be a new value, a colon and a name, "
                "as in 0:background,255:gland."
            )
        if name != "ignore" and name not in names:
            names.append(name)
        index[int(value)] = IGNORE if name == "ignore" else names.index(name)
    if len(names) < 2:
        raise InputError(f"--mask-values {mask_values!r}: names fewer than two classes, background among them.")
    return _Meaning(_classes(names), index, instances=False)


def _suggestion(pairs: list[_Pair], values: list[int]) -> str:
    masks = next(pair.mask for pair in pairs if pair.mask).parent
    if len(values) < 2:
        return f"{masks}: the masks hold nothing but the value {values[0]}: two classes at least are needed."
    if len(values) > _MOST_UNEXPLAINED:
        return (
            f"{masks}: the masks hold {len(values)} values ({values[0]}..{values[-1]}): add --instances "
            "where they are numbers of objects, or for JPEG masks "
            f"--mask-values {values[0]}:background,{values[-1]}:object"
        )
    names = ["background", "object"] if len(values) == 2 else ["background", *(f"class-{v}" for v in values[1:])]
    line = ",".join(f"{value}:{name}" for value, name in zip(values, names, strict=True))
    shown = ", ".join(map(str, values))
    return f"{masks}: the masks hold the values {shown}: say what they mean with --mask-values {line}"


def _classes(names: list[str]) -> tuple[Class, ...]:
    return tuple(Class(name, default_colour(index)) for index, name in enumerate(names))


def _items(pairs: list[_Pair], groups: list[str], meaning: _Meaning, parts: list[str | None]) -> Iterator[Item]:
    for pair, group, part in zip(pairs, groups, parts, strict=True):
        label = None if pair.mask is None else _label(pair.mask, meaning)
        yield Item(pair.stem, group, part, pair.image, label)


def _label(path: Path, meaning: _Meaning) -> NDArray[np.uint8]:
    values = read_mask(path)
    if meaning.instances:
        return (values > 0).astype(np.uint8)
    known = np.array(sorted(meaning.index))
    index = np.array([meaning.index[value] for value in known.tolist()], dtype=np.uint8)
    if path.suffix.lower() in {".jpg", ".jpeg"} and len(known) == 2:
        # JPEG smears the two values into all between them; the nearer one is what was drawn.
        return index[(np.abs(values.astype(np.int32) - known[1]) < np.abs(values.astype(np.int32) - known[0])) * 1]
    wrong = np.setdiff1d(values, known)
    if wrong.size:
        shown = ", ".join(map(str, wrong[:5])) + (", …" if wrong.size > 5 else "")
        raise InputError(
            f"{path}: holds the value{'s' * (wrong.size > 1)} {shown}, which --mask-values does not explain; "
            f"it explains {', '.join(map(str, known))}."
        )
    return index[np.searchsorted(known, values)]


def _remarks(pairs: list[_Pair], group_regex: str | None) -> tuple[str, ...]:
    remarks = []
    if group_regex is None:
        remarks.append("each image is its own group: where several come from one patient, give --group-regex.")
    without = sum(pair.mask is None for pair in pairs)
    if without:
        remarks.append(f"{without} images have no mask and are unlabelled.")
    return tuple(remarks)
