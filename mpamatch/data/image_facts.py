"""What was done to images that their owner may not expect, said once for a set."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mpamatch.images import Facts


@dataclass(frozen=True)
class Seen:
    """An image that was read: its file, or its name if it has none, and what was done to it."""

    where: Path | str
    facts: Facts


def remarks_on(images: Sequence[Seen], if_turned: str) -> list[str]:
    """Says how many images were turned, lost a channel, were whitened or may be cut off, and names one of each.

    Args:
        images: what was read.
        if_turned: what it means that some were turned, for the one who reads it.
    """
    turned = [one for one in images if one.facts.turn != 1]
    dropped = [one for one in images if one.facts.dropped]
    clear = [one for one in images if one.facts.never_opaque]
    grey = [one for one in images if one.facts.grey_end]
    told = []
    if turned:
        told.append(f"{_counted(turned)} an EXIF orientation and turned as it says: {if_turned}.")
    if dropped:
        told.append(f"{_counted(dropped)} four channels and no transparency: the first three were taken as RGB.")
    if clear:
        told.append(
            f"{_counted(clear)} a transparency that leaves no pixel opaque, and whitened by it: if the fourth channel "
            "is something else, such as near-infrared, save the first three alone."
        )
    if grey:
        told.append(
            f"{_counted(grey)} even grey at the end, as decoders put where the data of a JPEG are cut off: look "
            "whether that is so."
        )
    return told


def size_cause(turn: int) -> str:
    """Says why an image and its mask may differ in size, and what to do; `turn`: EXIF orientation of the image."""
    if turn == 1:
        return "they must be of one size."
    return (
        f"the image is turned as its EXIF orientation ({turn}) says, the mask is not: save the image without that "
        "entry, or turn the mask too."
    )


def _counted(those: Sequence[Seen]) -> str:
    more = f", {Path(those[0].where).name} the first" if len(those) > 1 else f", {Path(those[0].where).name}"
    return f"{len(those)} image{'s' if len(those) > 1 else ''}{more}, with"
