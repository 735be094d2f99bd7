"""Parts of a data set drawn by group: no group is in two parts, and the same names give the same parts everywhere."""

import hashlib
from collections import Counter
from collections.abc import Iterable


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
