"""What the masks of a set hold, looked at together before any of them is given a meaning."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mpamatch.console import with_progress
from mpamatch.images import StoredMask, read_stored_mask

BLACK, WHITE = 0x000000, 0xFFFFFF
HALO = 16  # levels: what JPEG, at its worst quality, puts on a flat area
MOST_KEPT = 4096  # values of a file that are remembered, the most frequent ones


@dataclass(frozen=True)
class Look:
    """What one mask holds.

    Attributes:
        path: its file.
        values: (K,) rising: numbers, or colours as 0xRRGGBB.
        counts: (K,) pixels of each.
        coloured: whether its pixels are colours.
        palette: number → colour of those that occur; None without a palette.
        format: PNG, JPEG, TIFF, …, whatever the file's name says.
        one_bit: whether it holds one bit per pixel.
        white_is_zero: whether viewers show it inverted.
        turn: EXIF orientation that was applied; 1 is none.
    """

    path: Path
    values: NDArray[np.int64]
    counts: NDArray[np.int64]
    coloured: bool
    palette: dict[int, int] | None
    format: str
    one_bit: bool
    white_is_zero: bool
    turn: int = 1

    @property
    def numbers(self) -> set[int]:
        """The values as a set."""
        return set(self.values.tolist())


def survey(masks: Sequence[Path]) -> list[Look]:
    """Looks at every mask. Raises InputError, naming the file, if one cannot be read."""
    return [look_at(path) for path in with_progress(masks, "reading masks", len(masks))]


def look_at(path: Path) -> Look:
    """Reads a mask and counts what it holds. Raises InputError as `read_mask` does."""
    mask = read_stored_mask(path)
    coloured = mask.values.ndim == 3
    values, counts = counted(packed(mask.values) if coloured else mask.values)
    if len(values) > MOST_KEPT:
        kept = np.sort(np.argsort(-counts, kind="stable")[:MOST_KEPT])
        values, counts = values[kept], counts[kept]
    palette = None
    if mask.palette is not None:
        table = packed(mask.palette).tolist()
        palette = {value: table[value] if value < len(table) else BLACK for value in values.tolist()}
    return Look(path, values, counts, coloured, palette, mask.format, mask.one_bit, mask.white_is_zero, mask.turn)


def counted(values: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Counts the pixels of each value that occurs: the values, rising, and their counts."""
    if values.dtype == np.uint8:
        counts = np.bincount(values.ravel(), minlength=256)
        found = np.flatnonzero(counts)
        return found.astype(np.int64), counts[found].astype(np.int64)
    found, counts = np.unique(values, return_counts=True)
    return found.astype(np.int64), counts.astype(np.int64)


def packed(
    colours: NDArray[np.uint8],  # (…, 3)
) -> NDArray[np.int64]:  # (…)
    """Writes colours as numbers, 0xRRGGBB."""
    wide = colours.astype(np.int64)
    return (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]


def unpacked(
    colours: NDArray[np.int64],  # (…)
) -> NDArray[np.uint8]:  # (…, 3)
    """Writes numbers 0xRRGGBB as colours."""
    return np.stack([(colours >> 16) & 255, (colours >> 8) & 255, colours & 255], axis=-1).astype(np.uint8)


def is_grey(colour: int) -> bool:
    """Whether a colour has equal channels."""
    return colour >> 16 == (colour >> 8) & 255 == colour & 255


def written(colour: int) -> str:
    """Writes a colour as #rrggbb."""
    return f"#{colour:06x}"


def seen(mask: StoredMask, reading: str, one_bit_white: bool) -> NDArray[np.integer]:  # (H, W)
    """Takes of each pixel of a mask what `reading` asks for.

    Args:
        mask: as it is stored.
        reading: numbers: as stored; greys: the greys that a palette of greys shows; colours: 0xRRGGBB.
        one_bit_white: whether the 1 of a 1-bit mask counts as 255, as it is shown.
    """
    values = mask.values * np.uint8(255) if mask.one_bit and (one_bit_white or reading == "colours") else mask.values
    if reading == "colours":
        if values.ndim == 3:
            return packed(values.astype(np.uint8))
        return _through(mask.palette, values) if mask.palette is not None else values.astype(np.int64) * 0x010101
    if reading == "greys" and mask.palette is not None:
        return (_through(mask.palette, values) & 255).astype(np.uint8)
    return values


def _through(palette: NDArray[np.uint8], values: NDArray[np.integer]) -> NDArray[np.int64]:
    table = np.zeros(max(256, int(values.max(initial=0)) + 1), dtype=np.int64)  # what a palette lacks is shown black
    table[: len(palette)] = packed(palette)
    return table[values]


def total(looks: Sequence[Look]) -> Counter[int]:
    """Counts the pixels of each value over all masks."""
    found: Counter[int] = Counter()
    for look in looks:
        found.update(dict(zip(look.values.tolist(), look.counts.tolist(), strict=True)))
    return found


def peaks(counts: Counter[int]) -> list[int] | None:
    """Finds the few values that were drawn where soft edges or a lossy format put others between them.

    Values are taken from the most frequent down, those within the halo of one that was taken left out, until the next
    has less than a tenth of the pixels of the rarest taken: an edge spreads its pixels over many values, a class has
    them in one. Numbers of objects come in like counts, so that they end in many peaks.

    Args:
        counts: pixels of each value over the set.

    Returns:
        The values, most frequent first; None if there are fewer than two, more than eight, or others that do not lie
        between them or hold over a quarter of the pixels.
    """
    found: list[int] = []
    for value, count in sorted(counts.items(), key=lambda one: (-one[1], one[0])):
        if any(abs(value - one) <= HALO for one in found):
            continue
        if len(found) >= 2 and count * 10 < counts[found[-1]]:
            break
        found.append(value)
        if len(found) > 8:
            return None
    moved = sum(counts.values()) - sum(counts[value] for value in found)
    if len(found) < 2 or moved * 4 > sum(counts.values()) or moved == 0:
        return None
    beyond = max(counts) > max(found) + HALO or min(counts) < min(found) - HALO
    return None if beyond else found


def distance(one: int, other: int) -> float:
    """Measures how far two colours are apart, in levels: the length of their difference."""
    ends = unpacked(np.array([one, other])).astype(float)
    return float(np.linalg.norm(ends[0] - ends[1]))


def named(looks: Sequence[Look]) -> str:
    """Names the first file of several, and how many more there are."""
    more = f" and {len(looks) - 1} more" if len(looks) > 1 else ""
    return f"{looks[0].path.name}{more}"
