"""suggestions.csv: what is suggested, in order."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mpamatch.files import replacing
from mpamatch.slides.sources.base import Box

COLUMNS = ("rank", "name", "patient", "score", "distance")
OF_REGIONS = ("x", "y", "width", "height")


@dataclass(frozen=True)
class Row:
    """A suggestion.

    Attributes:
        rank: 1 for the first.
        name: of the image's mask, without the ending; or of the slide.
        patient: of the image or slide.
        score: how unsure the model is of it, 0 to 1.
        distance: 1 − cosine to the nearest image that is labelled or suggested before; infinite if there is none.
        box: of a region: where it lies, in pixels of the slide's level 0; None for an image.
    """

    rank: int
    name: str
    patient: str
    score: float
    distance: float
    box: Box | None = None


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Writes suggestions.csv, whole or not at all. Raises WriteError if it cannot be written."""
    of_regions = rows[0].box is not None
    with (
        replacing(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, *(OF_REGIONS if of_regions else ())])
        for row in rows:
            distance = "" if math.isinf(row.distance) else f"{row.distance:.6f}"
            cells: list[object] = [row.rank, row.name, row.patient, f"{row.score:.6f}", distance]
            if row.box is not None:
                cells += [row.box.x, row.box.y, row.box.width, row.box.height]
            writer.writerow(cells)
