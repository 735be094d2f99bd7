"""The outlines of a label's regions as polygons, block by block, with shared borders that stay shared."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

BLOCK = 2048  # pixels a side: larger ones save nothing, as the time goes with the length of the borders
MOST_COORDINATES = 8_000_000  # held at a time; beyond, the smallest regions go: 160 MB, and more text than QuPath loads
EXACT = 0.5  # a tolerance that removes nothing but points on straight lines: other triangles of pixels have half of one

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
        tolerance: of the simplification, in pixels; 0 if the polygons are exact.
        dropped: how many regions were too small to be kept.
        smallest: the fewest pixels that a kept region has to have; 0 if none was dropped.
    """

    polygons: Polygons
    classes: NDArray[np.uint8]
    pixels: NDArray[np.int64]
    confidence: NDArray[np.float64]
    tolerance: float = 0.0
    dropped: int = 0
    smallest: int = 0

    def __len__(self) -> int:
        return len(self.polygons)

    def simplified(self, tolerance: float) -> "Regions":
        """Removes corners of borders, of both sides alike; `tolerance` in pixels is the root of the area that goes."""
        if not len(self):
            return self
        return replace(self, polygons=shapely.coverage_simplify(self.polygons, tolerance), tolerance=tolerance)

    def without_specks(self, smallest: int) -> "Regions":
        """Drops the regions of fewer than `smallest` pixels."""
        kept = self.picked(self.pixels >= smallest)
        dropped = self.dropped + len(self) - len(kept)
        return replace(kept, dropped=dropped, smallest=max(self.smallest, smallest))

    def picked(self, which: NDArray[np.bool_] | NDArray[np.int64]) -> "Regions":
        """Returns those of a mask or of indices."""
        return replace(
            self,
            polygons=self.polygons[which],
            classes=self.classes[which],
            pixels=self.pixels[which],
            confidence=self.confidence[which],
        )


