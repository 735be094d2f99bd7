"""Splits: which training images count as labelled, a budget of groups (patients) drawn once and written down."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpamatch.data.prepared import Prepared, split_path, with_progress
from mpamatch.errors import InputError
from mpamatch.files import write_json
from mpamatch.images import IGNORE, read_mask


@dataclass(frozen=True)
class Split:
    """A drawn split, not yet written.

    Attributes:
        name: of its file in splits/.
        budget: as it was asked for, such as "10%".
        seed: of the draw.
        groups: whose images are labelled.
        images: that are labelled.
        of_groups: how many groups of the training part have a mask.
        of_images: how many images the training part has.
        missing_classes: that no labelled image shows.
    """

    name: str
    budget: str
    seed: int
    groups: tuple[str, ...]
    images: tuple[str, ...]
    of_groups: int
    of_images: int
    missing_classes: tuple[str, ...]


def write_split(prepared: Prepared, labelled: str, seed: int) -> Path:
    """Draws a split, writes splits/<name>.json and returns its path. The same arguments write the same file again."""
    return save_split(prepared, draw_split(prepared, labelled, seed))


def draw_splits(prepared: Prepared, budgets: Sequence[str], seeds: Sequence[int]) -> dict[tuple[str, int], Split]:
    """Draws a split for every (budget, seed); each mask is read once. Raises InputError as `draw_split` does."""
    shown = _classes_shown(prepared, images_by_group(prepared))
    return {(budget, seed): draw_split(prepared, budget, seed, shown) for seed in seeds for budget in budgets}


def draw_split(prepared: Prepared, labelled: str, seed: int, shown: dict[str, set[int]] | None = None) -> Split:
    """Draws the groups whose images count as labelled.

    A seed gives one order of the groups, and a budget takes the first of them, so a smaller budget lies within a larger
    one.

    Args:
        prepared: the set.
        labelled: the budget: "4" or "10%" of the training part's groups that have a mask; a percentage is rounded to
            whole groups, one at least.
        seed: of the order.
        shown: the class indices in each group's masks; None: they are read.

    Raises:
        InputError: the budget is no number, not above 0 or more than there is, the seed is negative, or no training
            image has a mask.
    """
    if seed < 0:
        raise InputError(f"--seed {seed}: must not be negative.")
    images_of = images_by_group(prepared)
    wanted, budget = _budget(labelled, len(images_of))
    shown = _classes_shown(prepared, images_of) if shown is None else shown
    groups = _order(shown, seed)[:wanted]
    seen = set[int]().union(*(shown[group] for group in groups))
    return Split(
        name=f"labelled-{budget}-seed{seed}",
        budget=labelled.strip(),
        seed=seed,
        groups=tuple(groups),
        images=tuple(sorted(image for group in groups for image in images_of[group])),
        of_groups=len(images_of),
        of_images=len(prepared.parts["train"]),
        missing_classes=tuple(name for i, name in enumerate(prepared.class_names) if i not in seen),
    )


def images_by_group(prepared: Prepared) -> dict[str, list[str]]:
    """Groups the training images that have a mask. Raises InputError if there is none."""
    images_of: dict[str, list[str]] = {}
    for image in prepared.labelled("train"):
        images_of.setdefault(prepared.groups[image], []).append(image)
    if not images_of:
        raise InputError(f"{prepared.root}: no training image has a mask, so there is nothing to draw from.")
    return images_of


def save_split(prepared: Prepared, split: Split) -> Path:
    """Writes splits/<name>.json and returns its path."""
    path = split_path(prepared, split.name)
    content = {
        "labelled": list(split.images),
        "groups": list(split.groups),
        "seed": split.seed,
        "budget": split.budget,
    }
    write_json(path, content)
    return path


def _budget(labelled: str, groups: int) -> tuple[int, str]:
    """Reads a budget: how many groups, and the budget as it stands in the split's name."""
    match = re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?)\s*%", labelled.strip(), re.ASCII)
    if match is None:
        raise InputError(f"--labelled {labelled!r}: must be a number of patients (4) or a percentage (10%).")
    if match[1] is not None:
        wanted = int(match[1])
        if not 1 <= wanted <= groups:
            raise InputError(f"--labelled {labelled}: must be from 1 to {groups}, the patients with a mask.")
        return wanted, str(wanted)
    percent = float(match[2])
    if not 0 < percent <= 100:
        raise InputError(f"--labelled {labelled}: must be above 0 and at most 100 %.")
    return max(1, int(percent / 100 * groups + 0.5)), f"{percent:g}pct"


def _classes_shown(prepared: Prepared, images_of: dict[str, list[str]]) -> dict[str, set[int]]:
    """Reads the class indices that each group's masks hold."""
    shown: dict[str, set[int]] = {}
    for group, images in with_progress(images_of.items(), "reading masks", len(images_of)):
        shown[group] = set()
        for image in images:
            path = prepared.mask_path(image)
            if path is not None:
                shown[group] |= set(np.unique(read_mask(path)).tolist()) - {IGNORE}
    return shown


def _order(shown: dict[str, set[int]], seed: int) -> list[str]:
    """Shuffles the groups; those that show a class which none before them shows come first.

    So a budget of a few groups covers every class if it can, and is still a prefix of a larger budget.
    """
    names = sorted(shown)
    shuffled = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    first: list[str] = []
    seen: set[int] = set()
    for group in shuffled:
        if not shown[group] <= seen:
            first.append(group)
            seen |= shown[group]
    return first + [group for group in shuffled if group not in set(first)]
