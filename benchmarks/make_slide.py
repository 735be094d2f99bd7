"""Makes a whole slide of any size, with what is true of it as QuPath GeoJSON.

    python -m mpamatch.benchmarks.make_slide OUT.tif [--size 20480] [--ebhi-seg FOLDER] [--mpp 0.5] [--seed 0]
        [--truth ALL.geojson]

Two pieces of tissue on white glass, one pale and one dark, each a mosaic of photographs: those of EBHI-SEG (CC BY
4.0) by their diagnosis if its folder is named, or by MPAMATCH_EBHI_SEG, else made-up tissue in three stains. Regions of
one class are many photographs wide. A JPEG pyramid in tiles, which OpenSlide opens with its µm per pixel; memory holds
a row of tiles, smaller levels wait in a temporary file.

Beside OUT.tif lies OUT.geojson, what an annotator might have done: two Region*, and within them the regions of every
class but the first. All regions of the slide are written where --truth says.
"""

import argparse
import json
import math
import os
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
import tifffile
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from mpamatch.benchmarks.command import run_main
from mpamatch.data.synthetic import synthesize
from mpamatch.errors import InputError
from mpamatch.files import replacing, write_json
from mpamatch.images import default_colour, read_image

Pixels = NDArray[np.uint8]

CELL = 224  # pixels: the side of a photograph
PER_CLASS = 24  # photographs
TILE = 256
SMALLEST_LEVEL = 256
QUALITY = 85  # of the JPEGs, as scanners have it
GLASS = (244, 243, 245)
STAIN = {"pale": 0.25, "dark": 1.5}  # times the density of the photographs
PATCHINESS = 6  # cells: how wide a region of one class is
EBHI_CLASSES = {
    "Normal": ("Normal",),
    "Adenoma": ("Low-grade IN", "High-grade IN"),
    "Adenocarcinoma": ("Adenocarcinoma",),
}


@dataclass(frozen=True)
class Layout:
    """What lies where, by cell.

    Attributes:
        side: of the slide in pixels.
        names: of the classes.
        index: (cells, cells) the class of each cell; −1 for glass.
        stain: (cells, cells) how strong its stain is.
        photograph: (cells, cells) which photograph of its class it shows.
        turn: (cells, cells) of eight turns and flips.
    """

    side: int
    names: tuple[str, ...]
    index: NDArray[np.int64]
    stain: NDArray[np.float64]
    photograph: NDArray[np.int64]
    turn: NDArray[np.int64]


