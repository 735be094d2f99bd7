"""Regions as GeoJSON that QuPath loads: its coordinates, its objects, its limits."""

import gzip
import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from mpamatch.files import replacing
from mpamatch.images import Colour
from mpamatch.slides.outlines import Polygons, Regions, outlines
from mpamatch.slides.reader import Slide
from mpamatch.slides.tissue import Tissue

PRECISION = 0.01  # pixels of level 0: QuPath rounds to that, and throws where a polygon is invalid then
MOST_ANNOTATIONS = 5000  # beyond, the objects are detections, of which QuPath draws and selects many more at ease
LIMIT = 100_000_000  # characters: QuPath makes a tree of the whole file in memory
MOST_SIMPLIFIED = 4.0  # pixels of the label; beyond that small regions go instead
CHUNK = 2048  # regions at a time
SAMPLE = 1000  # regions whose text is measured to tell that of all
NAMESPACE = uuid.UUID("6f0e6d3c-7f0b-5d0f-9a55-3d0f0f3a9c1e")  # of the ids: the same content has the same id
TISSUE = "Tissue"
TISSUE_COLOUR: Colour = (255, 165, 0)

ORIGINS = ("qupath", "slide")


@dataclass(frozen=True)
class Place:
    """How pixels of a label become coordinates: x · scale − offset, in pixels of level 0.

    Attributes:
        scale: pixels of level 0 per pixel of the label.
        mpp: µm per pixel of the label.
        origin: qupath (coordinates count from the part of the slide that QuPath shows) or slide.
        offset: x and y of that part, 0 for `slide`.
    """

    scale: float
    mpp: float
    origin: str = "qupath"
    offset: tuple[int, int] = (0, 0)

    def coordinates(self, polygons: Polygons) -> Polygons:
        """Moves polygons to level 0 and to QuPath's grid; one that vanishes there is empty."""
        moved = shapely.transform(polygons, lambda xy: xy * self.scale - self.offset)
        return shapely.set_precision(moved, PRECISION)


def place_of(slide: Slide, scale: float, mpp: float, origin: str) -> Place:
    """Finds where QuPath begins to count in a slide."""
    shown = slide.bounds if origin == "qupath" else None
    return Place(scale, mpp, origin, (shown.x, shown.y) if shown else (0, 0))


def write_regions(
    path: Path, regions: Regions, names: Sequence[str], colours: Sequence[Colour], place: Place, *, limit: int = LIMIT
) -> list[str]:
    """Writes regions as a FeatureCollection, packed by gzip; the same regions give the same bytes.

    Each has its class with its colour, the area in mm² of its pixels and, if known, the mean confidence. Beyond `limit`
    characters the regions are simplified up to 4 pixels, then the smallest are left out.

    Args:
        path: ends in .geojson.gz.
        regions: in pixels of a label.
        names: of all classes, by index.
        colours: of all classes.
        place: of the label on the slide.
        limit: of the text, in characters.

    Returns:
        What was done to keep to the limit, in sentences.

    Raises:
        InputError: the file cannot be written.
    """
    fitting = _fitted(regions, names, colours, place, limit)
    about = {"origin": place.origin, "offset": list(place.offset), "microns_per_pixel": place.mpp / place.scale}
    with replacing(path) as temporary, temporary.open("wb") as raw:
        with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=5) as packed:
            packed.write(f'{{"type": "FeatureCollection", "mpamatch": {json.dumps(about)}, "features": [\n'.encode())
            before = b""
            for text in _features(fitting, names, colours, place):
                packed.write(before + text.encode())
                before = b",\n"
            packed.write(b"\n]}\n")
    return _told(path, regions, fitting, place)


