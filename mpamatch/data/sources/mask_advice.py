"""What to write where masks need explaining: the --mask-values line to paste, and what it would do."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mpamatch.data.sources.mask_survey import (
    BLACK,
    HALO,
    WHITE,
    Look,
    distance,
    named,
    peaks,
    written,
)

MOST_LISTED = 100  # classes in a line to paste
_MOST_COLOURS = 20
_ALIKE = 48  # colours nearer than this are one that was smeared


@dataclass(frozen=True)
class Advice:
    """Entries of --mask-values.

    Attributes:
        entries: as 0:background,255:object.
        line: the option with them, quoted where a shell needs it.
    """

    entries: str
    line: str

    @classmethod
    def of_values(cls, values: Sequence[int]) -> "Advice":
        """Makes the line for numbers, the background's first."""
        entries = ",".join(
            f"{value}:{name}" for value, name in zip(values, _names(list(map(str, values))), strict=True)
        )
        return cls(entries, f"--mask-values {entries}")

    @classmethod
    def of_colours(cls, colours: Sequence[int]) -> "Advice":
        """Makes the line for colours, the background's first."""
        words = [written(colour) for colour in colours]
        names = _names([word[1:] for word in words])
        entries = ",".join(f"{word}:{name}" for word, name in zip(words, names, strict=True))
        return cls(entries, f"--mask-values '{entries}'")

    def sentence(self, looks: Sequence[Look]) -> str:
        """Asks for the line."""
        return f"say what their colours mean ({named(looks)}), the background's first, with {self.line}"


def _names(words: Sequence[str]) -> list[str]:
    return ["background", "object"] if len(words) == 2 else ["background", *(f"class-{word}" for word in words[1:])]


def colour_advice(looks: Sequence[Look]) -> Advice:
    """Makes the line for all colours that masks of any kind show, those smeared left out."""
    shown: Counter[int] = Counter()
    for look in looks:
        for value, count in zip(look.values.tolist(), look.counts.tolist(), strict=True):
            if look.palette is not None:
                colour = look.palette[value]
            elif look.coloured:
                colour = value
            else:
                colour = min(255 * value if look.one_bit else value, 255) * 0x010101
            shown[colour] += count
    found: list[int] = []
    for colour, count in sorted(shown.items(), key=lambda one: (-one[1], one[0])):
        smeared = len(shown) > _MOST_COLOURS and len(found) >= 2 and count * 10 < shown[found[-1]]
        if smeared or len(found) >= _MOST_COLOURS:
            break
        if all(distance(colour, one) > _ALIKE for one in found):
            found.append(colour)
    first = next((colour for colour in (BLACK, WHITE) if colour in found), found[0])
    return Advice.of_colours([first, *(colour for colour in found if colour != first)])


def coloured_files(looks: Sequence[Look]) -> str:
    """Says that masks are coloured, and the line that explains their colours."""
    coloured = [look for look in looks if look.coloured]
    more = f" (and {len(coloured) - 1} more)" if len(coloured) > 1 else ""
    return f"{coloured[0].path}{more}: is a coloured mask: {colour_advice(looks).sentence(coloured)}"


def value_advice(looks: Sequence[Look], counts: Counter[int], lossy: Sequence[Look], *, by_grey: bool) -> str:
    """Says what values masks hold and which option explains them; `by_grey`: whether they are greys of palettes."""
    folder, values = looks[0].path.parent, sorted(counts)
    if len(values) < 2:
        return f"{folder}: the masks hold nothing but the value {values[0]}: two classes at least are needed."
    found = peaks(counts)
    others = [] if found is None else [look for look in looks if _of_another_scale(look, found)]
    if by_grey and len(found or values) == 2:
        low, high = sorted(found or values)
        return (
            f"{folder}: the masks have palettes that show numbers in another order of greys: say what one sees with "
            f"{Advice.of_values([low, high]).line} if the dark is background, or {Advice.of_values([high, low]).line} "
            "if the light is"
        )
    if found is not None and others and len(values) > _MOST_COLOURS:
        shown = ", ".join(map(str, others[0].values.tolist()))
        return (
            f"{folder}: most masks hold {', '.join(map(str, sorted(found)))} and soft edges, but {len(others)} of them "
            f"{shown} ({named(others)}): save these as the others are, or take them out of the data."
        )
    if found is not None and not others:
        moved = 1 - sum(counts[value] for value in found) / sum(counts.values())
        line = Advice.of_values(sorted(found)).line
        return (
            f"{folder}: nearly all pixels of the masks hold {', '.join(map(str, sorted(found)))}, and {moved:.1%} "
            f"others, as soft edges and JPEG make: give {line}, and these take the nearest of them (or --instances if "
            "the values are numbers of objects)"
        )
    if lossy and max(values) <= len(values) + 1:
        return (
            f"{lossy[0].path}: is a JPEG, which smears the values {values[0]} to {values[-1]} into each other: save it "
            "as PNG from where it was drawn."
        )
    if values == list(range(len(values))) and len(values) > 2:
        return _contiguous(looks, values)
    if len(values) > _MOST_COLOURS:
        return (
            f"{folder}: the masks hold {len(values)} values ({values[0]}..{values[-1]}): add --instances "
            "if they are numbers of objects, or explain each with --mask-values as in 0:background,255:object"
        )
    shown, line = ", ".join(map(str, values)), Advice.of_values(values).line
    return f"{folder}: the masks hold the values {shown}: say what they mean with {line}{_apart(looks, values)}"


def _of_another_scale(look: Look, found: Sequence[int]) -> bool:
    """Whether a mask holds two values, of which one would be taken for the halo of the other, as 1 beside 0."""
    if look.format in ("JPEG", "MPO") or len(look.values) != 2:
        return False
    return len(look.numbers & set(found)) == 1 and max(look.numbers) - min(look.numbers) <= HALO


def _contiguous(looks: Sequence[Look], values: Sequence[int]) -> str:
    """Names both readings of many contiguous numbers, classes and objects."""
    start = f"{looks[0].path.parent}: the masks hold the {len(values)} values 0 to {values[-1]}:"
    objects = "add --instances if they are numbers of objects, all of one class"
    if len(values) > MOST_LISTED:
        return f"{start} {objects}, or explain each with --mask-values as in 0:background,1:object"
    return f"{start} if they are classes, give {Advice.of_values(values).line}; {objects}"


def _apart(looks: Sequence[Look], values: Sequence[int]) -> str:
    """Adds that values which never meet in a mask may be one class written in several ways."""
    drawn = [look.numbers - {0} for look in looks if look.numbers - {0}]
    if len(values) <= 2 or 0 not in values or any(len(those) > 1 for those in drawn):
        return ""
    return ", giving one name to what is the same: no mask holds two of them beside 0"