def main() -> int:
    """Makes the slide that the command line asks for; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, default=20480, help="side in pixels (20480)")
    parser.add_argument("--ebhi-seg", type=Path, default=os.environ.get("MPAMATCH_EBHI_SEG"))
    parser.add_argument("--mpp", type=float, default=0.5, help="µm per pixel (0.5)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--truth", type=Path, help="GeoJSON file for all regions of the slide")
    words = parser.parse_args()
    make_slide(words.out, words.size, words.ebhi_seg, words.mpp, words.seed, words.truth)
    print(f"{words.out}: {words.size}×{words.size} pixels, {words.out.stat().st_size / 1e6:.0f} MB")
    return 0


def make_slide(
    path: Path,
    size: int = 20480,
    ebhi_seg: Path | None = None,
    mpp: float = 0.5,
    seed: int = 0,
    truth: Path | None = None,
) -> tuple[Layout, dict[str, BaseGeometry]]:
    """Writes the slide, its annotations and, if it is asked for, what is true of it.

    Args:
        path: ends in .tif.
        size: side in pixels, at least 1024.
        ebhi_seg: EBHI-SEG's folder; None: made-up tissue.
        mpp: µm per pixel.
        seed: of the layout.
        truth: GeoJSON file for all regions; None: not written.

    Returns:
        The layout, and the true region of each class in pixels of level 0.

    Raises:
        InputError: the size is too small, the folder lacks a class, or a file cannot be written.
    """
    if size < 1024:
        raise InputError(f"--size {size}: must be at least 1024.")
    photographs = _synthetic(seed) if ebhi_seg is None else _ebhi(ebhi_seg)
    layout = lay_out(size, tuple(photographs), seed)
    with replacing(path) as temporary:
        _write_pyramid(temporary, layout, list(photographs.values()), mpp)
    regions = true_regions(layout)
    colours = {name: default_colour(index + 1) for index, name in enumerate(layout.names)}
    if truth is not None:
        write_json(truth, geojson(list(regions.items()), colours))
    write_json(path.with_suffix(".geojson"), geojson(annotated(layout, regions), colours))
    return layout, regions


def lay_out(size: int, names: tuple[str, ...], seed: int) -> Layout:
    """Places two round pieces of tissue, the left one pale, each of patches of every class."""
    cells = math.ceil(size / CELL)
    rng = np.random.default_rng(seed)
    rows, columns = (np.indices((cells, cells)) + 0.5) * CELL / size
    index = np.full((cells, cells), -1)
    stain = np.zeros((cells, cells))
    middles = rng.random((max(2 * len(names), (cells // PATCHINESS) ** 2), 2))
    nearest = np.hypot(rows[..., None] - middles[:, 0], columns[..., None] - middles[:, 1]).argmin(axis=-1)
    for column, strength in zip((0.29, 0.71), STAIN.values(), strict=True):
        piece = np.hypot((rows - 0.5) / 0.4, (columns - column) / 0.19) <= 1
        index[piece] = nearest[piece] % len(names)
        stain[piece] = strength
    shape = (cells, cells)
    return Layout(size, names, index, stain, rng.integers(0, PER_CLASS, shape), rng.integers(0, 8, shape))


def true_regions(layout: Layout) -> dict[str, BaseGeometry]:
    """Outlines the cells of each class, in pixels of level 0."""
    found = {}
    for number, name in enumerate(layout.names):
        rows, columns = np.nonzero(layout.index == number)
        ends = [np.minimum((one + 1) * CELL, layout.side) for one in (columns, rows)]
        found[name] = shapely.union_all(shapely.box(columns * CELL, rows * CELL, *ends))
    return found


def annotated(layout: Layout, regions: dict[str, BaseGeometry]) -> list[tuple[str, BaseGeometry]]:
    """Lists a Region* on each piece of tissue and what is in them of all classes but the first, the background."""
    half = round(layout.side * 0.11)
    middles = [(round(layout.side * column), round(layout.side * 0.5)) for column in (0.29, 0.71)]
    whole = [shapely.box(x - half, y - half, x + half, y + half) for x, y in middles]
    inside = [(name, regions[name].intersection(one)) for one in whole for name in layout.names[1:]]
    return [*(("Region*", one) for one in whole), *(pair for pair in inside if pair[1].area > 0)]


def geojson(regions: list[tuple[str, BaseGeometry]], colours: dict[str, tuple[int, int, int]]) -> dict[str, Any]:
    """Builds a FeatureCollection as QuPath writes it, a feature for each polygon."""
    parts = [(name, part) for name, region in regions for part in shapely.get_parts(region)]
    return {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{name} {part.wkt}")),
                "geometry": json.loads(shapely.to_geojson(part)),
                "properties": {
                    "objectType": "annotation",
                    "classification": {"name": name, "color": list(colours.get(name, (180, 180, 180)))},
                },
            }
            for name, part in parts
            if part.geom_type == "Polygon"
        ],
    }


def _ebhi(folder: Path) -> dict[str, list[Pixels]]:
    found = {}
    for name, diagnoses in EBHI_CLASSES.items():
        files = [sorted((folder / diagnosis / "image").glob("*.png")) for diagnosis in diagnoses]
        mixed = [file for some in zip(*files, strict=False) for file in some][:PER_CLASS]
        if not mixed:
            raise InputError(f"{folder}: holds no {diagnoses[0]}/image/*.png: name EBHI-SEG's folder.")
        found[name] = [_fitting(read_image(file)) for file in mixed]
    return found


def _fitting(image: Pixels) -> Pixels:
    """Cuts or mirrors a photograph to the size of a cell."""
    lacking = [(0, max(0, CELL - side)) for side in image.shape[:2]]
    return np.pad(image, [*lacking, (0, 0)], mode="symmetric")[:CELL, :CELL]


def _synthetic(seed: int) -> dict[str, list[Pixels]]:
    """Makes tissue up; classes differ in their stain."""
    found = {}
    for number, (name, order) in enumerate({"Normal": (0, 1, 2), "Adenoma": (2, 1, 0), "Tumour": (1, 0, 2)}.items()):
        images = [synthesize(24 * number + one, seed, CELL)[0] for one in range(6)]
        found[name] = [np.ascontiguousarray(image[..., order]) for image in images]
    return found


def _write_pyramid(path: Path, layout: Layout, photographs: list[list[Pixels]], mpp: float) -> None:
    """Writes level by level; each is averaged from the one before it while that is written."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, tifffile.TiffWriter(path, bigtiff=True) as file:
        rows: Iterator[Pixels] = _painted(layout, photographs)
        side, level = layout.side, 0
        while True:
            smaller = Path(folder) / f"{level}.raw"
            per_centimetre = 1e4 / (mpp * 2**level)
            file.write(
                _tiles(rows, side, smaller),
                shape=(side, side, 3),
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": QUALITY},
                subfiletype=1 if level else 0,
                resolution=(per_centimetre, per_centimetre),
                resolutionunit="CENTIMETER",
                metadata=None,
                maxworkers=1,
            )
            if side // 2 < SMALLEST_LEVEL:
                return
            side, level = side // 2, level + 1
            rows = _strips(smaller, side)


