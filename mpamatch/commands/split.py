"""`mpamatch split DATA --labelled 10%|N | --images 10%|N | --list FILE`: chooses which training images are labelled."""

import argparse
from collections import Counter
from pathlib import Path

from mpamatch.data.corrected import find_masks, take_masks
from mpamatch.data.name_lists import read_name_list
from mpamatch.data.prepared import Prepared, load_prepared
from mpamatch.data.splits import (
    Split,
    check_replaces,
    draw_split,
    listed_split,
    read_budget,
    save_split,
    split_name,
)
from mpamatch.errors import InputError


def run(arguments: argparse.Namespace) -> int:
    """Draws a split of `arguments.data` by `.labelled` or `.images` and `.seed`, or takes `.list`; returns 0."""
    _check_options(arguments)
    prepared = load_prepared(Path(arguments.data))
    if arguments.masks is not None:
        taken = _take(prepared, arguments)
        print(f"{prepared.root / 'masks'}: {taken} mask{'s' if taken != 1 else ''} taken from {arguments.masks}")
    split = _split(prepared, arguments)
    path = save_split(prepared, split)
    alone = _images_alone(prepared)
    known = 2 * alone <= len(prepared.groups)
    print(f"{path}: {_told(split, known)}")
    for remark in split.remarks:
        print(f"note: {remark}")
    if split.missing_classes:
        print(f"no labelled image shows: {', '.join(split.missing_classes)}")
    beside = _unlabelled_beside(prepared, split) if split.unit == "images" else 0
    if not known:
        print(
            f"note: {alone} of {len(prepared.groups)} images each count as a patient of their own: where several come "
            "from one patient, they may be labelled, unlabelled and in the test part at once."
        )
    elif beside:
        print(
            f"note: {beside} other training images of these patients stay in the pool as unlabelled ones, as in "
            "published splits by image; --labelled takes whole patients."
        )
    return 0


def _check_options(arguments: argparse.Namespace) -> None:
    """Raises InputError unless one way of choosing is given, and no option that does nothing with it."""
    ways = [f"--{way}" for way in ("labelled", "images", "list") if getattr(arguments, way) is not None]
    if len(ways) != 1:
        given = f", not {' and '.join(ways)}" if ways else ""
        raise InputError(
            "split: give one of --labelled (patients, 4 or 10%), --images (8 or 10%) and --list (a file of names)"
            f"{given}."
        )
    if arguments.list is None and arguments.name is not None:
        raise InputError(f"--name: names the split of a --list; one of {ways[0]} is named by budget and seed.")
    if arguments.list is None and arguments.masks is not None:
        raise InputError(f"--masks: takes masks of the images that a --list names, not with {ways[0]}.")
    if arguments.list is not None and arguments.seed is not None:
        raise InputError("--seed: nothing is drawn where --list names the images; leave it out.")


def _take(prepared: Prepared, arguments: argparse.Namespace) -> int:
    """Takes new masks into the set once nothing else can be wrong; returns how many there were."""
    masks = find_masks(prepared, Path(arguments.masks))
    path = Path(arguments.list)
    listed = read_name_list(prepared, path, also=masks).images
    left = sorted(set(masks) - set(listed))
    if left:
        raise InputError(f"{masks[left[0]]}: {path} does not name {left[0]}: add it there, or remove the mask.")
    check_replaces(prepared, split_name(path, arguments.name), listed)
    take_masks(prepared, masks)
    return len(masks)


def _split(prepared: Prepared, arguments: argparse.Namespace) -> Split:
    if arguments.list is not None:
        return listed_split(prepared, Path(arguments.list), arguments.name)
    by_image = arguments.images is not None
    budget = read_budget(arguments.images, "--images") if by_image else read_budget(arguments.labelled)
    return draw_split(prepared, budget, arguments.seed or 0)


def _told(split: Split, known: bool) -> str:
    """Counts what is labelled; patients beside images only if they are known."""
    patients = f"{len(split.groups)} of {split.of_groups} patients"
    images = f"{len(split.images)} of {split.of_images} images labelled"
    if split.unit == "patients":
        return f"{patients}, {images}"
    return f"{images}, from {patients}" if known else images


def _unlabelled_beside(prepared: Prepared, split: Split) -> int:
    """Counts the training images of the patients of labelled images that are not labelled."""
    groups = set(split.groups)
    return sum(prepared.groups[image] in groups for image in set(prepared.parts["train"]) - set(split.images))


def _images_alone(prepared: Prepared) -> int:
    """Counts the images that are the only one of their group."""
    return sum(images == 1 for images in Counter(prepared.groups.values()).values())
