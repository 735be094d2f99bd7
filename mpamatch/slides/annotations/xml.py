"""XML of ASAP (CAMELYON) and of Aperio ImageScope (TCGA). Both count in pixels of level 0, never cropped."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from mpamatch.errors import InputError, reason
from mpamatch.slides.annotations.regions import Annotations, Collector, Colour

_ELLIPSE, _ARROW, _RULER = "2", "3", "4"  # Type of an ImageScope region; others are closed outlines
_ELLIPSE_POINTS = 128


def read_xml(path: Path) -> Annotations:
    """Reads the areas of an XML file of ASAP or ImageScope, told apart by its first element.

    Raises InputError if the file is missing, is no XML or another's, or has a coordinate that is no number.
    """
    root = _root(path)
    found = Collector(path)
    if root.tag == "ASAP_Annotations":
        for annotation in root.iter("Annotation"):
            _add_asap(found, annotation)
    elif root.tag == "Annotations":
        for layer in root.iter("Annotation"):
            _add_imagescope(found, layer)
    else:
        raise InputError(f"{path}: begins with <{root.tag}>, not as ASAP or ImageScope write: export GeoJSON instead.")
    return found.annotations()


def _root(path: Path) -> Any:
    try:
        return ElementTree.parse(path).getroot()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file.") from None
    except (ElementTree.ParseError, DefusedXmlException, OSError, LookupError, ValueError) as error:
        raise InputError(f"{path}: is no XML that can be read ({reason(error)}): export it again.") from error


def _add_asap(found: Collector, annotation: Any) -> None:
    kind, group = annotation.get("Type", "Polygon"), annotation.get("PartOfGroup")
    if kind in {"Dot", "PointSet", "Measurement"}:
        found.skip(kind)
        return
    class_name = group if group and group != "None" else None
    outline = _points(found.path, annotation.iter("Coordinate"))
    found.add([[outline]], class_name, _hex(annotation.get("Color")), annotation.get("Name") or "", what=kind)


def _add_imagescope(found: Collector, layer: Any) -> None:
    """Adds the regions of a layer, which is a class; negative regions are cut out of the others."""
    class_name, color = layer.get("Name") or None, _bgr(layer.get("LineColor"))
    regions = list(layer.iter("Region"))
    cut = [[_outline(found.path, one)] for one in regions if one.get("NegativeROA") == "1"]
    for region in regions:
        kind = region.get("Type", "0")
        if region.get("NegativeROA") == "1":
            continue
        if kind in {_ARROW, _RULER}:
            found.skip("arrow" if kind == _ARROW else "ruler")
            continue
        found.add([[_outline(found.path, region)]], class_name, color, region.get("Text") or "", without=cut)


def _outline(path: Path, region: Any) -> list[tuple[float, float]]:
    points = _points(path, region.iter("Vertex"))
    if len(points) == 2:  # the corners of what encloses it
        (x0, y0), (x1, y1) = points
        if region.get("Type") != _ELLIPSE:
            return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
        turns = [2 * math.pi * number / _ELLIPSE_POINTS for number in range(_ELLIPSE_POINTS)]
        middle, radius = ((x0 + x1) / 2, (y0 + y1) / 2), (abs(x1 - x0) / 2, abs(y1 - y0) / 2)
        return [(middle[0] + radius[0] * math.cos(t), middle[1] + radius[1] * math.sin(t)) for t in turns]
    return points


def _points(path: Path, elements: Iterable[Any]) -> list[tuple[float, float]]:
    try:
        # European locales write 12,5.
        return [tuple(float(one.get(axis).replace(",", ".")) for axis in "XY") for one in elements]  # type: ignore[misc]
    except (AttributeError, ValueError) as error:
        raise InputError(f"{path}: has a point whose X or Y is no number: export it again.") from error


def _hex(text: str | None) -> Colour | None:
    """Reads #RRGGBB."""
    try:
        packed = int((text or "").removeprefix("#"), 16)
    except ValueError:
        return None
    return packed >> 16 & 255, packed >> 8 & 255, packed & 255


def _bgr(text: str | None) -> Colour | None:
    """Reads Windows' number for a colour, whose lowest byte is red."""
    if text is None or not text.isascii() or not text.isdigit():
        return None
    packed = int(text)
    return packed & 255, packed >> 8 & 255, packed >> 16 & 255
