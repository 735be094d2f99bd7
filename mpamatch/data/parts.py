"""Parts of a data set drawn by group: no group is in two parts, and the same names give the same parts everywhere."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from mpamatch.errors import InputError


def parts_by_group(groups: Iterable[str]) -> dict[str, str]:
    """Assigns each group to train, validation or test, about 60/20/20, by its place in `hash_order`.

    The order depends on nothing but the names, so the same set gives the same parts everywhere. From three groups on no
    part is empty; two groups are train and validation, one is train.
    """
    order = hash_order(groups)
    share = max(1, round(0.2 * len(order)))
    tests = share if len(order) >= 3 else 0
    validations = share if len(order) >= 2 else 0
    parts = ["test"] * tests + ["validation"] * validations
    return {group: parts[i] if i < len(parts) else "train" for i, group in enumerate(order)}


def hash_order(names: Iterable[str]) -> list[str]:
    """Sorts the distinct `names` by their SHA-256: an arbitrary order that is the same everywhere."""
    return sorted(set(names), key=lambda name: hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest())


def held_out(groups: Iterable[str], share: float = 0.2) -> set[str]:
    """Chooses the groups to hold out for validation; `groups` names the group of each image.

    Groups are taken in `hash_order`, each if it brings the images held out nearer to `share` of all. If there are two
    groups or more, at least one is held out and one is not.
    """
    sizes = Counter(groups)
    wanted = share * sizes.total()
    order = hash_order(sizes)
    taken: set[str] = set()
    held = 0
    for group in order:
        if abs(held + sizes[group] - wanted) < abs(held - wanted):
            taken.add(group)
            held += sizes[group]
    if not taken and len(order) >= 2:
        taken.add(min(order, key=lambda group: sizes[group]))
    return taken


def group_finder(group_regex: str) -> Callable[[str, Path], str]:
    """Makes a function that finds the group in a name: the regex's first capture group, or the whole match.

    It takes the name and the file, for its sentence. Raises InputError, both do, if the regex is broken or finds none.
    """
    try:
        pattern = re.compile(group_regex)
    except re.error as error:
        raise InputError(f"--group-regex {group_regex!r}: is no regular expression ({error}).") from error

    def find(name: str, path: Path) -> str:
        match = pattern.search(name)
        group = match and (match[1] if pattern.groups else match[0])
        if not group:
            raise InputError(f"{path}: --group-regex {group_regex!r} finds no group in {name!r}.")
        return str(group)

    return find