def _painted(layout: Layout, photographs: list[list[Pixels]]) -> Iterator[Pixels]:
    """Yields the slide TILE rows at a time."""
    waiting = np.empty((0, layout.side, 3), dtype=np.uint8)
    for row in range(len(layout.index)):
        painted = np.concatenate([_cell(layout, photographs, row, c) for c in range(layout.index.shape[1])], axis=1)
        rows = min(CELL, layout.side - row * CELL)
        waiting = np.concatenate([waiting, painted[:rows, : layout.side]])
        while len(waiting) >= TILE:
            yield waiting[:TILE]
            waiting = waiting[TILE:]
    if len(waiting):
        yield waiting


def _strips(level: Path, side: int) -> Iterator[Pixels]:
    """Yields a level TILE rows at a time."""
    with level.open("rb") as file:
        while len(strip := np.fromfile(file, np.uint8, TILE * side * 3)):
            yield strip.reshape(-1, side, 3)


def _cell(layout: Layout, photographs: list[list[Pixels]], row: int, column: int) -> Pixels:
    index = layout.index[row, column]
    if index < 0:
        noise = np.random.default_rng([row, column]).integers(-1, 2, (CELL, CELL, 1))
        return (np.array(GLASS) + noise).astype(np.uint8)
    of_class = photographs[index]
    image = of_class[layout.photograph[row, column] % len(of_class)]
    turned = np.rot90(image, layout.turn[row, column] % 4)
    turned = turned[::-1] if layout.turn[row, column] >= 4 else turned
    table = np.rint(GLASS[0] * (np.arange(256) / 255) ** layout.stain[row, column]).astype(np.uint8)
    return table[turned]


def _tiles(rows: Iterator[Pixels], side: int, smaller: Path) -> Iterator[Pixels]:
    """Yields the tiles of a level, those at the rim padded, and writes the next level as raw bytes."""
    with smaller.open("wb") as file:
        for strip in rows:
            half = strip[: len(strip) // 2 * 2, : side // 2 * 2].astype(np.uint16)
            averaged = (half[::2, ::2] + half[1::2, ::2] + half[::2, 1::2] + half[1::2, 1::2] + 2) // 4
            file.write(averaged.astype(np.uint8).tobytes())
            for column in range(0, side, TILE):
                tile = strip[:, column : column + TILE]
                lacking = [(0, TILE - length) for length in tile.shape[:2]]
                yield np.pad(tile, [*lacking, (0, 0)], mode="edge")


if __name__ == "__main__":
    run_main(main)
