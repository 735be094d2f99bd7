"""What several raw sets have in common: folders that name a part, official parts."""

import re
from collections.abc import Sequence
from pathlib import Path, PurePath

from mpamatch.data.parts import held_out
from mpamatch.errors import InputError
from mpamatch.images import IMAGE_SUFFIXES

_PART_OF_WORD = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


def images_in(folder: Path) -> list[Path]:
    """Lists the image files straight in `folder`, by name; hidden ones are left out."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))


def part_in(path: PurePath) -> str | None:
    """Finds the part that a folder of `path` names (training, val, KPIs24 Testing Data, …), the innermost one first."""
    for name in reversed(path.parts):
        for word in re.findall(r"[a-z]+", name.lower()):
            if word in _PART_OF_WORD:
                return _PART_OF_WORD[word]
    return None


def official_parts(parts: Sequence[str | None], groups: Sequence[str]) -> list[str | None]:
    """Keeps the `parts` that a set comes with; a missing validation part is a fifth of train, by group.

    All None, to be drawn by group, if the set has no training or no test part of its own: then its folders are
    an excerpt.
    """
    if not {"train", "test"} <= set(parts) or None in parts:
        return [None] * len(parts)
    return with_validation(parts, groups)


def with_validation(parts: Sequence[str | None], groups: Sequence[str]) -> list[str | None]:
    """Makes a fifth of train, by group, the validation part, unless `parts` has one."""
    if "validation" in parts:
        return list(parts)
    validation = held_out(group for group, part in zip(groups, parts, strict=True) if part == "train")
    return [
        "validation" if part == "train" and group in validation else part
        for group, part in zip(groups, parts, strict=True)
    ]


def existing(source: Path) -> Path:
    """Returns `source`; raises InputError if it is no folder."""
    if not source.is_dir():
        raise InputError(f"{source}: no such folder.")
    return source
