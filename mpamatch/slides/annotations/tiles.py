"""The label tiles of QuPath's TileExporter: NAME [d=4,x=0,y=0,w=2048,h=2048]-labelled.png."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image
from shapely.geometry.base import BaseGeometry

from mpamatch.errors import InputError
from mpamatch.images import default_colour, read_mask
from mpamatch.slides.annotations.regions import Annotations, Colour, Region
from mpamatch.slides.sources.base import Box

_NAME = re.compile(r"(?P<slide>.+?) \[(?P<place>[^\]]*)\]-labelled\.(png|tiff?)", re.IGNORECASE)


@dataclass(frozen=True)
class TileName:
    """What the name of a tile says: its slide, its place in pixels of level 0, and how many of them a pixel is wide."""

    slide: str
    box: Box
    downsample: float


def tile_name(name: str) -> TileName | None:
    """Parses the name of a label tile; None if it is none."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    try:
        given = {
            key.strip(): float(value) for key, _, value in (one.partition("=") for one in match["place"].split(","))
        }
        box = Box(*(int(given[key]) for key in "xywh"))
    except (ValueError, KeyError):
        return None
    return TileName(match["slide"], box, given.get("d", 1.0))


def read_tiles(paths: Sequence[Path], names: Sequence[str], offset: tuple[float, float] = (0.0, 0.0)) -> Annotations:
    """Reads label tiles: each value above 0 is a class, 0 is unpainted.

    Args:
        paths: the tiles of one slide.
        names: of the values 1, 2, ….
        offset: x and y of the coordinates' origin in pixels of level 0.

    Raises:
        InputError: a tile cannot be decoded, its name gives no place, or it holds a value that has no name.
    """
    regions: list[Region] = []
    for path in paths:
        place = tile_name(path.name)
        if place is None:
            raise InputError(f"{path}: its name gives no place [d=…,x=…,y=…,w=…,h=…]: keep the name QuPath gave it.")
        label = read_mask(path)
        values = [int(value) for value in np.unique(label) if value > 0]
        if values and values[-1] > len(names):
            raise InputError(
                f"{path}: holds the values {', '.join(map(str, values))}, and {len(names)} names are given: name the "
                "classes of 1, 2, … with --classes, in their order."
            )
        palette = _palette(path)
        for value in values:
            geometry = _geometry(label == value, place, offset)
            regions.append(Region(names[value - 1], geometry, palette.get(value, default_colour(value))))
    return Annotations(tuple(regions), ("the value 0 of label tiles counts as unpainted.",) if paths else ())


def _geometry(mask: NDArray[np.bool_], place: TileName, offset: tuple[float, float]) -> BaseGeometry:
    """Outlines a mask along the edges of its pixels, in pixels of level 0."""
    across, down = place.box.width / mask.shape[1], place.box.height / mask.shape[0]
    runs = _runs(mask)
    left, right = place.box.x + offset[0] + runs[:, 1] * across, place.box.x + offset[0] + runs[:, 2] * across
    top, bottom = place.box.y + offset[1] + runs[:, 0] * down, place.box.y + offset[1] + (runs[:, 0] + 1) * down
    return shapely.union_all(shapely.box(left, top, right, bottom))


def _runs(mask: NDArray[np.bool_]) -> NDArray[np.int64]:  # (N, 3)
    """Lists the runs of True along rows: row, first column, column behind the last."""
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(edges == 1)
    return np.stack([rows, starts, np.nonzero(edges == -1)[1]], axis=1)


def _palette(path: Path) -> dict[int, Colour]:
    with Image.open(path) as image:
        colours = image.getpalette("RGB") if image.mode == "P" else None
    packed = np.array(colours or [], dtype=int).reshape(-1, 3)
    return {value: (int(red), int(green), int(blue)) for value, (red, green, blue) in enumerate(packed)}
