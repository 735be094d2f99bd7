"""GeoJSON as QuPath exports it: .geojson, .json, .geojson.gz, .zip."""

import gzip
import json
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mpamatch.errors import InputError, reason, shown
from mpamatch.slides.annotations.regions import Annotations, Collector, Colour

MOST_BYTES = 2_000_000_000  # of text: a small archive can hold more than there is memory
MOST_TIMES = 100  # the size of its file, of what is packed: coordinates shrink to a tenth, blanks to a thousandth
SURE_BYTES = 1 << 26  # below that an archive may hold whatever it does
_SPACE = frozenset(" \t\r\n")
_AREAS = ("Polygon", "MultiPolygon", "GeometryCollection")
_OTHERS = ("Point", "MultiPoint", "LineString", "MultiLineString")


def read_geojson(path: Path, offset: tuple[float, float] = (0.0, 0.0)) -> Annotations:
    """Reads the areas of a GeoJSON file, feature by feature, so that memory holds the text and one feature.

    Args:
        path: a file, plain, gzipped, or an archive of one or several.
        offset: x and y of the coordinates' origin in pixels of level 0.

    Raises:
        InputError: the file is missing, is no GeoJSON, holds more than 2 GB, or a feature has no coordinates.
    """
    found = Collector(path, offset)
    for text in _texts(path):
        try:
            for feature in features(text):
                _add(found, feature)
        except InputError:
            raise
        except _NoGeoJsonError as error:
            raise InputError(f"{path}: {error}: export it from QuPath as GeoJSON.") from error
        except (ValueError, RecursionError) as error:  # no JSON, or a number of thousands of digits
            raise InputError(f"{path}: is no GeoJSON ({reason(error)}): export it from QuPath again.") from error
    return found.annotations()


class _NoGeoJsonError(ValueError):
    """JSON that is something else; the message is the rest of a sentence that begins with the file."""


def features(text: str) -> Iterator[Any]:
    """Yields the features of a FeatureCollection, of a list of features, or a single one, each decoded in its turn.

    Raises json.JSONDecodeError for what is no JSON, _NoGeoJsonError for other JSON.
    """
    cursor = _Cursor(text)
    if cursor.sees("["):
        yield from cursor.elements()
        return
    others: dict[str, Any] = {}
    collection = False
    for key in cursor.members():
        if key == "features" and cursor.sees("["):
            collection = True
            yield from cursor.elements()
        else:
            others[key] = cursor.value()
    if collection:
        return
    if others.get("type") == "Feature":
        yield others
    elif others.get("type") in (*_AREAS, *_OTHERS):
        yield {"type": "Feature", "geometry": others}
    else:
        raise _NoGeoJsonError("is JSON, but holds no features")


