"""The outlines of a label's regions as polygons, block by block, with shared borders that stay shared."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

BLOCK = 2048  # pixels a side: larger ones save nothing, as the time goes with the length of the borders

Polygons = NDArray[np.object_]


@dataclass(frozen=True)
class Regions:
    """The regions of a label: pixels of one class that hang together by their sides.

    Attributes:
        polygons: (N,) shapely polygons with holes; x to the right and y down in pixels of the label, whose corners
            are whole numbers.
        classes: (N,) uint8.
        pixels: (N,) int64, how many each has; its exact area, whatever the simplification.
        confidence: (N,) float64, the mean over its pixels, 0 to 1; NaN if none was given.
    """

    polygons: Polygons
    classes: NDArray[np.uint8]
    pixels: NDArray[np.int64]
    confidence: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.polygons)

    def picked(self, which: NDArray[np.bool_] | NDArray[np.int64]) -> "Regions":
        """Returns those of a mask or of indices."""
        return Regions(self.polygons[which], self.classes[which], self.pixels[which], self.confidence[which])

    @classmethod
    def joined(cls, parts: "Sequence[Regions]") -> "Regions":
        """Returns the regions of all parts, one after another."""
        return cls(
            np.concatenate([np.zeros(0, dtype=object), *(part.polygons for part in parts)]),
            np.concatenate([np.zeros(0, dtype=np.uint8), *(part.classes for part in parts)]),
            np.concatenate([np.zeros(0, dtype=np.int64), *(part.pixels for part in parts)]),
            np.concatenate([np.zeros(0), *(part.confidence for part in parts)]),
        )


class Outliner:
    """Finds the regions of a label that is given block by block, and passes each on once no later block can change it.

    Each block becomes polygons by itself (unit edges between different pixels, polygonize), which are simplified inside
    it: the points on its rim stay, so that what continues in the next block can be united over the seam. What touches
    no rim is finished, and so is what was met on all its rims; of its points on seams those on straight lines go. The
    time goes with the length of all borders. Memory holds one block and the polygons that wait for a later one, which
    are those along the lower rim of a row of blocks; beside them two bytes a pixel of a seam.

    Args:
        shape: of the label, (H, W).
        take: is given the regions as they are finished; their order follows from the label and the blocks alone.
        tolerance: of the simplification, in pixels, the root of the area that goes with a corner, on both sides of a
            border alike; 0 keeps every corner.
        skipped: classes that get no outline, the background and what nobody looked at.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        take: Callable[[Regions], None],
        *,
        tolerance: float = 1.0,
        skipped: Sequence[int] = (0, 255),
    ) -> None:
        self._shape, self._take, self._tolerance = shape, take, tolerance
        self._none = skipped[0]  # stands for all of them: a border between two is no border
        self._classes = np.arange(256, dtype=np.uint8)
        self._classes[list(skipped)] = self._none
        self._seams = _Seams(shape, self._none)
        self._count = 0  # of polygons on rims so far
        self._rims: dict[tuple[str, int, int], NDArray[np.int64]] = {}  # side, top, left → polygon of each rim pixel
        self._region: dict[int, _Open] = {}  # of each polygon on a rim that no block has met yet

    @property
    def waiting(self) -> int:
        """How many polygons are held for later blocks."""
        return sum(len(region.polygons) for region in {id(one): one for one in self._region.values()}.values())

    def add(
        self,
        label: NDArray[np.uint8],  # (h, w)
        confidence: NDArray[np.uint8] | None,  # (h, w), in percent
        top: int,
        left: int,
    ) -> None:
        """Adds the block that begins at row `top` and column `left`.

        Neighbours must share whole sides, and those to the left and above have been added before.
        """
        label = self._classes[label]
        self._seams.note(label, top, left)
        if (label == self._none).all():
            block, rims = None, {name: np.full(len(side), -1) for name, side in _sides(label).items()}
        else:
            block, rims = _outline(label, confidence, self._none, self._tolerance)
            block.polygons = shapely.transform(block.polygons, lambda xy: xy + (left, top))
            rims = {name: np.where(ids >= 0, ids + self._count, -1) for name, ids in rims.items()}
        touched = [self._opened(block, at) for at in range(len(block.polygons)) if block.on_rim[at]] if block else []
        touched += self._meet(rims["left"], label[:, 0], "right", top, left)
        touched += self._meet(rims["top"], label[0], "bottom", top, left)
        self._wait(rims["right"], "right", top, left + label.shape[1])
        self._wait(rims["bottom"], "bottom", top + label.shape[0], left)
        self._count += len(block.polygons) if block else 0
        if block:
            self._take(_regions(block, ~block.on_rim))
        self._close(touched)

    def _opened(self, block: "_Block", at: int) -> int:
        """Begins a region with a polygon of a block; returns the polygon's number."""
        number = self._count + at
        pixels, sure = int(block.pixels[at]), float(block.sure[at])
        self._region[number] = _Open([number], [block.polygons[at]], int(block.classes[at]), pixels, sure)
        return number

    def _meet(self, ids: NDArray[np.int64], values: NDArray[np.uint8], side: str, top: int, left: int) -> list[int]:
        """Joins the regions that lie on both sides of a seam; returns the polygons that waited there."""
        theirs = self._rims.pop((side, top, left), None)
        if theirs is None:
            return []
        other = self._seams.before(side, top, left, len(ids))
        same = (ids >= 0) & (theirs >= 0) & (values == other)
        for one, another in np.unique(np.stack([theirs[same], ids[same]], axis=1), axis=0).tolist():
            self._join(self._region[one], self._region[another])
        met: list[int] = np.unique(theirs[theirs >= 0]).tolist()
        for number in met:
            self._region[number].sides -= 1
        return met

    def _join(self, one: "_Open", another: "_Open") -> None:
        if one is another:
            return
        large, small = (one, another) if len(one.numbers) >= len(another.numbers) else (another, one)
        large.numbers += small.numbers
        large.polygons += small.polygons
        large.pixels += small.pixels
        large.sure += small.sure
        large.sides += small.sides
        self._region.update(dict.fromkeys(small.numbers, large))

    def _wait(self, ids: NDArray[np.int64], side: str, top: int, left: int) -> None:
        """Keeps a rim for the block that lies behind it, if any does."""
        if top >= self._shape[0] or left >= self._shape[1]:
            return
        self._rims[side, top, left] = ids
        for number in np.unique(ids[ids >= 0]).tolist():
            self._region[number].sides += 1

    def _close(self, touched: Iterable[int]) -> None:
        """Unites and passes on those of the touched regions that wait for no other block."""
        regions = {id(region): region for region in map(self._region.__getitem__, touched)}
        done = [region for region in regions.values() if not region.sides]
        if not done:
            return
        for region in done:
            for number in region.numbers:
                del self._region[number]
        united = np.empty(len(done), dtype=object)
        for at, region in enumerate(done):
            united[at] = shapely.coverage_union_all(region.polygons) if len(region.polygons) > 1 else region.polygons[0]
        block = _Block(
            _without_points(united, self._seams.straight),
            np.array([region.index for region in done], dtype=np.uint8),
            np.array([region.pixels for region in done], dtype=np.int64),
            np.array([region.sure for region in done], dtype=np.float64),
            np.ones(len(done), dtype=bool),
        )
        self._take(_regions(block, block.on_rim))


