"""GeoJSON as QuPath 0.5 and later exports it."""

import json
import uuid
from pathlib import Path
from typing import Any

Points = list[tuple[float, float]]


def square(x: float, y: float, side: float) -> Points:
    return [(x, y), (x + side, y), (x + side, y + side), (x, y + side)]


def closed(points: Points) -> list[list[float]]:
    return [list(point) for point in [*points, points[0]]]


def feature(
    class_name: str | None, *rings: Points, color: tuple[int, int, int] = (200, 0, 0), name: str | None = None
) -> dict[str, Any]:
    """A polygon: its shell, then its holes."""
    properties: dict[str, Any] = {"objectType": "annotation"}
    if class_name is not None:
        properties["classification"] = {"name": class_name, "color": list(color)}
    if name is not None:
        properties["name"] = name
    geometry = {"type": "Polygon", "coordinates": [closed(ring) for ring in rings]}
    return {"type": "Feature", "id": str(uuid.uuid4()), "geometry": geometry, "properties": properties}


def collection(*features: dict[str, Any]) -> dict[str, Any]:
    return {"type": "FeatureCollection", "features": list(features)}


def write(path: Path, *features: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(collection(*features), indent=1), encoding="utf-8")
    return path
