"""Numbers of objects, instances/NAME.png: which pixels are one gland, and the border that is learned from them."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mpamatch.errors import InputError
from mpamatch.images import IGNORE, MOST_OBJECTS, read_mask
from mpamatch.stored import MOST_PREPARED

Numbers = NDArray[np.uint16]  # (H, W)


def numbered(values: NDArray[np.integer], where: Path | str) -> Numbers:
    """Numbers the objects of a mask anew, 1, 2, 3, … in the order of their values; 0 stays 0.

    Raises InputError, about `where`, for more than 65,535 objects.
    """
    found, places = np.unique(values, return_inverse=True)
    first = int(found[0] == 0)
    if len(found) - first > MOST_OBJECTS:
        raise InputError(
            f"{where}: holds {len(found) - first} numbers of objects, and an image may have {MOST_OBJECTS}: cut it "
            "into smaller ones."
        )
    return (places.reshape(values.shape) + (1 - first)).astype(np.uint16)


def instances_problem(numbers: NDArray[np.integer], label: NDArray[np.integer]) -> str | None:
    """Says what is wrong with the numbers of the objects in a label, without the file; None if nothing is.

    Every pixel of a class but the background has a number, and no pixel of the background has one; ignored pixels may.
    """
    if numbers.shape != label.shape:
        sizes = [f"{one.shape[1]}×{one.shape[0]}" for one in (numbers, label)]
        return f"is {sizes[0]} pixels, its mask {sizes[1]}: they must be of one size"
    if numbers.max(initial=0) > MOST_OBJECTS:
        return f"holds the number {numbers.max()}: objects are numbered from 1 to {MOST_OBJECTS}"
    stray = (numbers > 0) & (label == 0)
    if stray.any():
        return f"numbers {stray.sum()} pixels that are background in its mask, as of object {numbers[stray][0]}"
    bare = (numbers == 0) & (label > 0) & (label != IGNORE)
    if bare.any():
        return f"has no number for {bare.sum()} pixels of class {label[bare][0]} in its mask"
    return None


def read_instances(path: Path, label: NDArray[np.uint8]) -> Numbers:  # (H, W)
    """Reads the numbers of the objects in a label. Raises InputError if they cannot be read or do not fit it."""
    numbers = read_mask(path, MOST_PREPARED)
    problem = instances_problem(numbers, label)
    if problem:
        raise InputError(f"{path}: {problem}: prepare the set anew, or remove the file.")
    return numbers.astype(np.uint16)


def border_of(numbers: Numbers, label: NDArray[np.uint8], width: float) -> NDArray[np.uint8]:  # (H, W)
    """Marks the border of every object on both its sides: 1 within, 0 elsewhere, 255 where the label is ignored.

    An edge pixel has a neighbour, of four, with another number; those beside ignored pixels do not count, as nobody
    knows what lies there. What is less than `width` pixels from an edge pixel is border, so two objects that touch have
    2 · width pixels of it between them. An outline, as DCAN's (Chen et al., CVPR 2016) and not only what lies between
    two objects: it is less rare, and every object shows it.
    """
    known = label != IGNORE
    edge = np.zeros(numbers.shape, dtype=bool)
    for one, other in (np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1]):
        differs = (numbers[one] != numbers[other]) & known[one] & known[other]
        edge[one] |= differs
        edge[other] |= differs
    near = ndimage.distance_transform_edt(~edge) < width if edge.any() else edge
    return np.where(known, near, IGNORE).astype(np.uint8)