@dataclass
class _Open:
    """A region that goes on, or may, in a block that is still to come: its polygons by number, and sums over them."""

    numbers: list[int]
    polygons: list[shapely.Geometry]
    index: int
    pixels: int
    sure: float
    sides: int = 0  # of its polygons, that no block has met yet


@dataclass
class _Block:
    """Polygons of one block.

    Attributes:
        polygons: (N,).
        classes: (N,).
        pixels: (N,) how many each has.
        sure: (N,) the sum of the confidence of its pixels in percent, a whole number; NaN if it is not known.
        on_rim: (N,) whether it may go on in the next block.
    """

    polygons: Polygons
    classes: NDArray[np.uint8]
    pixels: NDArray[np.int64]
    sure: NDArray[np.float64]
    on_rim: NDArray[np.bool_]


def _regions(block: _Block, which: NDArray[np.bool_]) -> Regions:
    pixels = block.pixels[which]
    return Regions(block.polygons[which], block.classes[which], pixels, block.sure[which] / (100 * pixels))


class _Seams:
    """The classes on both sides of all seams between blocks, and of the label's own rim, outside of which none is."""

    def __init__(self, shape: tuple[int, int], none: int) -> None:
        self._shape, self._none = shape, none
        self._across: dict[int, NDArray[np.uint8]] = {}  # row → (2, 1 + W + 1), above and below
        self._down: dict[int, NDArray[np.uint8]] = {}  # column → (2, 1 + H + 1), left and right

    def note(self, label: NDArray[np.uint8], top: int, left: int) -> None:
        """Keeps the rims of a block."""
        bottom, right = top + label.shape[0], left + label.shape[1]
        for lines, length, first, sides in (
            (self._across, self._shape[1], left, ((top, 1, label[0]), (bottom, 0, label[-1]))),
            (self._down, self._shape[0], top, ((left, 1, label[:, 0]), (right, 0, label[:, -1]))),
        ):
            for at, behind, values in sides:
                line = lines.setdefault(at, np.full((2, length + 2), self._none, dtype=np.uint8))
                line[behind, 1 + first : 1 + first + len(values)] = values

    def before(self, side: str, top: int, left: int, length: int) -> NDArray[np.uint8]:
        """Returns the classes above (`side` bottom) or to the left (right) of a block's rim."""
        line, first = (self._across[top], left) if side == "bottom" else (self._down[left], top)
        return line[0, 1 + first : 1 + first + length]

    def straight(self, xy: NDArray[np.float64]) -> NDArray[np.bool_]:  # (N, 2)
        """Tells for which points a border of pixels runs straight through, and no other meets it there.

        True for points on seams alone. All four pixels around such a point are known once the regions on both sides of
        the border are finished.
        """
        found = np.zeros(len(xy), dtype=bool)
        for lines, axis in ((self._across, 1), (self._down, 0)):
            on = np.flatnonzero(np.isin(xy[:, axis], list(lines)))
            for at in np.unique(xy[on, axis]).tolist():
                which = on[xy[on, axis] == at]
                place = xy[which, 1 - axis].astype(np.int64)
                (near, far), (near_next, far_next) = lines[int(at)][:, place], lines[int(at)][:, place + 1]
                found[which] |= ((near == near_next) & (far == far_next)) | ((near == far) & (near_next == far_next))
        return found


