"""Masks of published sets in which one thing is drawn: 0 and 255, or copies of them that were stored otherwise."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mpamatch.data.instances import Numbers, numbered
from mpamatch.data.sources.mask_survey import Look, counted, is_grey, packed, peaks, seen, survey, written
from mpamatch.data.sources.soft_masks import CLEAR, Moved, areas, looks_drawn
from mpamatch.errors import InputError
from mpamatch.images import read_stored_mask

HALF = 127  # of 0 and 255: what lies above is drawn


class DrawnMasks:
    """Reads the masks of a set as drawn or not: published as 0 and 255, smeared by JPEG or soft, and cut at half.

    Copies may hold 0 and 1, or 0 and 100, all over; then what is not 0 is drawn, and `findings` says so. A mask that is
    low among others that are not is no less drawn, so it is refused; only the halo of a neighbour is not.
    """

    def __init__(self, masks: Sequence[Path]) -> None:
        self._masks = list(masks)
        self._drawn: int | None = None  # the value that is drawn, once a mask has shown it
        self._moved = Moved()
        self._inverted = 0

    def read(self, path: Path) -> NDArray[np.bool_]:  # (H, W)
        """Reads a mask; True is drawn.

        Raises InputError, naming the file, if it cannot be read, is coloured, or holds other values than most do.
        """
        mask = read_stored_mask(path)
        if mask.values.ndim == 3:
            raise InputError(f"{path}: is a coloured mask: save it as greys, 0 and 255, as it was published.")
        check_greys(path, mask.palette, mask.values)
        self._inverted += mask.white_is_zero
        values = seen(mask, "greys", one_bit_white=True)
        highest = int(values.max())
        if highest == 0:
            return np.zeros(values.shape, dtype=bool)
        if self._drawn is None:
            self._drawn = 255 if highest > HALF else self._low_all_over()
        found, counts = counted(values)
        if self._drawn != 255:
            if set(found.tolist()) - {0, self._drawn}:
                raise self._mixed(path, found, f"others hold 0 and {self._drawn}")
            return values > 0
        if highest <= HALF and looks_drawn(values, found, counts, found > 0, False, mask.format in ("JPEG", "MPO")):
            raise self._mixed(path, found, "others hold 0 and 255")
        self._moved.add(path, int(counts[(found > 0) & (found < 255)].sum()), values.size)
        return values > HALF

    def findings(self) -> list[str]:
        """Says what came out once all masks were read."""
        told = []
        if self._drawn not in (None, 255):
            told.append(
                f"the masks hold 0 and {self._drawn} instead of 0 and 255, as they were published: {self._drawn} was "
                "read as drawn."
            )
        soft = self._moved.told("they were cut at half")
        return [*told, *inverted(self._inverted), *([soft] if soft else [])]

    def _low_all_over(self) -> int:
        """Finds the one value that all masks hold beside 0. Raises InputError, naming a file, if there is none."""
        looks = [_as_shown(look) for look in survey(self._masks)]
        drawn = [look for look in looks if look.numbers - {0}]
        values = {value for look in drawn for value in look.numbers} - {0}
        if len(values) == 1:
            return values.pop()
        low = [look for look in drawn if max(look.numbers) <= HALF]
        others = "others hold 0 and 255" if len(low) < len(drawn) else "0 and 255 were published"
        raise self._mixed(low[0].path, low[0].values, others, len(low))

    def _mixed(self, path: Path, found: NDArray[np.int64], others: str, count: int = 1) -> InputError:
        shown = ", ".join(map(str, found[:5].tolist())) + (", …" if len(found) > 5 else "")
        more = f" (and {count - 1} more)" if count > 1 else ""
        return InputError(
            f"{path}{more}: holds {shown}, where {others}: save it with 0 and 255 too, 255 "
            "for what is drawn, or prepare the set as a folder with --mask-values."
        )


class NumberedMasks:
    """Reads masks that number their objects: what is above 0 is drawn, but soft edges are cut at half.

    Edges are soft if nearly all pixels hold 0 and one other value, and the rest lie between them.
    """

    def __init__(self, masks: Sequence[Path]) -> None:
        self._masks = list(masks)
        self._told_apart: bool | None = None  # whether some mask numbers several objects, once one was asked for
        self._moved = Moved()
        self._gaps: list[str] = []  # masks whose numbers are not 1, 2, 3, …
        self._inverted = 0

    def read(self, path: Path) -> tuple[NDArray[np.bool_], Numbers | None]:  # both (H, W)
        """Reads a mask: what is drawn, and the numbers of its objects from 1, or None if masks tell none apart.

        Raises InputError, naming the file, if it cannot be read, is coloured, shows another colour than black for 0, or
        is a JPEG of numbers, which it cannot keep apart.
        """
        mask = read_stored_mask(path)
        if mask.values.ndim == 3:
            raise InputError(f"{path}: is a coloured mask: save one channel with a number per object, 0 elsewhere.")
        palette, values = mask.palette, mask.values
        self._inverted += mask.white_is_zero
        if palette is not None and len(palette) and (values == 0).any() and palette[0].any():
            raise InputError(
                f"{path}: has a palette that shows 0 as {written(int(packed(palette)[0]))}, not black: save it as "
                "greys with 0 for what is no object."
            )
        found, counts = counted(values)
        drawn = peaks(Counter(dict(zip(found.tolist(), counts.tolist(), strict=True))))
        if drawn is not None and len(drawn) == 2 and min(drawn) == 0 and self._is_soft(values, found, counts, drawn):
            self._moved.add(path, int(counts[~np.isin(found, drawn)].sum()), values.size)
            return 2 * values.astype(np.int64) > max(drawn), None
        self._moved.add(path, 0, values.size)
        if mask.format in ("JPEG", "MPO") and len(found) > 2:
            raise InputError(f"{path}: is a JPEG, which smears numbers of objects: save it as PNG or BMP.")
        numbers = found[found > 0]
        if len(numbers) > 1 and len(numbers) < numbers[-1]:
            self._gaps.append(path.name)
        if len(numbers) > 1:
            self._told_apart = True
        elif self._told_apart is None:
            self._told_apart = any(len(look.numbers - {0}) > 1 for look in survey(self._masks))
        return values > 0, numbered(values, path) if self._told_apart else None

    @staticmethod
    def _is_soft(
        values: NDArray[np.integer], found: NDArray[np.int64], counts: NDArray[np.int64], drawn: list[int]
    ) -> bool:
        """Whether the values between two that were drawn lie in edges, not in areas as further objects do."""
        between = ~np.isin(found, drawn)
        return areas(values, found, between, False, tolerance=0) < CLEAR * counts[between].sum()

    def findings(self) -> list[str]:
        """Says what came out once all masks were read."""
        told = []
        if self._gaps:
            told.append(
                f"{len(self._gaps)} masks, {self._gaps[0]} the first, hold other numbers than 1, 2, 3, … without a "
                "gap: all above 0 was read as drawn."
            )
        if self._told_apart is False:
            told.append("no mask holds two numbers, so they tell no objects apart, and none were kept.")
        soft = self._moved.told("they were cut at half, not counted as numbers of objects")
        return [*told, *inverted(self._inverted), *([soft] if soft else [])]


def inverted(masks: int) -> list[str]:
    """Says of so many masks that viewers show them inverted; nothing if there are none."""
    if not masks:
        return []
    return [
        f"{masks} masks say that 0 is white (TIFF's WhiteIsZero), so viewers show them inverted: their stored numbers "
        "were read."
    ]


def check_greys(path: Path, palette: NDArray[np.uint8] | None, values: NDArray[np.integer]) -> None:
    """Raises InputError if a mask shows colours by its palette where greys are expected."""
    if palette is None:
        return
    used = packed(palette)[[value for value in np.unique(values).tolist() if value < len(palette)]].tolist()
    if not all(is_grey(colour) for colour in used):
        raise InputError(f"{path}: is a mask with a palette of colours: save it as greys, 0 and 255.")


def _as_shown(look: Look) -> Look:
    """Returns a look in terms of the greys that are shown."""
    if look.one_bit:
        return replace(look, values=look.values * 255)
    if look.palette is None:
        return look
    greys = np.unique([look.palette[value] & 255 for value in look.values.tolist()]).astype(np.int64)
    return replace(look, values=greys, palette=None)
