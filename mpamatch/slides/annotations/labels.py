"""What regions mean: the class of each pixel, what is background, what is not known."""

import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from mpamatch.errors import InputError
from mpamatch.images import IGNORE, default_colour
from mpamatch.slides.annotations.raster import covered
from mpamatch.slides.annotations.regions import Colour, Region, polygonal
from mpamatch.slides.sources.base import Box

BACKGROUND = "background"
UNPAINTED = ("ignore", "background")
LEAST_OVERLAP_MM2 = 1e-4  # 10×10 µm: borders drawn twice


def bounds_all(name: str | None) -> bool:
    """Tells whether a class bounds what is annotated exhaustively: QuPath's "Region*"."""
    return name is not None and name.casefold() == "region*"


def is_ignored(name: str | None) -> bool:
    """Tells whether a class is not to be learned from: QuPath's "Ignore*"."""
    return name is not None and name.casefold() == "ignore*"


@dataclass(frozen=True)
class Meaning:
    """Which classes there are, and what is true where nothing is painted.

    Attributes:
        names: of the classes by index, the background first; a later one is painted over those before it.
        colours: RGB by index.
        unpainted: of a slide without a "Region*": "ignore" or "background".
    """

    names: tuple[str, ...]
    colours: tuple[Colour, ...]
    unpainted: str = "ignore"


def meaning_of(regions: Iterable[Region], asked: str | None = None, unpainted: str = "ignore") -> Meaning:
    """Lists the classes of all slides' regions.

    Args:
        regions: of all slides.
        asked: "tumour,stroma": the classes to learn, in the order of their indices; None: all, in order of their names.
        unpainted: "ignore" or "background".

    Raises:
        InputError: no region has a class, one that is asked for has no region, or `unpainted` is neither.
    """
    if unpainted not in UNPAINTED:
        raise InputError(f"--unpainted {unpainted}: must be {' or '.join(UNPAINTED)}.")
    colours: dict[str, Colour | None] = {}
    for region in regions:
        if region.class_name and not bounds_all(region.class_name) and not is_ignored(region.class_name):
            colours[region.class_name] = colours.get(region.class_name) or region.color
    if not colours:
        raise InputError("no annotated region has a class: set one in QuPath (Set selected) and export again.")
    wanted = asked_classes(asked)
    for name in wanted:
        if name not in colours and name.casefold() != BACKGROUND:
            raise InputError(
                f"--classes {asked}: no region has the class {name!r}; there are {', '.join(sorted(colours))}."
            )
    names = wanted or sorted(colours)
    background = next((name for name in names if name.casefold() == BACKGROUND), BACKGROUND)
    names = [background, *(name for name in names if name != background)]
    return Meaning(tuple(names), _colours(names, colours), unpainted)


def asked_classes(asked: str | None) -> list[str]:
    """Parses --classes. Raises InputError for an empty name, one given twice, and Region* and Ignore*."""
    names = [] if asked is None else [name.strip() for name in asked.split(",")]
    for name in names:
        if not name or names.count(name) > 1:
            raise InputError(f"--classes {asked}: must be different names, separated by commas.")
        if bounds_all(name) or is_ignored(name):
            raise InputError(f"--classes {asked}: {name} is no class to learn: leave it out.")
    return names