def write_tissue(path: Path, tissue: Tissue, place: Place) -> None:
    """Writes the outline of the tissue as one annotation of class Tissue, plain so that it can be edited anywhere."""
    found = outlines(tissue.mask.astype(np.uint8), tolerance=1.0, skipped=(0,))
    here = Place(tissue.scale, tissue.mpp, place.origin, place.offset)
    texts = _features(found, ("", TISSUE), ((0, 0, 0), TISSUE_COLOUR), here, kind="annotation")
    about = {"origin": here.origin, "offset": list(here.offset)}
    with replacing(path) as temporary:
        start = f'{{"type": "FeatureCollection", "mpamatch": {json.dumps(about)}, "features": [\n'
        temporary.write_text(start + ",\n".join(texts) + "\n]}\n", encoding="utf-8")


def _features(
    regions: Regions, names: Sequence[str], colours: Sequence[Colour], place: Place, kind: str | None = None
) -> Iterator[str]:
    """Yields each region as a feature; those that vanish on QuPath's grid are left out."""
    kind = kind or ("annotation" if len(regions) <= MOST_ANNOTATIONS else "detection")
    for start in range(0, len(regions), CHUNK):
        part = slice(start, start + CHUNK)
        shapes = place.coordinates(regions.polygons[part])
        texts, codes = shapely.to_geojson(shapes), shapely.to_wkb(shapes)
        for at, shape in enumerate(shapes):
            if shape.is_empty:
                continue
            index = int(regions.classes[start + at])
            name = names[index]
            about: dict[str, Any] = {
                "objectType": kind,
                "classification": {"name": name, "color": [int(part) for part in colours[index]]},
                "measurements": _measurements(regions, start + at, place.mpp),
            }
            of_content = uuid.uuid5(NAMESPACE, f"{name}:{codes[at].hex()}")
            head = f'{{"type": "Feature", "id": "{of_content}", "geometry": {texts[at]}, "properties": '
            yield f"{head}{json.dumps(about, ensure_ascii=False)}}}"


def _measurements(regions: Regions, at: int, mpp: float) -> dict[str, float]:
    """Builds the measurements of a region, which QuPath lists and colours by."""
    area = {"Area mm^2": float(f"{int(regions.pixels[at]) * (mpp / 1000) ** 2:.6g}")}
    confidence = float(regions.confidence[at])
    return area if np.isnan(confidence) else {**area, "Mean confidence": round(confidence, 4)}


def _fitted(regions: Regions, names: Sequence[str], colours: Sequence[Colour], place: Place, limit: int) -> Regions:
    """Simplifies regions, then drops small ones, until their text is within the limit."""
    while _text_size(regions, names, colours, place) > limit:
        if regions.tolerance < MOST_SIMPLIFIED:
            regions = regions.simplified(max(1.0, 2 * regions.tolerance))
        else:
            regions = regions.without_specks(max(16, 2 * regions.smallest, int(np.quantile(regions.pixels, 0.1))))
    return regions


def _text_size(regions: Regions, names: Sequence[str], colours: Sequence[Colour], place: Place) -> int:
    """Estimates the characters of all features from every n-th: by its coordinates and one by one."""
    if not len(regions):
        return 0
    some = regions.picked(np.arange(0, len(regions), -(-len(regions) // SAMPLE)))
    characters = sum(len(text) + 2 for text in _features(some, names, colours, place, kind="annotation"))
    fixed = 420  # a feature without its coordinates
    counts = shapely.get_num_coordinates(regions.polygons).sum(), shapely.get_num_coordinates(some.polygons).sum()
    each = max(1.0, (characters - fixed * len(some)) / max(1, counts[1]))
    return int(fixed * len(regions) + each * counts[0])


def _told(path: Path, given: Regions, written: Regions, place: Place) -> list[str]:
    """Says what was simplified or left out beyond what was asked for."""
    said = []
    if written.tolerance > given.tolerance:
        said.append(
            f"{path.name}: borders are simplified to {written.tolerance:g} pixels of the mask instead of "
            f"{given.tolerance:g}, so that QuPath can load it."
        )
    if written.dropped:
        area = written.smallest * place.mpp**2
        said.append(
            f"{path.name}: {written.dropped:,} regions under {area:.4g} µm² are left out, so that QuPath can load it; "
            "the mask has them."
        )
    return said
