"""Objects in a predicted label: regions of a class, told apart by the border that the network has learned."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mpamatch.inference.tiles import most_probable

INSIDE = 0.15  # border probability below which a pixel is inside an object
SMALLEST = 20  # pixels of the scaled image: smaller insides are holes in a border, and smaller regions specks


def separate(
    label: NDArray[np.uint8],  # (H, W) class index
    border: NDArray[np.float32],  # (H, W) 0 to 1
    scale: float = 1.0,
    *,
    inside: float = INSIDE,
    smallest: float = SMALLEST,
) -> NDArray[np.int32]:  # (H, W)
    """Numbers the objects of a label, 1, 2, 3, …, those of the first class first; 0 elsewhere.

    Seeds are the 8-connected insides, pixels of a class whose border probability is below `inside`; from them a
    watershed of the border probability fills each region of the class. A region without a seed is one object, or none
    if it is smaller than `smallest`.

    Args:
        label: predicted.
        border: the probability of each pixel being on the border of an object.
        scale: factor on the image's size before the network saw it: areas are measured in its pixels.
        inside: border probability below which a pixel is inside.
        smallest: least pixels, of the scaled image, of a seed and of a region without one.
    """
    from skimage import measure, segmentation  # half a second, and only runs that learn borders need it

    numbers = np.zeros(label.shape, dtype=np.int32)
    for index in range(1, int(label.max(initial=0)) + 1):
        of_class = label == index
        if not of_class.any():
            continue
        seeds = measure.label(of_class & (border < inside), connectivity=2)
        large = np.bincount(seeds.ravel()) * scale**2 >= smallest
        large[0] = False
        seeds = (np.cumsum(large) * large)[seeds]
        regions = measure.label(of_class, connectivity=2)
        seeded = np.zeros(regions.max() + 1, dtype=bool)
        seeded[regions[seeds > 0]] = True
        whole = ~seeded & (np.bincount(regions.ravel()) * scale**2 >= smallest)
        whole[0] = False
        seeds[whole[regions]] = seeds.max() + regions[whole[regions]]
        found = segmentation.watershed(border, seeds, mask=of_class, connectivity=2)
        numbers[found > 0] = numbers.max() + found[found > 0]
    return _without_gaps(numbers)


def label_and_objects(
    probability: Tensor,  # (C, H, W) of the classes
    border: Tensor,  # (H, W)
    scale: float,
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:  # both (H, W)
    """Makes the label and the numbers of its objects from what `Segmenter.with_borders` yields."""
    label = most_probable(probability).cpu().numpy()
    return label, separate(label, border.cpu().numpy(), scale)


def _without_gaps(numbers: NDArray[np.int32]) -> NDArray[np.int32]:
    """Numbers anew, in the same order, without gaps."""
    there = np.bincount(numbers.ravel()) > 0
    there[0] = False
    return (np.cumsum(there) * there).astype(np.int32)[numbers]