class SlideLabel:
    """The label of a slide: 0 for background, the index of a class, or 255 for what is not known.

    Classes are painted in their order, so of several the last one counts; classes that are not learned are 255 under
    them, "Ignore*" is 255 over them. If there is a "Region*", what is not painted inside of it is background, and
    everything outside is 255. Regions without a class are left out.
    """

    def __init__(self, regions: Sequence[Region], meaning: Meaning) -> None:
        self._meaning = meaning
        self._lock = threading.Lock()  # GEOS builds the index of a prepared geometry while the first query runs
        by_class: dict[str, list[BaseGeometry]] = {}
        for region in regions:
            if region.class_name:
                by_class.setdefault(region.class_name, []).append(region.geometry)
        self._whole = _united([one for name, parts in by_class.items() if bounds_all(name) for one in parts])
        ignored = _united([one for name, parts in by_class.items() if is_ignored(name) for one in parts])
        known = {name: index for index, name in enumerate(meaning.names)}
        special = {name for name in by_class if bounds_all(name) or is_ignored(name)}
        foreign = _united([one for name in by_class.keys() - known.keys() - special for one in by_class[name]])
        self._classes = {index: _united(by_class[name]) for name, index in known.items() if name in by_class}
        # Bottom to top, each a value and where it is painted.
        self._layers = [(IGNORE, foreign), *sorted(self._classes.items()), (IGNORE, ignored)]
        for _, geometry in (*self._layers, (IGNORE, self._whole)):
            shapely.prepare(geometry)

    @property
    def is_exhaustive(self) -> bool:
        """Whether a "Region*" bounds what is annotated."""
        return not self._whole.is_empty

    @property
    def everywhere(self) -> bool:
        """Whether all of the slide has a label: unpainted is background, and no "Region*" bounds it."""
        return self._meaning.unpainted == "background" and not self.is_exhaustive

    @property
    def annotated(self) -> BaseGeometry:
        """What is painted or bounded by a "Region*", in pixels of level 0."""
        return self._whole if self.is_exhaustive else _united([geometry for _, geometry in self._layers])

    def read(self, box: Box, scale: float) -> NDArray[np.uint8]:  # (height, width)
        """Paints a box of a grid of `scale` pixels of level 0 per pixel; a pixel is what its middle lies in.

        It may be called from several threads.
        """
        with self._lock:
            return self._painted(box, scale)

    def _painted(self, box: Box, scale: float) -> NDArray[np.uint8]:
        label = np.full((box.height, box.width), 0 if self.is_exhaustive or self.everywhere else IGNORE, dtype=np.uint8)
        for value, geometry in self._layers:
            label[covered(geometry, box, scale)] = value
        if self.is_exhaustive:
            label[~covered(self._whole, box, scale)] = IGNORE
        return label

    def areas(self) -> dict[int, float]:
        """Computes the area of each class as it is learned, in pixels of level 0, by index.

        Background is counted only inside of a "Region*".
        """
        found: dict[int, float] = {}
        above = shapely.Polygon()
        for value, geometry in reversed(self._layers):
            seen = geometry.intersection(self._whole) if self.is_exhaustive else geometry
            if value != IGNORE:
                found[value] = found.get(value, 0.0) + seen.difference(above).area
            above = above.union(seen)
        if self.is_exhaustive:
            found[0] = found.get(0, 0.0) + self._whole.difference(above).area
        return found

    def overlaps(self) -> dict[tuple[int, int], float]:
        """Computes the area that two classes share, in pixels of level 0, by their indices."""
        pairs = combinations(sorted(self._classes), 2)
        return {(a, b): self._classes[a].intersection(self._classes[b]).area for a, b in pairs}

    def outside(self) -> float:
        """Computes the area, in pixels of level 0, that is painted with a class outside of every "Region*"."""
        if not self.is_exhaustive:
            return 0.0
        return _united(list(self._classes.values())).difference(self._whole).area


def unlearned(regions: Iterable[Region], meaning: Meaning) -> Counter[str | None]:
    """Counts the regions whose class is not learned, by its name; None: those without a class."""
    names = [region.class_name for region in regions]
    return Counter(
        name for name in names if name not in meaning.names and not bounds_all(name) and not is_ignored(name)
    )


def _united(geometries: Sequence[BaseGeometry]) -> BaseGeometry:
    return polygonal(shapely.union_all(geometries)) if geometries else shapely.Polygon()


def _colours(names: Sequence[str], given: dict[str, Colour | None]) -> tuple[Colour, ...]:
    """Takes the colours of the file, the default ones for classes without and for those of a colour that is taken."""
    found: list[Colour] = []
    for index, name in enumerate(names):
        colour = given.get(name)
        found.append(default_colour(index) if index == 0 or colour is None or colour in found else colour)
    return tuple(found)