def _without_points(polygons: Polygons, straight: Callable[[NDArray[np.float64]], NDArray[np.bool_]]) -> Polygons:
    """Removes the points on straight lines among those that `straight` finds; the polygons cover the same."""
    kind, xy, (rings, shells) = shapely.to_ragged_array(polygons)
    last = rings[1:] - 1
    before, after = np.arange(len(xy)) - 1, np.arange(len(xy)) + 1
    before[rings[:-1]], after[last] = last - 1, rings[:-1] + 1
    (ax, ay), (bx, by) = (xy - xy[before]).T, (xy[after] - xy).T
    kept = ~((ax * by == ay * bx) & straight(xy))
    kept[last] = False
    count = np.add.reduceat(kept, rings[:-1], dtype=np.int64)
    ends = np.cumsum(count)
    xy = xy[kept]
    closed = np.insert(xy, ends, xy[ends - count], axis=0)
    return shapely.from_ragged_array(kind, closed, (np.r_[0, np.cumsum(count + 1)], shells))


def outlines(
    label: NDArray[np.uint8],  # (H, W)
    confidence: NDArray[np.uint8] | None = None,  # (H, W), in percent
    *,
    tolerance: float = 1.0,
    skipped: Sequence[int] = (0, 255),
    block: int = BLOCK,
) -> Regions:
    """Outlines the regions of a label; it may be a memory map, of which a block at a time is read.

    Args:
        label: class index per pixel.
        confidence: of each pixel, in percent.
        tolerance: of the simplification, in pixels; 0 keeps every corner, and the polygons give the label back.
        skipped: classes without outlines.
        block: side of the blocks, in pixels.
    """
    height, width = label.shape
    found: list[Regions] = []
    outliner = Outliner((height, width), found.append, tolerance=tolerance, skipped=skipped)
    for top in range(0, height, block):
        for left in range(0, width, block):
            place = slice(top, top + block), slice(left, left + block)
            sure = None if confidence is None else np.asarray(confidence[place])
            outliner.add(np.asarray(label[place]), sure, top, left)
    return Regions.joined(found)


