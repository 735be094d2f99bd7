"""What the values in masks mean: class indices, --mask-values, or numbers of objects."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mpamatch.data.prepared import Class, with_progress
from mpamatch.errors import InputError
from mpamatch.images import IGNORE, default_colour, read_mask

# More values than this in masks without --mask-values are instance numbers or a lossy format, not classes.
_MOST_UNEXPLAINED = 20


@dataclass(frozen=True)
class Meaning:
    """What the values in the masks mean."""

    classes: tuple[Class, ...]
    index: dict[int, int]  # value -> class index or 255
    instances: bool


def meaning_of(masks: Sequence[Path], mask_values: str | None, instances: bool) -> Meaning:
    """Decides what the values in `masks` mean, by the options or, without any, by all values that occur.

    Raises InputError if `mask_values` is malformed, or values are no class indices and nothing explains them.
    """
    if instances:
        return Meaning(_classes(["background", "object"]), {}, instances=True)
    if mask_values is not None:
        return _parsed(mask_values)
    looked_at = with_progress(masks, "reading masks", len(masks))
    values = sorted({int(value) for mask in looked_at for value in np.unique(read_mask(mask))})
    classes = [value for value in values if value != IGNORE]
    if len(classes) < 2 or len(classes) > _MOST_UNEXPLAINED or classes != list(range(len(classes))):
        raise InputError(_suggestion(masks[0].parent, values))
    names = ["background", "object"] if len(classes) == 2 else [f"class-{value}" for value in classes]
    return Meaning(_classes(names), {value: value for value in values}, instances=False)


def label_of(path: Path, meaning: Meaning) -> NDArray[np.uint8]:
    """Reads a mask as class indices. Raises InputError if it holds a value without a meaning."""
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


def _parsed(mask_values: str) -> Meaning:
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
    return Meaning(_classes(names), index, instances=False)


def _suggestion(folder: Path, values: list[int]) -> str:
    if len(values) < 2:
        return f"{folder}: the masks hold nothing but the value {values[0]}: two classes at least are needed."
    if len(values) > _MOST_UNEXPLAINED:
        return (
            f"{folder}: the masks hold {len(values)} values ({values[0]}..{values[-1]}): add --instances "
            "where they are numbers of objects, or for JPEG masks "
            f"--mask-values {values[0]}:background,{values[-1]}:object"
        )
    names = ["background", "object"] if len(values) == 2 else ["background", *(f"class-{v}" for v in values[1:])]
    line = ",".join(f"{value}:{name}" for value, name in zip(values, names, strict=True))
    shown = ", ".join(map(str, values))
    return f"{folder}: the masks hold the values {shown}: say what they mean with --mask-values {line}"


def _classes(names: list[str]) -> tuple[Class, ...]:
    return tuple(Class(name, default_colour(index)) for index, name in enumerate(names))