class Outliner:
    """Collects the regions of a label that is given block by block.

    Each block becomes polygons by itself (unit edges between different pixels, polygonize), which are simplified inside
    it: the points on its rim stay, so that what continues in the next block can be united over the seam afterwards.
    The time goes with the length of all borders, and memory holds the simplified polygons and one block.

    Args:
        tolerance: of the simplification, in pixels; 0 keeps every corner.
        skipped: classes that get no outline, the background and what nobody looked at.
    """

    def __init__(self, *, tolerance: float = 1.0, skipped: Sequence[int] = (0, 255)) -> None:
        self.tolerance, self.skipped = tolerance, np.array(skipped, dtype=np.uint8)
        self._blocks: list[_Block] = []
        self._count = 0  # of polygons so far
        self._coordinates = 0
        self._smallest, self._dropped = 0, 0
        self._open: dict[tuple[str, int, int], NDArray[np.int64]] = {}  # side, top, left → polygon of each rim pixel
        self._pairs: list[NDArray[np.int64]] = []  # polygons that are one region

    def add(
        self,
        label: NDArray[np.uint8],  # (h, w)
        confidence: NDArray[np.uint8] | None,  # (h, w), in percent
        top: int,
        left: int,
    ) -> None:
        """Adds the block that begins at row `top` and column `left`; neighbours must share whole sides."""
        if np.isin(label[0, 0], self.skipped) and (label == label[0, 0]).all():
            return
        block, rims = _outline(label, confidence, self.skipped, self.tolerance)
        height, width = label.shape
        for name, ids in rims.items():
            rims[name] = np.where(ids >= 0, ids + self._count, -1)
        values = {"left": label[:, 0], "right": label[:, -1], "top": label[0], "bottom": label[-1]}
        for mine, theirs, key in (("left", "right", (top, left)), ("top", "bottom", (top, left))):
            self._meet(rims[mine], values[mine], self._open.pop((theirs, *key), None))
        self._open["right", top, left + width] = _coded(rims["right"], values["right"])
        self._open["bottom", top + height, left] = _coded(rims["bottom"], values["bottom"])
        block.polygons = shapely.transform(block.polygons, lambda xy: xy + (left, top))
        self._blocks.append(block)
        self._count += len(block.polygons)
        self._coordinates += int(shapely.get_num_coordinates(block.polygons).sum())
        self._drop_specks()

    def _meet(self, ids: NDArray[np.int64], values: NDArray[np.uint8], other: NDArray[np.int64] | None) -> None:
        """Notes which polygons on both sides of a seam are one region."""
        if other is None:
            return
        theirs, their_values = other >> 8, other & 255
        same = (ids >= 0) & (theirs >= 0) & (values == their_values)
        self._pairs.append(np.unique(np.stack([theirs[same], ids[same]], axis=1), axis=0))

    def _drop_specks(self) -> None:
        """Drops the smallest regions inside blocks while more is held than anybody could load."""
        while self._coordinates > MOST_COORDINATES and self._smallest < BLOCK**2:
            self._smallest = max(4, 2 * self._smallest)
            self._coordinates = 0
            for block in self._blocks:
                gone = (block.pixels < self._smallest) & ~block.on_rim & (block.polygons != None)  # noqa: E711
                self._dropped += int(gone.sum())
                block.polygons[gone] = None
                self._coordinates += int(shapely.get_num_coordinates(block.polygons).sum())

    def finish(self) -> Regions:
        """Unites what lies on both sides of seams and returns all regions."""
        if not self._blocks:
            nothing = np.zeros(0)
            return Regions(nothing.astype(object), nothing.astype(np.uint8), nothing.astype(np.int64), nothing)
        polygons = np.concatenate([block.polygons for block in self._blocks])
        classes = np.concatenate([block.classes for block in self._blocks])
        pixels = np.concatenate([block.pixels for block in self._blocks])
        confidence = np.concatenate([block.confidence for block in self._blocks])
        self._blocks.clear()
        groups = self._groups()
        sums = np.bincount(groups, pixels), np.bincount(groups, confidence * pixels)
        order = np.argsort(groups, kind="stable")
        starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
        united = polygons[order[starts]]
        for at in np.flatnonzero(np.diff(starts, append=len(order)) > 1):
            stop = starts[at + 1] if at + 1 < len(starts) else len(order)
            united[at] = _united(polygons[order[starts[at] : stop]])
        del polygons  # simplifying takes some 200 bytes a point: what was united need not lie beside it
        kept = united != None  # noqa: E711
        count = np.rint(sums[0]).astype(np.int64)
        found = Regions(
            united[kept], classes[order[starts]][kept], count[kept], (sums[1] / sums[0])[kept],
            dropped=self._dropped, smallest=self._smallest,
        )  # fmt: skip
        # Straight seams lose their points, and at a tolerance the corners that a rim held in place.
        return replace(found.simplified(self.tolerance or EXACT), tolerance=self.tolerance)

    def _groups(self) -> NDArray[np.int32]:
        """Numbers the regions; returns that of each polygon."""
        pairs = np.concatenate([np.zeros((0, 2), dtype=np.int64), *self._pairs])
        ones = np.ones(len(pairs), dtype=bool)
        graph = coo_array((ones, (pairs[:, 0], pairs[:, 1])), shape=(self._count, self._count))
        return connected_components(graph, directed=False)[1]


@dataclass
class _Block:
    """The polygons of one block; `confidence` is the mean, `on_rim` whether it may go on in the next block."""

    polygons: Polygons
    classes: NDArray[np.uint8]
    pixels: NDArray[np.int64]
    confidence: NDArray[np.float64]
    on_rim: NDArray[np.bool_]


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
    outliner = Outliner(tolerance=tolerance, skipped=skipped)
    for top in range(0, label.shape[0], block):
        for left in range(0, label.shape[1], block):
            place = slice(top, top + block), slice(left, left + block)
            sure = None if confidence is None else np.asarray(confidence[place])
            outliner.add(np.asarray(label[place]), sure, top, left)
    return outliner.finish()


def _outline(
    label: NDArray[np.uint8], confidence: NDArray[np.uint8] | None, skipped: NDArray[np.uint8], tolerance: float
) -> tuple[_Block, dict[str, NDArray[np.int64]]]:
    """Outlines one block; also which polygon (-1: skipped) each pixel of its four sides lies in."""
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
    sure = np.full(len(faces), np.nan) if confidence is None else side.sums(confidence, len(faces)) / (100 * pixels)
    kept = ~np.isin(classes, skipped)
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


def _coded(ids: NDArray[np.int64], values: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Packs polygon and class of rim pixels into one number each, below 0 without a polygon."""
    return np.where(ids >= 0, ids << 8 | values, -1)


def _united(parts: Polygons) -> shapely.Geometry:
    """Unites polygons that share sides exactly."""
    return shapely.coverage_union_all(parts)