def _sides(values: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
    return {"left": values[:, 0], "right": values[:, -1], "top": values[0], "bottom": values[-1]}


def _outline(
    label: NDArray[np.uint8], confidence: NDArray[np.uint8] | None, none: int, tolerance: float
) -> tuple[_Block, dict[str, NDArray[np.int64]]]:
    """Outlines one block; also which polygon (-1: of class `none`) each pixel of its four sides lies in."""
    coordinates, line = _chains(_edges(label), label.shape[1] + 1)
    faces = shapely.get_parts(shapely.polygonize(shapely.linestrings(coordinates, indices=line)))
    faces = shapely.orient_polygons(faces)
    xy, owner = shapely.get_coordinates(faces, return_index=True)
    x, y = xy.astype(np.int32).T
    along = np.flatnonzero((owner[1:] == owner[:-1]) & (x[1:] == x[:-1]) & (y[1:] != y[:-1]))  # vertical sides
    # From the last point of a ring to the first of the next there is no side, even if it looks like one.
    along = along[~_between_rings(faces)[along]]
    side = _Sides(owner[along], x[along], y[along], y[along + 1])
    pixels = np.rint(side.sums(None, len(faces))).astype(np.int64)
    classes = label[side.inner_pixels(len(faces))]
    sure = np.full(len(faces), np.nan) if confidence is None else side.sums(confidence, len(faces))
    kept = classes != none
    number = np.where(kept, np.cumsum(kept) - 1, -1)
    rims = _rims(xy, owner, number, label.shape)
    on_rim = np.zeros(len(faces), dtype=bool)
    for ids in rims.values():
        on_rim[np.flatnonzero(kept)[ids[ids >= 0]]] = True
    if tolerance:
        faces = shapely.coverage_simplify(faces, tolerance, simplify_boundary=False)
    return _Block(faces[kept], classes[kept], pixels[kept], sure[kept], on_rim[kept]), rims


def _edges(label: NDArray[np.uint8]) -> NDArray[np.int64]:  # (h, w) -> (N, 2, 2): N segments, two ends, x and y
    """Finds the borders between different pixels, and the rim, as straight segments between corners and junctions.

    The rim is cut at every pixel, so that whatever meets it from the next block finds its points there.
    """
    height, width = label.shape
    across, down = np.ones((height + 1, width), dtype=bool), np.ones((height, width + 1), dtype=bool)
    across[1:-1] = label[1:] != label[:-1]
    down[:, 1:-1] = label[:, 1:] != label[:, :-1]
    east, west, south, north = np.zeros((4, height + 1, width + 1), dtype=bool)
    east[:, :-1], west[:, 1:], south[:-1], north[1:] = across, across, down, down
    node = ~((east & west & ~north & ~south) | (north & south & ~east & ~west))
    node[0] = node[-1] = node[:, 0] = node[:, -1] = True
    (y0, x0), (_, x1) = np.nonzero(east & node), np.nonzero(west & node)
    (u0, v0), (_, v1) = np.nonzero((south & node).T), np.nonzero((north & node).T)
    ends = [[np.r_[x0, u0], np.r_[y0, v0]], [np.r_[x1, u0], np.r_[y0, v1]]]
    return np.array(ends, dtype=np.int64).transpose(2, 0, 1)


def _chains(
    segments: NDArray[np.int64],  # (N, 2, 2)
    width: int,  # of a row of corners
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Joins segments end to end, as far as the next junction, into lines: (M, 2) points and the line of each.

    polygonize takes 6 µs a line, however long: a block of blobs of 50 pixels takes it 0.08 s so instead of 0.78
    (one core of a busy AMD EPYC).
    A directed segment 2i + e runs from end e of segment i to the other.
    """
    count = 2 * len(segments)
    corner = (segments[..., 1] * width + segments[..., 0]).ravel()
    other = _partners(corner)  # the directed segment that begins where this one does, or itself at a junction
    joined = np.flatnonzero(other != np.arange(count))
    graph = coo_array((np.ones(len(joined), dtype=bool), (joined // 2, other[joined] // 2)), shape=(count // 2,) * 2)
    parts, part = connected_components(graph, directed=False)
    part = np.repeat(part, 2)
    ends = np.flatnonzero(other == np.arange(count))
    first = np.full(parts, count)
    np.minimum.at(first, part[ends], ends)
    loops = np.flatnonzero(first == count)  # without a junction: cut somewhere
    np.minimum.at(first, part, np.where(np.isin(part, loops), np.arange(count), count))
    cut = first[loops]
    other[other[cut]], other[cut] = other[cut], cut
    root, place = _ranked(np.where(other == np.arange(count), np.arange(count), other ^ 1))
    kept = np.flatnonzero(root == first[part])  # of both directions the one that begins at `first`
    kept = kept[np.lexsort((place[kept], part[kept]))]
    begins = segments.reshape(-1, 2)[kept]
    last = np.flatnonzero(np.diff(part[kept], append=-1))
    points = np.insert(begins, last + 1, segments.reshape(-1, 2)[kept[last] ^ 1], axis=0)
    return points.astype(np.float64), np.insert(part[kept], last + 1, part[kept[last]]).astype(np.int64)


def _partners(corner: NDArray[np.int64]) -> NDArray[np.int64]:
    """Finds for each entry the other one of the same value if there are two of it, else the entry itself."""
    order = np.argsort(corner, kind="stable")
    begins = np.flatnonzero(np.diff(corner[order], prepend=-1))
    pairs = begins[np.diff(begins, append=len(order)) == 2]
    other = np.arange(len(corner))
    other[order[pairs]], other[order[pairs + 1]] = order[pairs + 1], order[pairs]
    return other


def _ranked(before: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Finds the first entry of each one's list and the steps to it; `before` of a first entry is itself."""
    steps = (before != np.arange(len(before))).astype(np.int64)
    while True:
        further = before[before]
        if (further == before).all():
            return before, steps
        steps += steps[before]
        before = further


@dataclass
class _Sides:
    """The vertical sides of polygons that are oriented alike: owner, x, from y0 to y1."""

    owner: NDArray[np.int64]
    x: NDArray[np.int32]
    y0: NDArray[np.int32]
    y1: NDArray[np.int32]

    def sums(self, values: NDArray[np.uint8] | None, count: int) -> NDArray[np.float64]:
        """Sums `values` (None: ones) over the pixels of each polygon.

        By Green's theorem: along each side the sum of everything to the left of it, the sides of holes and of the other
        flank being run through the other way.
        """
        if values is None:
            along = self.x * (self.y1 - self.y0).astype(np.float64)
        else:
            dtype = np.int32 if 255 * values.size < 2**31 else np.int64
            left = np.zeros((values.shape[0] + 1, values.shape[1] + 1), dtype=dtype)
            rows = np.cumsum(values, axis=1, dtype=dtype)
            for above, row, below in zip(
                left[:-1], rows, left[1:], strict=True
            ):  # cumsum down columns takes thrice as long
                np.add(above[1:], row, out=below[1:])
            along = (left[self.y1, self.x] - left[self.y0, self.x]).astype(np.float64)
        return np.abs(np.bincount(self.owner, along, count))

    def inner_pixels(self, count: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Finds (rows, columns) of a pixel inside each polygon: beside its leftmost side, where inside is right."""
        order = np.lexsort((self.x, self.owner))
        first = order[np.flatnonzero(np.diff(self.owner[order], prepend=-1))]
        assert len(first) == count
        return np.minimum(self.y0, self.y1)[first], self.x[first]


def _between_rings(faces: Polygons) -> NDArray[np.bool_]:
    """Marks each coordinate that is the last one of its ring."""
    rings = shapely.get_rings(faces)
    ends = np.cumsum(shapely.get_num_coordinates(rings)) - 1
    last = np.zeros(int(ends[-1]) + 1, dtype=bool)
    last[ends] = True
    return last


def _rims(
    xy: NDArray[np.float64], owner: NDArray[np.int64], number: NDArray[np.int64], size: tuple[int, ...]
) -> dict[str, NDArray[np.int64]]:
    """Tells for each pixel of the four sides of a block which polygon it lies in: number[owner]."""
    height, width = size
    rims = {}
    for name, axis, at, length in (
        ("left", 0, 0, height), ("right", 0, width, height), ("top", 1, 0, width), ("bottom", 1, height, width),
    ):  # fmt: skip
        on = xy[:, axis] == at
        first = np.flatnonzero(on[1:] & on[:-1] & (owner[1:] == owner[:-1]))
        ids = np.full(length, -1, dtype=np.int64)
        other = xy[:, 1 - axis]
        pixel = np.minimum(other[first], other[first + 1]).astype(np.int64)
        unit = np.abs(other[first + 1] - other[first]) == 1
        ids[pixel[unit]] = number[owner[first[unit]]]
        rims[name] = ids
    return rims
