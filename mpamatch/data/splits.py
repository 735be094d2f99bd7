"""Splits: which training images count as labelled, written down once.

A budget of groups (patients) or of images is drawn, or a published list names the images.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mpamatch.console import with_progress
from mpamatch.data.name_lists import read_name_list
from mpamatch.data.prepared import Prepared, split_path
from mpamatch.errors import InputError
from mpamatch.files import read_json, write_json
from mpamatch.images import IGNORE, read_mask
from mpamatch.stored import MOST_PREPARED

Unit = Literal["patients", "images"]


@dataclass(frozen=True)
class Split:
    """A split, not yet written.

    Attributes:
        name: of its file in splits/.
        budget: as it was asked for, such as "10%" or "8 images"; None: a list names the images.
        seed: of the draw; None: a list names the images.
        groups: that have a labelled image.
        images: that are labelled.
        of_groups: how many groups of the training part have a mask.
        of_images: how many images the training part has.
        missing_classes: that no labelled image shows.
        unit: what was chosen; patients: all of their images that have a mask are labelled.
        source: the list's file name; None: the split was drawn.
        remarks: what the user should know of how the list was read.
    """

    name: str
    budget: str | None
    seed: int | None
    groups: tuple[str, ...]
    images: tuple[str, ...]
    of_groups: int
    of_images: int
    missing_classes: tuple[str, ...]
    unit: Unit = "patients"
    source: str | None = None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Budget:
    """How many patients or images are labelled.

    Attributes:
        text: as splits record it: "4", "10%", "8 images" or "10% images".
        unit: patients or images.
        amount: how many, or the percentage of those that have a mask.
        is_percent: which of the two `amount` is.
        asked: option and value, for messages.
    """

    text: str
    unit: Unit
    amount: float
    is_percent: bool
    asked: str

    @property
    def short(self) -> str:
        """The budget as the name of a split begins."""
        amount = f"{self.amount:g}pct" if self.is_percent else f"{int(self.amount)}"
        return f"{'labelled' if self.unit == 'patients' else 'images'}-{amount}"

    def count(self, there: int) -> int:
        """Computes how many of `there` patients or images are labelled; a percentage is rounded, to one at least.

        Raises InputError if that is none, or more than there are.
        """
        if self.is_percent:
            if not 0 < self.amount <= 100:
                raise InputError(f"{self.asked}: must be above 0 and at most 100 %.")
            return max(1, int(self.amount / 100 * there + 0.5))
        if not 1 <= self.amount <= there:
            units = "patients" if self.unit == "patients" else "training images"
            raise InputError(f"{self.asked}: must be from 1 to {there}, the {units} with a mask.")
        return int(self.amount)


def read_budget(text: str, option: Literal["--labelled", "--images"] = "--labelled") -> Budget:
    """Reads a budget: "4" or "10%" of the patients, "8 images" or "10% images"; after --images "8" or "10%" of them.

    Raises InputError if the text is no budget.
    """
    match = re.fullmatch(r"((\d+)|(\d+(?:\.\d+)?)\s*%)(\s*images?)?", text.strip(), re.ASCII)
    only_images = option == "--images"
    if match is None or (only_images and match[4]):
        patients = "patients (4) or a percentage (10%), or of images (8 images, 10% images)"
        what = "images (8) or a percentage (10%)" if only_images else patients
        raise InputError(f"{option} {text!r}: must be a number of {what}.")
    return Budget(
        text=f"{match[1]} images" if only_images else text.strip(),
        unit="images" if only_images or match[4] else "patients",
        amount=float(match[2] or match[3]),
        is_percent=match[3] is not None,
        asked=f"{option} {text}",
    )


def write_split(prepared: Prepared, labelled: str, seed: int) -> Path:
    """Draws a split, writes splits/<name>.json and returns its path. The same arguments write the same file again."""
    return save_split(prepared, draw_split(prepared, read_budget(labelled), seed))


def draw_splits(prepared: Prepared, budgets: Sequence[str], seeds: Sequence[int]) -> dict[tuple[str, int], Split]:
    """Draws a split for every (budget, seed); each mask is read once.

    Raises InputError as `read_budget` and `draw_split` do.
    """
    read = {budget: read_budget(budget) for budget in budgets}
    shown = _classes_shown(prepared, _with_mask(prepared))
    return {(budget, seed): draw_split(prepared, read[budget], seed, shown) for seed in seeds for budget in budgets}


def draw_split(prepared: Prepared, budget: Budget, seed: int, shown: Mapping[str, set[int]] | None = None) -> Split:
    """Draws the groups whose images count as labelled, or the images.

    A seed gives one order of the groups and one of the images, and a budget takes the first of them, so a smaller
    budget lies within a larger one of its unit.

    Args:
        prepared: the set.
        budget: how many of the training part's groups, or images, that have a mask.
        seed: of the order.
        shown: the class indices in each image's mask; None: they are read.

    Raises:
        InputError: the budget is above what there is, or not above 0; the seed is negative; or no training image has a
            mask.
    """
    if seed < 0:
        raise InputError(f"--seed {seed}: must not be negative.")
    images_of = images_by_group(prepared)
    units = images_of if budget.unit == "patients" else {image: [image] for image in _with_mask(prepared)}
    wanted = budget.count(len(units))
    shown = _classes_shown(prepared, _with_mask(prepared)) if shown is None else shown
    order = _order({unit: _union(shown[image] for image in images) for unit, images in units.items()}, seed)
    images = [image for unit in order[:wanted] for image in units[unit]]
    return Split(
        name=f"{budget.short}-seed{seed}",
        budget=budget.text,
        seed=seed,
        groups=tuple(dict.fromkeys(prepared.groups[image] for image in images)),
        images=tuple(sorted(images)),
        of_groups=len(images_of),
        of_images=len(prepared.parts["train"]),
        missing_classes=_missing_classes(prepared, _union(shown[image] for image in images)),
        unit=budget.unit,
    )


def listed_split(prepared: Prepared, path: Path, name: str | None = None) -> Split:
    """Takes the images that a list names, as published splits come.

    Args:
        prepared: the set.
        path: the list; `read_name_list` says what its lines may be.
        name: of the split; None: the list's file name without ending, with a hyphen for what a name may not hold.

    Raises:
        InputError: the name holds something other than letters, digits, hyphens and _ . =, or `read_name_list` refuses
            the list.
    """
    plain, found = split_name(path, name), read_name_list(prepared, path)
    shown = _classes_shown(prepared, found.images)
    return Split(
        name=plain,
        budget=None,
        seed=None,
        groups=tuple(dict.fromkeys(prepared.groups[image] for image in found.images)),
        images=tuple(sorted(found.images)),
        of_groups=len(images_by_group(prepared)),
        of_images=len(prepared.parts["train"]),
        missing_classes=_missing_classes(prepared, _union(shown.values())),
        unit="images",
        source=path.name,
        remarks=_renamed(found.renamed),
    )


def split_name(path: Path, name: str | None) -> str:
    """Returns the name of a list's split. Raises InputError as `listed_split` does."""
    plain = _plain(path.stem if name is None else name)
    if name is not None and name != plain:
        raise InputError(f"--name {name!r}: may hold letters, digits, hyphens and _ . =, such as {plain!r}.")
    return plain


