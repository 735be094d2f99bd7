"""What several raw sets have in common: folders that name a part, official parts."""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePath

from mpamatch.data.parts import held_out
from mpamatch.errors import InputError
from mpamatch.images import IMAGE_SUFFIXES
from mpamatch.names import listed, passed_over, same, visible

PART_OF_WORD = {
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
    return [path for path in visible(folder) if path.suffix.lower() in IMAGE_SUFFIXES]


def by_key(folder: Path, key: Callable[[Path], str] = lambda path: path.stem) -> dict[str, Path]:
    """Finds the images of a folder by `key` of their path, whichever way accents are stored.

    Raises InputError if two have the same.
    """
    found: dict[str, Path] = {}
    for path in images_in(folder):
        here = same(key(path))
        if here in found:
            alike = " but for the way its accents are stored" if same(path.name) == same(found[here].name) else ""
            raise InputError(f"{path}: has the same name as {found[here].name}{alike}: rename or remove one of them.")
        found[here] = path
    return found


def of_files(folders: Iterable[Path]) -> tuple[str, ...]:
    """Says which files in `folders` have names that are not read as images, a sentence each."""
    return tuple(sentence for folder in dict.fromkeys(folders) for sentence in passed_over(folder, IMAGE_SUFFIXES))


def without_mask(images: Iterable[Path], what: str = "image") -> tuple[str, ...]:
    """Says which images are unlabelled for want of a mask, in one sentence or none."""
    names = [image.name for image in images]
    if not names:
        return ()
    have = f"1 {what} has" if len(names) == 1 else f"{len(names):,} {what}{'e' * what.endswith('h')}s have"
    return (f"{have} no mask, so unlabelled: {listed(names)}.",)


def part_in(path: PurePath) -> str | None:
    """Finds the part that a folder of `path` names (training, val, KPIs24 Testing Data, …), the innermost one first."""
    for name in reversed(path.parts):
        for word in re.findall(r"[a-z]+", name.lower()):
            if word in PART_OF_WORD:
                return PART_OF_WORD[word]
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
