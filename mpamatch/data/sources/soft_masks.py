"""Soft edges and the halo of JPEG: which class a pixel between two drawn values becomes, and what is no edge at all.

An edge that was smeared changes from pixel to pixel, an area does not: an area of a value that nothing explains is a
class that was forgotten, however near its value is to one that is known.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter, minimum_filter

from mpamatch.data.sources.mask_survey import HALO, counted, unpacked, written
from mpamatch.errors import InputError

# Of 534 masks of EBHI-Seg, which are soft, the worst has 7.2 % of its pixels further than HALO from 0 and 255, and
# none an area of such a value.
MOST_FAR = 0.2  # share of a mask's pixels
MOST_DRAWN = 0.001
CLEAR = 0.25  # share of the pixels just above the lowest value, in areas, from which they are no halo


@dataclass
class Moved:
    """How many pixels were moved to the nearest value, over a set.

    Attributes:
        pixels: moved ones.
        of: all pixels.
        files: masks that had any.
        worst: the largest share in a mask.
        where: that mask.
    """

    pixels: int = 0
    of: int = 0
    files: int = 0
    worst: float = 0.0
    where: str = field(default="")

    def add(self, path: Path, pixels: int, of: int) -> None:
        """Counts a mask."""
        self.pixels, self.of, self.files = self.pixels + pixels, self.of + of, self.files + (pixels > 0)
        if pixels / of > self.worst:
            self.worst, self.where = pixels / of, path.name

    def told(self, rule: str) -> str:
        """Says what became of the pixels, `rule` being the rest of the sentence; empty if there was none."""
        if not self.pixels:
            return ""
        worst = f", {self.worst:.1%} in {self.where}" if self.files > 1 else ""
        masks = f"{self.files} mask{'s have' if self.files != 1 else ' has'}"
        share = f"{self.pixels / self.of:.2%} of all pixels{worst}"
        return f"{masks} soft edges or a lossy format's halo ({share}): {rule}."


def nearest(
    path: Path,
    values: NDArray[np.integer],  # (H, W)
    index: dict[int, int],
    *,
    coloured: bool,
    lossy: bool,
    moved: Moved,
) -> NDArray[np.uint8]:  # (H, W)
    """Gives each pixel the class of its value, or of the nearest one that is explained.

    Values are moved only if those explained lie more than HALO apart: the halo of one must not reach another.

    Args:
        path: of the mask, for errors.
        values: numbers, or colours as 0xRRGGBB.
        index: value → class index or 255.
        coloured: whether they are colours.
        lossy: whether the file is a JPEG.
        moved: counts the pixels that are moved.

    Raises:
        InputError: the mask holds values that are not explained and that no soft edge makes: beyond all others, in
            over a fifth of the pixels, as an area, or as the only value beside the first, as in a mask of 0 and 1 where
            0 and 255 are meant; or a JPEG holds numbers side by side, which it cannot keep apart.
    """
    known = np.array(sorted(index), dtype=np.int64)
    classes = np.array([index[value] for value in known.tolist()], dtype=np.uint8)
    found, counts = counted(values)
    apart = _apart(known, classes, coloured)
    if lossy and len(found) > 1 and apart <= HALO:
        raise InputError(
            f"{path}: is a JPEG, which smears values that lie side by side ({_shown(known, coloured)}) into each "
            "other: save it as PNG from where it was drawn."
        )
    unexplained = ~np.isin(found, known)
    off = _distances(found, known, coloured)
    if unexplained.any():
        _check(path, values, found, counts, off, known, apart, coloured=coloured, lossy=lossy)
    moved.add(path, int(counts[unexplained].sum()), values.size)
    return _looked_up(values, found, classes[off.argmin(axis=1)])


def _check(
    path: Path,
    values: NDArray[np.integer],
    found: NDArray[np.int64],
    counts: NDArray[np.int64],
    off: NDArray[np.float64],  # (K, N)
    known: NDArray[np.int64],  # (N,)
    apart: float,
    *,
    coloured: bool,
    lossy: bool,
) -> None:
    """Raises InputError if a value that is not explained is no soft edge's."""
    unexplained, to = ~np.isin(found, known), off.argmin(axis=1)
    wrong = unexplained
    if apart > HALO:
        far = unexplained & (off.min(axis=1) > (HALO * 3**0.5 if coloured else HALO))
        beyond = np.zeros_like(far) if coloured else _beyond(found, known, apart)
        # Near the lowest value stand the numbers 1, 2, … of masks that were meant otherwise.
        low = unexplained & ~far & (to == 0)
        if beyond.any():
            wrong = beyond
        elif (
            counts[far].sum() > MOST_FAR * values.size
            or areas(values, found, far, coloured, tolerance=2) > MOST_DRAWN * values.size
        ):
            wrong = far
        elif low.any() and looks_drawn(values, found, counts, low, coloured, lossy):
            wrong = low
        else:
            return
    most = np.flatnonzero(wrong)[np.argsort(-counts[wrong], kind="stable")][:5]
    shown = _shown(np.sort(found[most]), coloured) + (", …" if wrong.sum() > 5 else "")
    what = "colour" if coloured else "value"
    raise InputError(
        f"{path}: holds the {what}{'s' * (len(most) > 1)} {shown}, which --mask-values does not explain "
        f"({counts[wrong].sum() / values.size:.1%} of its pixels); it explains {_shown(known, coloured)}: "
        f"add {_shown(found[most[:1]], coloured)}:NAME, or :ignore for what is not to be learned."
    )


