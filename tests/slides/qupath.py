"""QuPath's rules for a GeoJSON file, as its source has them (0.7 to 0.8): what breaks one is named."""

import gzip
import json
import math
import uuid
from pathlib import Path
from typing import Any

import shapely

LIMIT = 100_000_000
TYPES = {"annotation", "detection"}


def problems(path: Path) -> list[str]:
    """Names everything in a file that QuPath would not load, or would load shifted or without its class."""
    data = gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes()
    found = [] if len(data) <= LIMIT else [f"{len(data)} bytes"]
    content = json.loads(data.decode("utf-8"), parse_constant=lambda word: found.append(f"{word} is no JSON"))
    if content.get("type") != "FeatureCollection":
        return [*found, f"a {content.get('type')}"]
    ids = [feature.get("id") for feature in content["features"]]
    if len(set(ids)) != len(ids):
        found.append("two objects with one id")
    for at, feature in enumerate(content["features"]):
        found += [f"feature {at}: {problem}" for problem in _of_feature(feature)]
    return found


def _of_feature(feature: dict[str, Any]) -> list[str]:
    found = []
    if feature.get("type") != "Feature":
        found.append("is no Feature")
    try:
        uuid.UUID(feature["id"])
    except (KeyError, ValueError, TypeError):
        found.append("id is no UUID")
    properties = feature.get("properties") or {}
    if properties.get("objectType") not in TYPES:
        found.append(f"objectType {properties.get('objectType')!r}")
    given = properties.get("classification")
    if not isinstance(given, dict) or not given.get("name"):
        found.append("classification without a name")
    elif not _is_colour(given.get("color")):
        found.append("classification without a color")
    for name, value in (properties.get("measurements") or {}).items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            found.append(f"measurement {name} is {value!r}")
    return found + _of_geometry(feature.get("geometry") or {})


def _is_colour(color: Any) -> bool:
    return isinstance(color, list) and len(color) == 3 and all(type(one) is int and 0 <= one <= 255 for one in color)


def _of_geometry(geometry: dict[str, Any]) -> list[str]:
    if geometry.get("type") not in ("Polygon", "MultiPolygon"):
        return [f"geometry {geometry.get('type')}"]
    shape = shapely.from_geojson(json.dumps(geometry))
    if not shapely.is_valid(shape):
        return [f"invalid: {shapely.is_valid_reason(shape)}"]
    rounded = shapely.set_precision(shape, 0.01)
    if rounded.is_empty or not shapely.is_valid(rounded):
        return ["empty or invalid on the grid of 0.01"]
    if not shapely.equals(rounded, shape):
        return ["moves on the grid of 0.01"]
    return [] if shape.area > 0 else ["without an area"]
