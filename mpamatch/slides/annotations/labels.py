"""What regions mean: the class of each pixel, what is background, what is not known."""

import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from mpamatch.errors import InputError
from mpamatch.images import IGNORE, default_colour
from mpamatch.slides.annotations.raster import NUDGE, covered
from mpamatch.slides.annotations.regions import Colour, Region
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


@dataclass(frozen=True)
class Painted:
    """A painted box, and what was painted over.

    Attributes:
        label: (H, W) u8: 0 for background, the index of a class, 255 for what is not known.
        overlaps: (lower class, upper class) → how many pixels both cover.
        outside: how many pixels have a class outside of every "Region*", and so are 255.
    """

    label: NDArray[np.uint8]
    overlaps: Counter[tuple[int, int]]
    outside: int


class SlideLabel:
    """The label of a slide: 0 for background, the index of a class, or 255 for what is not known.

    Classes are painted in their order, so of several the last one counts; classes that are not learned are 255 under
    them, "Ignore*" is 255 over them. If there is a "Region*", what is not painted inside of it is background, and
    everything outside is 255. Regions without a class are left out.
    """

    def __init__(self, regions: Sequence[Region], meaning: Meaning) -> None:
        index = {name: number for number, name in enumerate(meaning.names)}
        named = [region for region in regions if region.class_name]
        self._meaning = meaning
        self._whole = shapely.STRtree([region.geometry for region in named if bounds_all(region.class_name)])
        layers = [  # bottom to top: those that are not learned, the classes in order, "Ignore*"
            (len(index) if is_ignored(region.class_name) else index.get(str(region.class_name), -1), region.geometry)
            for region in named
            if not bounds_all(region.class_name)
        ]
        layers.sort(key=lambda layer: layer[0])
        self._values = [height if 0 <= height < len(index) else IGNORE for height, _ in layers]
        self._layers = shapely.STRtree([geometry for _, geometry in layers])
        self._lock = threading.Lock()  # GEOS builds the index of a prepared geometry while the first query runs

    @property
    def is_exhaustive(self) -> bool:
        """Whether a "Region*" bounds what is annotated."""
        return len(self._whole) > 0

    @property
    def everywhere(self) -> bool:
        """Whether all of the slide has a label: unpainted is background, and no "Region*" bounds it."""
        return self._meaning.unpainted == "background" and not self.is_exhaustive

    def touched(self, boxes: Sequence[Box], scale: float) -> NDArray[np.bool_]:  # (boxes,)
        """Tells which boxes of a grid touch what is annotated: a "Region*", or without one anything painted."""
        corners = np.array([(box.x, box.y, box.x + box.width, box.y + box.height) for box in boxes]).reshape(-1, 4)
        left, top, right, bottom = corners.T * scale
        # What shares no more than the rim with a box has no pixel in it.
        inner = shapely.box(left + NUDGE, top + NUDGE, right - NUDGE, bottom - NUDGE)
        found = np.zeros(len(boxes), dtype=bool)
        with self._lock:
            tree = self._whole if self.is_exhaustive else self._layers
            near, regions = tree.query(inner)
            # query's own predicate would prepare the boxes, and go through all of a long outline for each.
            shapely.prepare(tree.geometries)
            found[near[shapely.intersects(tree.geometries[regions], inner[near])]] = True
        return found

    def paint(self, box: Box, scale: float) -> Painted:
        """Paints a box of a grid of `scale` pixels of level 0 per pixel; a pixel is what its middle lies in.

        It may be called from several threads.
        """
        with self._lock:
            return self._painted(box, scale)

    def _painted(self, box: Box, scale: float) -> Painted:
        label = np.full((box.height, box.width), 0 if self.is_exhaustive or self.everywhere else IGNORE, dtype=np.uint8)
        area = shapely.box(*(scale * end for end in (box.x, box.y, box.x + box.width, box.y + box.height)))
        overlaps: Counter[tuple[int, int]] = Counter()
        classes = len(self._meaning.names)
        for number in sorted(self._layers.query(area).tolist()):
            value, mask = self._values[number], covered(self._layers.geometries[number], box, scale)
            below = np.bincount(label[mask], minlength=classes)[1:classes]
            overlaps.update({(lower, value): int(count) for lower, count in enumerate(below, 1) if count})
            label[mask] = value
        outside = 0
        if self.is_exhaustive:
            beyond = np.ones(label.shape, dtype=bool)
            for number in self._whole.query(area).tolist():
                beyond &= ~covered(self._whole.geometries[number], box, scale)
            outside = int(np.count_nonzero((label[beyond] > 0) & (label[beyond] < classes)))
            label[beyond] = IGNORE
        overlaps = Counter(
            {pair: count for pair, count in overlaps.items() if IGNORE not in pair and len({*pair}) == 2}
        )
        return Painted(label, overlaps, outside)


def unlearned(regions: Iterable[Region], meaning: Meaning) -> Counter[str | None]:
    """Counts the regions whose class is not learned, by its name; None: those without a class."""
    names = [region.class_name for region in regions]
    return Counter(
        name for name in names if name not in meaning.names and not bounds_all(name) and not is_ignored(name)
    )


def _colours(names: Sequence[str], given: dict[str, Colour | None]) -> tuple[Colour, ...]:
    """Takes the colours of the file, the default ones for classes without and for those of a colour that is taken."""
    found: list[Colour] = []
    for index, name in enumerate(names):
        colour = given.get(name)
        found.append(default_colour(index) if index == 0 or colour is None or colour in found else colour)
    return tuple(found)
