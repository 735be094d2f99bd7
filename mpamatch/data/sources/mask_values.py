"""What the values in the masks of a folder mean: class indices, --mask-values, or numbers of objects.

It is decided over the whole set. --mask-values speaks of what one sees: numbers, the greys of a palette of greys, or
colours. Where two readings are possible, a remark says which was taken, or an error gives the line to choose by.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mpamatch.data.instances import Numbers, numbered
from mpamatch.data.raw import Class
from mpamatch.data.sources.mask_advice import (
    Advice,
    colour_advice,
    coloured_files,
    value_advice,
)
from mpamatch.data.sources.mask_survey import BLACK, WHITE, Look, is_grey, named, peaks, seen, survey, total, written
from mpamatch.data.sources.soft_masks import Moved, nearest
from mpamatch.errors import InputError
from mpamatch.images import IGNORE, default_colour, read_stored_mask

# More values than this in masks without --mask-values are instance numbers or a lossy format, not classes.
MOST_UNEXPLAINED = 20

_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")


@dataclass(frozen=True)
class Meaning:
    """What the masks mean.

    Attributes:
        classes: the background first.
        index: value → class index or 255; empty for numbers of objects.
        reading: of a pixel: numbers, greys or colours, as `mask_survey.seen` takes them.
        one_bit_white: whether the 1 of a 1-bit mask counts as 255.
        instances: whether all above 0 is one class.
        told_apart: whether these numbers tell objects apart, so that they are kept.
        remarks: what the user should know of the choice.
        moved: counts pixels while labels are read.
    """

    classes: tuple[Class, ...]
    index: dict[int, int]
    reading: str = "numbers"
    one_bit_white: bool = False
    instances: bool = False
    told_apart: bool = False
    remarks: tuple[str, ...] = ()
    moved: Moved = field(default_factory=Moved)

    def label_of(self, path: Path) -> NDArray[np.uint8]:  # (H, W)
        """Reads a mask as class indices. Raises InputError if it holds a value without a meaning."""
        mask = read_stored_mask(path)
        values = seen(mask, self.reading, self.one_bit_white)
        if self.instances:
            return (values > 0).astype(np.uint8)
        if self.reading == "colours" and mask.values.ndim == 2 and mask.palette is None and mask.values.max() > 255:
            raise InputError(
                f"{path}: holds the number {mask.values.max()}, which is no grey, and --mask-values tells colours: "
                "save it with the colours of the others."
            )
        coloured, lossy = self.reading == "colours", mask.format in ("JPEG", "MPO")
        return nearest(path, values, self.index, coloured=coloured, lossy=lossy, moved=self.moved)

    def objects_of(self, path: Path) -> Numbers | None:
        """Reads the numbers of the objects in a mask, anew from 1; None if masks have none that are to be kept.

        Raises InputError if there are too many of them.
        """
        if not self.told_apart:
            return None
        return numbered(seen(read_stored_mask(path), self.reading, self.one_bit_white), path)

    def findings(self) -> list[str]:
        """Says what came out once all labels were read."""
        rule = "each of these pixels became the nearest of the values explained"
        if len(self.index) > 2:
            rule += ", so an edge between two classes may have a rim of one that lies between them: look at check.png"
        told = self.moved.told(rule)
        return [told] if told else []


def meaning_of(masks: Sequence[Path], mask_values: str | None, instances: bool) -> Meaning:
    """Decides what the masks of a set mean, by the options or, without any, by all that they hold.

    Raises InputError if `mask_values` is malformed, a mask cannot be read, or the masks can be read in more than one
    way; the sentence has the option that chooses.
    """
    given = None if mask_values is None else _parsed(mask_values)
    looks = survey(masks)
    remarks = _as_stored(looks)
    if given is not None and given.reading == "colours":
        return _with(given, remarks)
    if any(look.coloured for look in looks):
        raise InputError(coloured_files(looks))
    reading, told = _reading(looks, explained=given is not None, instances=instances)
    looks = [_read_as(look, reading) for look in looks]
    remarks += told
    if instances:
        return _objects(looks, reading, remarks)
    if given is not None:
        one_bit_white = 1 not in given.index and 255 in given.index
        return _with(given, remarks, reading, one_bit_white)
    return _unexplained(looks, reading, remarks)


def _with(given: Meaning, remarks: list[str], reading: str = "colours", one_bit_white: bool = False) -> Meaning:
    return Meaning(given.classes, given.index, reading, one_bit_white, remarks=tuple(remarks))


def _as_stored(looks: Sequence[Look]) -> list[str]:
    """Says which masks viewers show inverted, and which were turned."""
    told = []
    if inverted := [look for look in looks if look.white_is_zero]:
        told.append(
            f"{len(inverted)} of {len(looks)} masks say that 0 is white (TIFF's WhiteIsZero: {named(inverted)}), so "
            "viewers show them inverted: their stored numbers were read, in which 0 is the background."
        )
    if turned := [look for look in looks if look.turn != 1]:
        told.append(
            f"{len(turned)} of {len(looks)} masks have an EXIF orientation ({named(turned)}) and were turned so."
        )
    return told


def _reading(looks: Sequence[Look], *, explained: bool, instances: bool) -> tuple[str, list[str]]:
    """Decides what of the palettes counts, numbers or greys. Raises InputError if numbers do not tell what is seen."""
    tables = [look for look in looks if look.palette is not None]
    colours: dict[int, set[int]] = {}  # number → colours that it is shown in
    for look in tables:
        for number, colour in (look.palette or {}).items():
            colours.setdefault(number, set()).add(colour)
    shown = {colour for those in colours.values() for colour in those}
    if all(is_grey(colour) for colour in shown):
        return _reading_of_greys(looks, colours, explained or instances)
    agree = all(len(those) == 1 for those in colours.values())
    first = colours.get(0, {BLACK})
    if instances and first == {BLACK}:
        return "numbers", []
    elsewhere = {colour for number, those in colours.items() if number > 0 for colour in those}
    if not agree or (first != {BLACK} and elsewhere & {BLACK, WHITE}):
        why = "differ from file to file" if not agree else f"show 0 as {written(min(first))}, not as the background"
        advice = colour_advice(looks)
        raise InputError(f"{tables[0].path.parent}: the palettes of the masks {why}: {advice.sentence(tables)}")
    if first == {BLACK} or explained:
        return "numbers", []
    told = ", ".join(f"{number} {written(min(those))}" for number, those in sorted(colours.items())[:6])
    return "numbers", [f"the masks have palettes, and their numbers were taken as classes: {told}."]


def _reading_of_greys(looks: Sequence[Look], colours: dict[int, set[int]], explained: bool) -> tuple[str, list[str]]:
    """Decides between numbers and greys where all palettes are grey."""
    greys = {number: {colour & 255 for colour in those} for number, those in colours.items()}
    if all(those == {number} for number, those in greys.items()):
        return "numbers", []
    if explained:
        return "greys", []
    order = [min(those) for _, those in sorted(greys.items())]
    rising = all(len(those) == 1 for those in greys.values()) and order == sorted(set(order)) and greys.get(0) == {0}
    plain = {value for look in looks if look.palette is None and not look.one_bit for value in look.numbers}
    shown = ", ".join(f"{number} as {'/'.join(map(str, sorted(those)))}" for number, those in sorted(greys.items())[:6])
    if rising and plain <= set(greys):
        return "numbers", [
            f"the masks have palettes that show {shown}: the numbers were taken as classes; to go by the greys, give "
            "--mask-values for them."
        ]
    return "greys", [f"the masks have palettes that show {shown}: what is shown was read, not the numbers."]


def _read_as(look: Look, reading: str) -> Look:
    """Returns a look in terms of a reading."""
    if reading != "greys" or look.palette is None:
        return look
    greys = np.array([look.palette[value] & 255 for value in look.values.tolist()], dtype=np.int64)
    values = np.unique(greys)
    counts = np.array([look.counts[greys == value].sum() for value in values], dtype=np.int64)
    return replace(look, values=values, counts=counts, palette=None)


def _objects(looks: Sequence[Look], reading: str, remarks: list[str]) -> Meaning:
    """Takes all above 0 as one class, and keeps the numbers if they may be those of objects."""
    found = peaks(total(looks))
    several = any(len(look.numbers - {0}) > 1 for look in looks)
    lossy = [look for look in looks if look.format in ("JPEG", "MPO")]
    why = (
        "no mask holds two of them"
        if not several
        else f"{named(lossy)} {'are' if len(lossy) > 1 else 'is'} JPEG, which smears them"
        if lossy
        else "they look like soft edges"
        if found is not None
        else ""
    )
    if why:
        remarks = [*remarks, f"the numbers in the masks tell no objects apart ({why}), so none were kept."]
    if found is not None:
        line = Advice.of_values(sorted(found)).line
        remarks = [
            *remarks,
            f"--instances counts every pixel above 0 as object, soft edges too, and nearly all pixels hold "
            f"{' or '.join(map(str, sorted(found)))}: if these are no numbers of objects, give {line} instead.",
        ]
    return Meaning(
        classes_of(["background", "object"]), {}, reading, instances=True, told_apart=not why, remarks=tuple(remarks)
    )


def _unexplained(looks: Sequence[Look], reading: str, remarks: list[str]) -> Meaning:
    """Takes the values as class indices if they are. Raises InputError, with the line to give, if not."""
    looks = _one_bit_among(looks)
    counts = total(looks)
    values = sorted(counts)
    classes = [value for value in values if value != IGNORE]
    plain = 2 <= len(classes) <= MOST_UNEXPLAINED and classes == list(range(len(classes)))
    lossy = [look for look in looks if look.format in ("JPEG", "MPO") and len(look.values) > 1]
    if not plain or lossy:
        raise InputError(value_advice(looks, counts, lossy, by_grey=reading == "greys"))
    _check_scales(looks)
    names = ["background", "object"] if len(classes) == 2 else [f"class-{value}" for value in classes]
    index = {value: value for value in values}
    return Meaning(classes_of(names), index, reading, remarks=tuple(remarks))


def _one_bit_among(looks: Sequence[Look]) -> list[Look]:
    """Reads 1-bit masks as 0 and 255, as they are shown, if that is what all others hold."""
    others = [look for look in looks if not look.one_bit]
    if not others or not {255} <= {value for look in others for value in look.numbers} <= {0, 255}:
        return list(looks)
    return [replace(look, values=look.values * 255) if look.one_bit else look for look in looks]


def _check_scales(looks: Sequence[Look]) -> None:
    """Raises InputError if 255 is what is drawn in some masks and 1, 2, … in others: it would be ignored there.

    A mask that holds 255 beside a class shows that it means ignore.
    """
    with_255 = [look for look in looks if IGNORE in look.numbers]
    others = [look for look in looks if look.numbers - {0, IGNORE}]
    if not with_255 or not others or any(look.numbers - {0, IGNORE} for look in with_255):
        return
    drawn = sorted({value for look in others for value in look.numbers} - {0})
    line = Advice.of_values([0, *drawn]).entries
    same = f" {line},255:object if 255 is the same object," if len(drawn) == 1 else ""
    held, other = (f"{named(looks)} {'hold' if len(looks) > 1 else 'holds'}" for looks in (with_255, others))
    raise InputError(
        f"{with_255[0].path.parent}: {held} 255, and {other} {', '.join(map(str, drawn))}: say what they mean with "
        f"--mask-values{same} {'or ' * bool(same)}{line},255:ignore if 255 is not to be learned."
    )


def _parsed(mask_values: str) -> Meaning:
    index: dict[int, int] = {}
    names: list[str] = []
    kinds = set()
    for entry in mask_values.split(","):
        word, colon, name = (text.strip() for text in entry.partition(":"))
        coloured = _COLOUR.fullmatch(word) is not None
        number = int(word[1:], 16) if coloured else int(word) if word.isascii() and word.isdigit() else None
        if not colon or not name or number is None or number in index:
            raise InputError(
                f"--mask-values {mask_values!r}: {entry!r} should be a new value, a colon and a name, "
                "as in 0:background,255:gland or '#000000:background,#ff0000:gland'."
            )
        kinds.add(coloured)
        if name != "ignore" and name not in names:
            names.append(name)
        index[number] = IGNORE if name == "ignore" else names.index(name)
    if len(kinds) > 1:
        raise InputError(f"--mask-values {mask_values!r}: mixes numbers and colours: write greys as colours, #808080.")
    if len(names) < 2:
        raise InputError(f"--mask-values {mask_values!r}: names fewer than two classes, background among them.")
    return Meaning(classes_of(names), index, "colours" if True in kinds else "numbers")


def classes_of(names: Sequence[str]) -> tuple[Class, ...]:
    """Makes classes with the default colours."""
    return tuple(Class(name, default_colour(index)) for index, name in enumerate(names))