def check_replaces(prepared: Prepared, name: str, images: Iterable[str]) -> None:
    """Raises InputError if a split of that name has other images: runs know it by its name."""
    path = split_path(prepared, name)
    before = read_json(path) if path.exists() else None
    if before is not None and (not isinstance(before, dict) or before.get("labelled") != sorted(images)):
        raise InputError(f"{path}: is there already, with other images: give another --name, or remove it first.")


def images_by_group(prepared: Prepared) -> dict[str, list[str]]:
    """Groups the training images that have a mask. Raises InputError if there is none."""
    images_of: dict[str, list[str]] = {}
    for image in prepared.labelled("train"):
        images_of.setdefault(prepared.groups[image], []).append(image)
    if not images_of:
        raise InputError(f"{prepared.root}: no training image has a mask, so there is nothing to draw from.")
    return images_of


def save_split(prepared: Prepared, split: Split) -> Path:
    """Writes splits/<name>.json and returns its path.

    Raises InputError if a split from a list would replace one of other images.
    """
    path = split_path(prepared, split.name)
    content: dict[str, Any] = {
        "labelled": list(split.images),
        "groups": list(split.groups),
        "seed": split.seed,
        "budget": split.budget,
    }
    if split.source is not None:
        content["list"] = split.source
        check_replaces(prepared, split.name, split.images)
    write_json(path, content)
    return path


def _plain(name: str) -> str:
    return re.sub(r"[^\w.=-]+", "-", name.removesuffix(".json")).strip("-.") or "list"


def _renamed(renamed: Mapping[str, str]) -> tuple[str, ...]:
    """Says how many names of a list differ from those of the set, with one of them."""
    if not renamed:
        return ()
    listed, image = next(iter(renamed.items()))
    return (f"{len(renamed)} of the names are written otherwise in the set: {listed} is taken as {image}.",)


def _with_mask(prepared: Prepared) -> list[str]:
    return [image for images in images_by_group(prepared).values() for image in images]


def _union(shown: Iterable[set[int]]) -> set[int]:
    return set[int]().union(*shown)


def _missing_classes(prepared: Prepared, seen: set[int]) -> tuple[str, ...]:
    return tuple(name for i, name in enumerate(prepared.class_names) if i not in seen)


def _classes_shown(prepared: Prepared, images: Sequence[str]) -> dict[str, set[int]]:
    """Reads the class indices that each image's mask holds; every image must have one."""
    shown: dict[str, set[int]] = {}
    for image in with_progress(images, "reading masks", len(images)):
        path = prepared.mask_path(image)
        assert path is not None, "only images with a mask are labelled"
        shown[image] = set(np.unique(read_mask(path, MOST_PREPARED)).tolist()) - {IGNORE}
    return shown


def _order(shown: dict[str, set[int]], seed: int) -> list[str]:
    """Shuffles the groups, or images; those that show a class which none before them shows come first.

    So a budget of a few of them covers every class if it can, and is still a prefix of a larger budget.
    """
    names = sorted(shown)
    shuffled = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    first: list[str] = []
    seen: set[int] = set()
    for unit in shuffled:
        if not shown[unit] <= seen:
            first.append(unit)
            seen |= shown[unit]
    return first + [unit for unit in shuffled if unit not in set(first)]