def _beyond(found: NDArray[np.int64], known: NDArray[np.int64], apart: float) -> NDArray[np.bool_]:
    """Marks numbers that lie outside of all that are explained, further than a sharpened edge goes."""
    return (found > known[-1] + apart / 4) | (found < known[0] - apart / 4)


def looks_drawn(
    values: NDArray[np.integer],
    found: NDArray[np.int64],
    counts: NDArray[np.int64],
    low: NDArray[np.bool_],
    coloured: bool,
    lossy: bool,
) -> bool:
    """Tells whether values just above the lowest were drawn, as the 1 of a mask of 0 and 1, or are its halo.

    They were if the mask holds two values in all, as an edge has two sides, or a quarter of their pixels lie in areas
    of one value: in JPEGs of discs none do from quality 10 up. A JPEG may cut a halo off from its object with one
    value.
    """
    if len(found) <= 2 and not lossy:
        return True
    return areas(values, found, low, coloured, tolerance=0) >= CLEAR * counts[low].sum()


def areas(
    values: NDArray[np.integer],  # (H, W)
    found: NDArray[np.int64],
    chosen: NDArray[np.bool_],
    coloured: bool,
    tolerance: int,
) -> int:
    """Counts the pixels of the chosen values whose 3×3 neighbours differ from each other by at most `tolerance`."""
    if not chosen.any():
        return 0
    planes = unpacked(values.astype(np.int64)) if coloured else values[..., None]
    flat = np.ones(values.shape, dtype=bool)
    for plane in np.moveaxis(planes, -1, 0):
        flat &= maximum_filter(plane, 3) - minimum_filter(plane, 3) <= tolerance
    return int((flat & _looked_up(values, found, chosen.astype(np.uint8)).astype(bool)).sum())


def _looked_up(values: NDArray[np.integer], found: NDArray[np.int64], of_found: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Replaces each value by what belongs to it in `of_found`."""
    if values.dtype == np.uint8:
        table = np.zeros(256, dtype=np.uint8)
        table[found] = of_found
        return table[values]
    return of_found[np.searchsorted(found, values)]


def _distances(found: NDArray[np.int64], known: NDArray[np.int64], coloured: bool) -> NDArray[np.float64]:  # (K, N)
    if not coloured:
        return np.abs(found[:, None] - known[None]).astype(np.float64)
    ends = [unpacked(one).astype(np.float64) for one in (found, known)]
    return np.linalg.norm(ends[0][:, None] - ends[1][None], axis=-1)


def _apart(known: NDArray[np.int64], classes: NDArray[np.uint8], coloured: bool) -> float:
    """Measures the smallest distance between two values that mean different classes."""
    return float(_distances(known, known, coloured)[classes[:, None] != classes[None]].min())


def _shown(values: NDArray[np.int64], coloured: bool) -> str:
    return ", ".join(written(value) if coloured else str(value) for value in values.tolist())
