"""Regions as GeoJSON that QuPath loads: its coordinates and its objects."""

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
ANNOTATION, DETECTION = "annotation", "detection"
MOST_ANNOTATIONS = 5000  # beyond, the objects are detections, of which QuPath draws and selects many more at ease
CHUNK = 2048  # regions at a time
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

    def record(self) -> dict[str, Any]:
        """Returns what a file says of it."""
        microns = self.mpp / self.scale
        return {"origin": self.origin, "offset": list(self.offset), "microns_per_pixel": microns}


def place_of(slide: Slide, scale: float, mpp: float, origin: str) -> Place:
    """Finds where QuPath begins to count in a slide."""
    shown = slide.bounds if origin == "qupath" else None
    return Place(scale, mpp, origin, (shown.x, shown.y) if shown else (0, 0))


def write_tissue(path: Path, tissue: Tissue, place: Place) -> None:
    """Writes the outline of the tissue as one annotation of class Tissue, plain so that it can be edited anywhere."""
    found = outlines(tissue.mask.astype(np.uint8), tolerance=1.0, skipped=(0,))
    here = Place(tissue.scale, tissue.mpp, place.origin, place.offset)
    texts = [text for _, text in features(found, ("", TISSUE), ((0, 0, 0), TISSUE_COLOUR), here, ANNOTATION)]
    about = {"origin": here.origin, "offset": list(here.offset)}
    with replacing(path) as temporary:
        start = f'{{"type": "FeatureCollection", "mpamatch": {json.dumps(about)}, "features": [\n'
        temporary.write_text(start + ",\n".join(texts) + "\n]}\n", encoding="utf-8")


def features(
    regions: Regions, names: Sequence[str], colours: Sequence[Colour], place: Place, kind: str
) -> Iterator[tuple[int, str]]:
    """Yields the index and the text of each region as a feature, without those that vanish on QuPath's grid.

    Args:
        regions: in pixels of a label.
        names: of all classes, by index.
        colours: of all classes.
        place: of the label on the slide.
        kind: annotation or detection, which is the first word of a text after its coordinates.
    """
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
            yield start + at, f"{head}{json.dumps(about, ensure_ascii=False)}}}"


def _measurements(regions: Regions, at: int, mpp: float) -> dict[str, float]:
    """Builds the measurements of a region, which QuPath lists and colours by."""
    area = {"Area mm^2": float(f"{int(regions.pixels[at]) * (mpp / 1000) ** 2:.6g}")}
    confidence = float(regions.confidence[at])
    return area if np.isnan(confidence) else {**area, "Mean confidence": round(confidence, 4)}
