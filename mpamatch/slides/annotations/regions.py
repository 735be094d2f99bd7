"""Regions that somebody marked on a slide, whatever program they come from."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from mpamatch.errors import SHOWN, InputError

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Region:
    """A marked region.

    Attributes:
        class_name: as it was given; None if it was given none.
        geometry: a valid Polygon or MultiPolygon, in pixels of the slide's level 0.
        color: RGB, 0 to 255; None if it has none.
        name: that the region itself was given; empty if it has none.
    """

    class_name: str | None
    geometry: BaseGeometry
    color: Colour | None = None
    name: str = ""


@dataclass(frozen=True)
class Annotations:
    """The regions of a slide, in the order of their file, and what the user should know of them."""

    regions: tuple[Region, ...]
    remarks: tuple[str, ...] = ()


class Collector:
    """Gathers the regions of one file, mends those that cross themselves, and counts what has no area.

    Args:
        path: the file, for the sentences.
        offset: x and y of the coordinates' origin in pixels of level 0.
    """

    def __init__(self, path: Path, offset: tuple[float, float] = (0.0, 0.0)) -> None:
        self.path = path
        self.offset = offset
        self._regions: list[Region] = []
        self._mended: list[str] = []
        self._without_area: Counter[str] = Counter()
        self._seen = 0

    def add(
        self,
        polygons: Iterable[Sequence[Any]],  # each a shell and its holes: (N, 2) numbers each
        class_name: str | None,
        color: Colour | None = None,
        name: str = "",
        what: str = "region",
        without: Iterable[Sequence[Any]] = (),
    ) -> None:
        """Adds a region made of polygons, less the polygons `without`.

        Raises InputError if a point is no pair of numbers.
        """
        self._seen += 1
        words = [part[:SHOWN] for part in (class_name, name) if part]
        where = f"number {self._seen} ({', '.join(words) or 'without a class'})"
        geometry = self._area(polygons, where)
        taken = self._area(without, where)
        if not taken.is_empty:
            geometry = polygonal(geometry.difference(taken))
        if geometry.is_empty:
            self._without_area[what] += 1
            return
        self._regions.append(Region(class_name, geometry, color, name))

    def skip(self, what: str) -> None:
        """Counts what has no area, such as a point or a line."""
        self._seen += 1
        self._without_area[what] += 1

    def annotations(self) -> Annotations:
        """Returns all that was added."""
        remarks = []
        if self._mended:
            shown = ", ".join(self._mended[:3]) + (", …" if len(self._mended) > 3 else "")
            crossing = (
                "outline crosses itself and was mended" if len(self._mended) == 1 else "outlines cross themselves"
            )
            mended = "" if len(self._mended) == 1 else " and were mended"
            remarks.append(f"{len(self._mended)} {crossing}{mended}: {shown}.")
        for what, count in sorted(self._without_area.items()):
            remarks.append(f"{count} × {what} without an area left out.")
        return Annotations(tuple(self._regions), tuple(remarks))

    def _area(self, polygons: Iterable[Sequence[Any]], where: str) -> BaseGeometry:
        """Builds a valid geometry of polygons."""
        built = [self._polygon(rings, where) for rings in polygons]
        whole = [one for one in built if not one.is_empty]
        geometry = whole[0] if len(whole) == 1 else shapely.MultiPolygon(whole)
        if shapely.is_valid(geometry):
            return geometry
        self._mended.append(where)
        return polygonal(shapely.make_valid(geometry, method="structure", keep_collapsed=False))

    def _polygon(self, rings: Sequence[Any], where: str) -> shapely.Polygon:
        shells = [one for one in (self._ring(ring, where) for ring in rings[:1]) if one is not None]
        if not shells:
            return shapely.Polygon()
        holes = [one for one in (self._ring(ring, where) for ring in rings[1:]) if one is not None]
        return shapely.Polygon(shells[0], holes)

    def _ring(self, ring: Any, where: str) -> Any:  # (N, 2) float64; None if it encloses nothing
        try:
            points = np.array([(point[0], point[1]) for point in ring], dtype=np.float64).reshape(-1, 2)
        except (TypeError, ValueError, IndexError, KeyError) as error:
            raise InputError(f"{self.path}: {where} has no coordinates [x, y]: export it again.") from error
        if not np.isfinite(points).all():
            raise InputError(f"{self.path}: {where} has coordinates that are no numbers: export it again.")
        return points + self.offset if len(np.unique(points, axis=0)) >= 3 else None


def polygonal(geometry: BaseGeometry) -> BaseGeometry:
    """Keeps the parts of a geometry that have an area."""
    if geometry.geom_type in {"Polygon", "MultiPolygon"}:
        return geometry
    parts = [one for one in shapely.get_parts(geometry) if one.geom_type in {"Polygon", "MultiPolygon"}]
    return shapely.union_all(parts) if parts else shapely.Polygon()
