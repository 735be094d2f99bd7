"""A raw data set as its reader understands it: what `mpamatch.data.prepared` writes."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Class:
    """A class as it is named and drawn; `colour` is RGB, 0 to 255."""

    name: str
    colour: tuple[int, int, int]


@dataclass(frozen=True)
class Item:
    """An image of a raw set.

    Attributes:
        stem: its name in the prepared folder, without suffix.
        group: the patient; no group is in two parts.
        part: train, validation or test; None: drawn by group.
        image: (H, W, 3) uint8 RGB, or a file that `read_image` reads.
        label: (H, W) uint8 class index, 255 = ignore; None: unlabelled.
        present: image-level label: indices of the foreground classes that it shows; None: not known.
        instances: (H, W) uint16, which object each pixel of a class is of, 0 in the background; None: not known.
    """

    stem: str
    group: str
    part: str | None
    image: Path | NDArray[np.uint8]
    label: NDArray[np.uint8] | None
    present: tuple[int, ...] | None = None
    instances: NDArray[np.uint16] | None = None


@dataclass
class Findings:
    """What a reader learns while its items are read, complete once the last one is.

    Attributes:
        heading: of the table's columns.
        rows: of a table for the user; empty: none is shown.
        remarks: what the user should know.
        failed: what could not be read and was left out, a sentence each; `prepare` then ends with 1.
    """

    heading: tuple[str, ...] = ()
    rows: list[tuple[str, ...]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RawSet:
    """A raw data set as its reader understands it.

    Attributes:
        name: of the prepared set.
        classes: the background first.
        items: its images; a generator holds only one of them in memory.
        count: of items, for the progress bar.
        microns_per_pixel: None if it is not known.
        source: where the data come from.
        licence: the terms of their use.
        keep_shared_groups: the reason why groups may be in two parts; None: they must not.
        remarks: what the user should know, printed after preparing.
        partly_labelled: whether labels hold 255 for what nobody annotated; `check` then takes 0 and 255 for no mistake.
        findings: what is known only once the items were read, printed after the remarks.
    """

    name: str
    classes: tuple[Class, ...]
    items: Iterable[Item]
    count: int
    microns_per_pixel: float | None
    source: str
    licence: str
    keep_shared_groups: str | None = None
    remarks: tuple[str, ...] = ()
    partly_labelled: bool = False
    findings: Findings = field(default_factory=Findings)