class _Cursor:
    """A place in a JSON text, moved on as its parts are decoded."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._decode = json.JSONDecoder().raw_decode
        self._skip()

    def sees(self, letter: str) -> bool:
        """Tells whether the next letter is `letter`."""
        return self._text[self._at : self._at + 1] == letter

    def value(self) -> Any:
        """Decodes the value that begins here."""
        found, self._at = self._decode(self._text, self._at)
        self._skip()
        return found

    def elements(self) -> Iterator[Any]:
        """Decodes the elements of the list that begins here, one after the other."""
        self._take("[")
        while not self.sees("]"):
            yield self.value()
            if not self.sees("]"):
                self._take(",")
        self._take("]")

    def members(self) -> Iterator[str]:
        """Decodes the keys of the object that begins here; whoever asks decodes the value after each."""
        self._take("{")
        while not self.sees("}"):
            key = self.value()
            if not isinstance(key, str):
                raise json.JSONDecodeError("expected a key", self._text, self._at)
            self._take(":")
            yield key
            if not self.sees("}"):
                self._take(",")
        self._take("}")

    def _take(self, letter: str) -> None:
        if not self.sees(letter):
            raise json.JSONDecodeError(f"expected {letter}", self._text, self._at)
        self._at += 1
        self._skip()

    def _skip(self) -> None:
        while self._text[self._at : self._at + 1] in _SPACE:
            self._at += 1


def _add(found: Collector, feature: Any) -> None:
    if not isinstance(feature, dict) or not isinstance(feature.get("geometry") or {}, dict):
        raise _NoGeoJsonError(f"holds {shown(feature)}, which is no feature")
    geometry, properties = feature.get("geometry") or {}, feature.get("properties") or {}
    class_name, color = _classification(properties if isinstance(properties, dict) else {})
    kind = geometry.get("type")
    name = str(properties.get("name") or "") if isinstance(properties, dict) else ""
    if kind in _AREAS:
        found.add(_polygons(geometry), class_name, color, name, what=kind)
    elif kind is None or kind in _OTHERS:
        found.skip(kind or "feature")
    else:
        raise _NoGeoJsonError(f"holds a geometry of type {shown(kind)}")


def _polygons(geometry: Any) -> list[Any]:
    """Lists the polygons of a geometry, those in a collection too."""
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind == "GeometryCollection":
        return [polygon for one in geometry.get("geometries") or () for polygon in _polygons(one)]
    coordinates = geometry.get("coordinates") if isinstance(geometry, dict) else None
    if kind not in _AREAS:
        return []
    if not isinstance(coordinates, list):
        raise _NoGeoJsonError("holds a polygon without coordinates")
    polygons = [coordinates] if kind == "Polygon" else coordinates
    if not all(isinstance(rings, list) for rings in polygons):
        raise _NoGeoJsonError("holds a polygon without rings")
    return polygons


def _classification(properties: dict[str, Any]) -> tuple[str | None, Colour | None]:
    """Reads class and colour, as any version of QuPath writes them: name or names, color or a signed colorRGB."""
    given = properties.get("classification")
    if isinstance(given, str):
        return given or None, None
    if not isinstance(given, dict):
        return None, None
    names = given.get("names")
    name = ": ".join(map(str, names)) if isinstance(names, list) else given.get("name")
    return (str(name) if name else None), _colour(given)


def _colour(given: dict[str, Any]) -> Colour | None:
    color, packed = given.get("color"), given.get("colorRGB")
    if isinstance(color, list) and len(color) >= 3 and all(isinstance(one, int) and 0 <= one <= 255 for one in color):
        return color[0], color[1], color[2]
    if isinstance(packed, int):
        return packed >> 16 & 255, packed >> 8 & 255, packed & 255
    return None


def _texts(path: Path) -> Iterator[str]:
    """Yields the text of a file, or of each GeoJSON in an archive."""
    try:
        with path.open("rb") as file:
            head = file.read(4)
        if head[:2] == b"\x1f\x8b":
            with gzip.open(path) as packed:  # read once to count: nothing of what is too large is kept
                _check_size(path, sum(len(piece) for piece in _pieces(path, packed)))
            with gzip.open(path) as packed:
                yield _decoded(path, packed.read())
        elif head == b"PK\x03\x04":
            yield from _archived(path)
        else:
            if path.stat().st_size > MOST_BYTES:
                raise _too_large(path)
            yield _decoded(path, path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file.") from None
    except (
        OSError,
        EOFError,
        RuntimeError,
        NotImplementedError,
        zlib.error,
        lzma.LZMAError,
        zipfile.BadZipFile,
    ) as error:
        raise InputError(f"{path}: cannot be unpacked ({reason(error)}): export it again.") from error


def _archived(path: Path) -> Iterator[str]:
    with zipfile.ZipFile(path) as archive:
        inside = [one for one in archive.infolist() if one.filename.lower().endswith((".geojson", ".json"))]
        inside = [one for one in inside if not Path(one.filename).name.startswith(".")]  # macOS adds ._NAME
        if not inside:
            raise InputError(f"{path}: holds no .geojson: pack the file that QuPath exported.")
        _check_size(path, sum(one.file_size for one in inside))
        for one in inside:
            with archive.open(one) as packed:
                yield _decoded(path, packed.read(one.file_size))


def _pieces(path: Path, packed: gzip.GzipFile) -> Iterator[bytes]:
    """Yields what is packed, piece by piece. Raises InputError as `_check_size` does, once there is too much of it."""
    total = 0
    while piece := packed.read(1 << 22):
        total += len(piece)
        _check_size(path, total)
        yield piece


def _check_size(path: Path, size: int) -> None:
    """Raises InputError if what is packed is larger than regions are, for itself or for the size of its file."""
    if size > MOST_BYTES:
        raise _too_large(path)
    packed = path.stat().st_size
    if size > SURE_BYTES and size > MOST_TIMES * packed:
        raise InputError(
            f"{path}: has {packed:,} bytes and unpacks to over {size / 1e6:,.0f} MB, as no regions do: export it again."
        )


def _decoded(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no GeoJSON ({reason(error)}): export it from QuPath again.") from error


def _too_large(path: Path) -> InputError:
    return InputError(f"{path}: holds more than {MOST_BYTES / 1e9:g} GB of text: export fewer objects.")
