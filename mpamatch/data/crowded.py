"""Glands back to back: what is left of a gland beside those that stand there, and how deep a pixel lies in its own."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

LEAST_LEFT = 0.6  # share of a gland that its neighbours may not cut off, so that none is a mere rim of another
SMALLEST = 200  # pixels

Numbers = NDArray[np.int64]  # (H, W), 0 where there is no gland


def pressed(
    wanted: NDArray[np.bool_],  # (H, W) where a gland would lie
    number: Numbers,
    tissue: NDArray[np.float64],  # (H, W) positive inside the tissue
) -> NDArray[np.bool_]:  # (H, W)
    """Cuts a new gland off where others stand already, its largest piece; nothing if too little is left of it."""
    free = wanted & (number == 0) & (tissue > 1)
    pieces, count = ndimage.label(free)
    if not count:
        return free
    sizes = np.bincount(pieces.ravel())[1:]
    enough = sizes.max() >= max(SMALLEST, LEAST_LEFT * wanted.sum())
    return (pieces == 1 + sizes.argmax()) & enough


def own_depth(number: Numbers) -> tuple[NDArray[np.float64], tuple[NDArray[np.int32], NDArray[np.int32]]]:
    """Computes for every pixel its distance to the nearest pixel that is not of its gland, and that pixel's place.

    Both are those of `scipy.ndimage.distance_transform_edt`, gland by gland, so that two that touch have each an edge.
    """
    depth = np.zeros(number.shape)
    places: NDArray[np.int32] = np.array(np.indices(number.shape, dtype=np.int32))
    rows, columns = places[0], places[1]
    for one in range(1, int(number.max()) + 1):
        inside = number == one
        if inside.any():
            far, feet = ndimage.distance_transform_edt(inside, return_indices=True)
            depth[inside] = far[inside]
            places[:, inside] = feet[:, inside]
    return depth, (rows, columns)
