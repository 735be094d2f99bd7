"""Annotation files found for slides by name, and read whatever program wrote them."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mpamatch.errors import InputError
from mpamatch.names import same, visible_below
from mpamatch.slides.annotations.geojson import read_geojson
from mpamatch.slides.annotations.regions import Annotations
from mpamatch.slides.annotations.tiles import read_tiles, tile_name
from mpamatch.slides.annotations.xml import read_xml
from mpamatch.slides.reader import Box

ORIGINS = ("qupath", "slide")
ENDINGS = (".geojson.gz", ".json.gz", ".geojson", ".json", ".zip", ".xml")


@dataclass
class AnnotationFiles:
    """What was found in a folder: of each slide one file or its label tiles, and files that belong to no slide."""

    of_slide: dict[str, list[Path]] = field(default_factory=dict)  # the slide's name → its files
    left: list[Path] = field(default_factory=list)


def slide_name(path: Path) -> str:
    """Returns a slide's name without its ending: a.svs and a.ome.tif are both a."""
    stem = path.stem
    return stem[:-4] if stem.lower().endswith(".ome") else stem


def find_annotations(place: Path, slides: Mapping[str, Path]) -> AnnotationFiles:
    """Pairs the annotation files in a folder, and the folders in it, with slides by name.

    The file of slide a.svs is a.geojson, a.svs.geojson, a.xml and so on, or it has label tiles named as QuPath does.

    Args:
        place: the folder, or a single file.
        slides: name → file.

    Raises:
        InputError: there is no such place, it holds no annotation file or none of these slides', or a slide has two.
    """
    if not place.exists():
        raise InputError(f"{place}: no such file or folder.")
    files = [place] if place.is_file() else [one for one in visible_below(place) if one.is_file()]
    keys = {same(key): name for name, path in slides.items() for key in (name, path.stem, path.name)}
    found, tiles = AnnotationFiles(), defaultdict[str, list[Path]](list)
    for file in files:
        tile = tile_name(file.name)
        named = tile.slide if tile else _key(file)
        if named is None:
            continue
        key = same(named)
        if key not in keys:
            found.left.append(file)
        elif tile:
            tiles[keys[key]].append(file)
        else:
            others = found.of_slide.setdefault(keys[key], [])
            if others:
                raise InputError(f"{file}: annotates {keys[key]}, as {others[0]} does: keep one of them.")
            others.append(file)
    for name, paths in tiles.items():
        if name in found.of_slide:
            raise InputError(f"{paths[0]}: annotates {name}, as {found.of_slide[name][0]} does: keep one of them.")
        found.of_slide[name] = paths
    if not found.of_slide:
        told = (
            f"of {len(found.left)} annotation files none has the name of a slide, such as" if found.left else "holds no"
        )
        raise InputError(f"{place}: {told} {next(iter(slides), 'SLIDE')}.geojson: export one there from QuPath.")
    return found


def read_annotations(
    paths: Sequence[Path],
    *,
    bounds: Box | None = None,
    origin: str = "qupath",
    names: Sequence[str] = (),
) -> Annotations:
    """Reads the annotations of a slide, in pixels of its level 0.

    Args:
        paths: one file of any kind, or all label tiles.
        bounds: the part of the slide that QuPath crops to, if it does (`Slide.bounds`).
        origin: "qupath": QuPath's coordinates begin at the corner of `bounds`; "slide": at the slide's (--no-crop).
            XML of ASAP and ImageScope always begins at the slide's.
        names: of the values 1, 2, … of label tiles.

    Raises:
        InputError: `origin` is neither, or a file cannot be read.
    """
    if origin not in ORIGINS:
        raise InputError(f"--origin {origin}: must be {' or '.join(ORIGINS)}.")
    cropped = bounds is not None and origin == "qupath"
    offset = (float(bounds.x), float(bounds.y)) if bounds is not None and cropped else (0.0, 0.0)
    if tile_name(paths[0].name):
        found = read_tiles(paths, names, offset)
    elif paths[0].suffix.lower() == ".xml":
        return read_xml(paths[0])
    else:
        found = read_geojson(paths[0], offset)
    if not cropped:
        return found
    told = (
        f"coordinates begin at {offset[0]:g}, {offset[1]:g}, where QuPath crops the slide to; --origin slide if it was "
        "opened with --no-crop."
    )
    return Annotations(found.regions, (*found.remarks, told))


def _key(file: Path) -> str | None:
    """Returns the name before an annotation file's ending; None for other files."""
    lower = file.name.lower()
    return next((file.name[: -len(ending)] for ending in ENDINGS if lower.endswith(ending)), None)


def shown(paths: Iterable[Path], most: int = 3) -> str:
    """Lists the names of the first files."""
    names = [path.name for path in paths]
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
