"""Suggestions on slides: which windows of tissue to annotate next, as rectangles with the prediction inside.

A window is as large as the network sees, on the grid from the slide's origin that `prepare slides` cuts patches on, so
a region that comes back annotated is one patch.
"""

import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import shapely

from mpamatch.ahead import ahead
from mpamatch.console import with_progress
from mpamatch.errors import InputError
from mpamatch.files import replacing
from mpamatch.images import Colour
from mpamatch.inference.segmenter import Segmenter
from mpamatch.inference.suggest.images import SHEET, TABLE
from mpamatch.inference.suggest.rank import Key, Ranked, Wish, looks_with_images, rank
from mpamatch.inference.suggest.sheet import Sheet
from mpamatch.inference.suggest.table import Row, write_table
from mpamatch.inference.suggest.uncertainty import Look, Pixels
from mpamatch.names import check_link, fitting
from mpamatch.slides.annotations.labels import Meaning, SlideLabel
from mpamatch.slides.annotations.read import read_annotations
from mpamatch.slides.geojson import ANNOTATION, NAMESPACE, PRECISION, Place, features, place_of
from mpamatch.slides.outlines import Regions, outlines
from mpamatch.slides.patches import chosen_tissue, labelled_windows, level_box, unlabelled_windows
from mpamatch.slides.reader import Slide, View, open_slide
from mpamatch.slides.sources.base import Box

READERS = 2  # threads that read ahead of the model
REGION = "Region*"  # QuPath's class of what is annotated exhaustively; `prepare slides` takes it so
REGION_COLOUR: Colour = (0, 0, 180)  # QuPath's own
ENDING = ".geojson"


@dataclass(frozen=True)
class ListedSlide:
    """A slide that could be annotated further.

    Attributes:
        name: without the file's ending.
        path: its file.
        patient: whose it is.
        annotations: files of what is annotated already; empty if there are none.
    """

    name: str
    path: Path
    patient: str
    annotations: Sequence[Path] = ()


@dataclass(frozen=True)
class SlideSet:
    """Slides to choose regions of.

    Attributes:
        slides: each with its own name.
        microns: µm per pixel that the network sees.
        slide_mpp: µm per pixel of slides whose files name none; None if all do.
        tissue: where to look: auto, all, or GeoJSON, a file or a folder.
        origin: where coordinates begin, of what is read and written: qupath or slide.
        simplify: tolerance of the outlines in pixels of the network; 0 keeps every corner.
        remarks: are added while slides are read, in sentences.
        skip: is called for each slide that cannot be read, and the rest goes on; None: the first one ends the ranking.
    """

    slides: Sequence[ListedSlide]
    microns: float
    slide_mpp: float | None = None
    tissue: str = "auto"
    origin: str = "qupath"
    simplify: float = 1.0
    remarks: list[str] = field(default_factory=list)
    skip: Callable[[InputError], None] | None = None

    @contextmanager
    def opened(self, one: ListedSlide) -> Iterator[tuple[Slide, View]]:
        """Opens a slide at the network's µm per pixel. Raises InputError if it cannot be read, or names no size."""
        check_link(one.path)
        with open_slide(one.path, mpp=self.slide_mpp) as slide:
            yield slide, slide.at(self.microns)


def rank_regions(segmenter: Segmenter, given: SlideSet, wish: Wish) -> Ranked:
    """Looks at all windows of tissue that touch no annotation, slide by slide, and chooses.

    The keys of the choices are name of the slide, top and left in pixels of the view. Windows with a tile that cannot
    be decoded are left out.

    Raises InputError if a slide, its annotations or its tissue cannot be read, or as `rank` does.
    """
    # A window is given at the size that the network sees, whatever the scale of the run's images.
    at_window = Segmenter(segmenter.model, replace(segmenter.settings, scale=1.0))
    side = segmenter.settings.window
    meaning = Meaning(segmenter.class_names, segmenter.settings.colours)
    readable = [one for one in given.slides if _is_readable(one, given, meaning)]

    def candidates() -> Iterator[tuple[Key, str, Pixels]]:
        for one in readable:
            with given.opened(one) as (slide, view):
                label = _label(slide, one, given, meaning)
                tissue = chosen_tissue(slide, one.name, given.tissue, given.origin)
                boxes = _apart(unlabelled_windows(view, label, tissue, side), side)
                for box, pixels in with_progress(_read(view, boxes), one.name, len(boxes)):
                    if not slide.is_damaged(level_box(view, box)):
                        yield (one.name, box.y, box.x), one.patient, pixels
                given.remarks.extend(_remarks(one, slide, boxes, label))

    def labelled() -> Iterator[Pixels]:
        for one in readable:
            if one.annotations:
                with given.opened(one) as (slide, view):
                    label = _label(slide, one, given, meaning)
                    assert label is not None
                    for _, pixels in _read(view, labelled_windows(view, label, None, side, side)):
                        yield pixels

    return rank(at_window, candidates(), labelled(), wish)


def write_regions(folder: Path, segmenter: Segmenter, given: SlideSet, ranked: Ranked, wish: Wish) -> list[Row]:
    """Writes into a folder that is there:

    - `suggestions.csv`: rank, slide, patient, score and distance of each, and where it lies in pixels of level 0;
    - `sheet.png`: of the first 60 the region, the prediction and where the model is unsure;
    - `NAME.geojson` for each slide that has any: a rectangle of class Region* for each, and the predicted regions in
      it as annotations of their classes, to be corrected in QuPath.

    Returns:
        The rows of the table.

    Raises:
        InputError: a slide cannot be read any more, or a file cannot be written.
    """
    settings = segmenter.settings
    at_window = Segmenter(segmenter.model, replace(settings, scale=1.0))
    by_name = {one.name: one for one in given.slides}
    boxes = {c.rank: Box(c.candidate.key[2], c.candidate.key[1], settings.window, settings.window)
             for c in ranked.choices}  # fmt: skip
    seen: dict[int, tuple[Row, Pixels, Look]] = {}
    for name in sorted({choice.candidate.key[0] for choice in ranked.choices}):
        mine = [choice for choice in ranked.choices if choice.candidate.key[0] == name]
        with given.opened(by_name[name]) as (slide, view):
            place = place_of(slide, view.scale, view.mpp, given.origin)
            images = (view.read(*_sides(boxes[choice.rank])) for choice in mine)
            texts = list[str]()
            for choice, (image, look) in zip(mine, looks_with_images(at_window, images, wish), strict=True):
                inside = _inside(view, boxes[choice.rank])
                candidate = choice.candidate
                row = Row(choice.rank, name, candidate.group, candidate.score, choice.distance, level_box(view, inside))
                seen[choice.rank] = row, image, look
                texts += region_features(look, inside, segmenter, place, row, given.simplify)
            write_geojson(folder / f"{fitting(name, ENDING)}{ENDING}", texts, place)
    sheet = Sheet(settings.class_names, settings.colours)
    rows = []
    for _, (row, image, look) in sorted(seen.items()):
        assert row.box is not None
        sheet.add(row.rank, f"{row.name} at {row.box.x}, {row.box.y}", image, look)
        rows.append(row)
    sheet.write(folder / SHEET)
    write_table(folder / TABLE, rows)
    return rows


def region_features(
    look: Look, box: Box, segmenter: Segmenter, place: Place, row: Row, tolerance: float
) -> Iterator[str]:
    """Yields the text of a region's rectangle, then that of the predicted regions in it, as features for QuPath.

    Args:
        look: at the window that begins where `box` does.
        box: the part of the window that lies on the slide, in pixels of the view.
        segmenter: has names and colours of the classes.
        place: of the view on the slide.
        row: rank and score, which the rectangle bears.
        tolerance: of the outlines, in pixels of the view.
    """
    corners = (box.x, box.y, box.x + box.width, box.y + box.height)
    shape = shapely.set_precision(place.coordinates(shapely.box(*corners)), PRECISION)
    about = {
        "objectType": ANNOTATION,
        "name": f"suggestion {row.rank}",
        "classification": {"name": REGION, "color": list(REGION_COLOUR)},
        "isLocked": False,
        "measurements": {"Rank": row.rank, "Score": round(row.score, 6)},
    }
    own = uuid.uuid5(NAMESPACE, f"{REGION}:{shapely.to_wkb(shape).hex()}")
    yield _feature(str(own), json.loads(shapely.to_geojson(shape)), about)
    found = outlines(look.label[: box.height, : box.width], tolerance=tolerance)
    moved = shapely.transform(found.polygons, lambda xy: xy + (box.x, box.y))
    regions = Regions(moved, found.classes, found.pixels, found.confidence)
    for _, text in features(regions, segmenter.class_names, segmenter.settings.colours, place, ANNOTATION):
        one = json.loads(text)
        yield _feature(one["id"], one["geometry"], {**one["properties"], "isLocked": False})


def write_geojson(path: Path, texts: Sequence[str], place: Place) -> None:
    """Writes features as a FeatureCollection. Raises WriteError if it cannot be written."""
    with replacing(path) as temporary:
        start = f'{{"type": "FeatureCollection", "mpamatch": {json.dumps(place.record())}, "features": [\n'
        temporary.write_text(start + ",\n".join(texts) + "\n]}\n", encoding="utf-8")


def _feature(own: str, geometry: dict[str, Any], properties: dict[str, Any]) -> str:
    whole = {"type": "Feature", "id": own, "geometry": geometry, "properties": properties}
    return json.dumps(whole, ensure_ascii=False)


def _label(slide: Slide, one: ListedSlide, given: SlideSet, meaning: Meaning) -> SlideLabel | None:
    """Reads what is annotated on a slide; None if nothing is."""
    if not one.annotations:
        return None
    return SlideLabel(read_annotations(one.annotations, bounds=slide.bounds, origin=given.origin).regions, meaning)


def _read(view: View, boxes: Sequence[Box]) -> Iterable[tuple[Box, Pixels]]:
    """Reads windows row by row, a few ahead of their use."""
    return zip(boxes, ahead(lambda box: view.read(*_sides(box)), boxes, threads=READERS), strict=True)


def _apart(boxes: Iterable[Box], side: int) -> list[Box]:
    """Leaves out the windows at the slide's right and lower rim that overlap those before them.

    Of two regions that overlap, QuPath would get some objects twice, and the annotator some tissue.
    """
    return [box for box in boxes if box.x % side == 0 and box.y % side == 0]


def _sides(box: Box) -> tuple[int, int, int, int]:
    return box.x, box.y, box.width, box.height


def _inside(view: View, box: Box) -> Box:
    """Returns the part of a window that lies on the slide: a slide may be smaller than a window."""
    width, height = view.size
    return Box(box.x, box.y, min(box.width, width - box.x), min(box.height, height - box.y))


def _is_readable(one: ListedSlide, given: SlideSet, meaning: Meaning) -> bool:
    """Opens a slide and reads its annotations and where to look. Raises InputError unless `skip` takes it."""
    try:
        with given.opened(one) as (slide, _):
            _label(slide, one, given, meaning)
            chosen_tissue(slide, one.name, given.tissue, given.origin)
    except InputError as error:
        if given.skip is None:
            raise
        given.skip(error)
        return False
    return True


def _remarks(one: ListedSlide, slide: Slide, boxes: Sequence[Box], label: SlideLabel | None) -> list[str]:
    """Says what the user should know of a slide."""
    said = [*slide.remarks]
    if not boxes:
        said.append("no window is tissue by half and free of annotations; --tissue all looks everywhere.")
    if slide.bad_tiles:
        said.append(f"{slide.bad_tiles} tiles cannot be decoded; windows with one of them are left out.")
    if label is not None and not label.is_exhaustive:
        said.append(
            f"its annotations have no {REGION}; once one of those suggested is beside them, nothing outside of it "
            f"counts any more: draw a {REGION} around them too."
        )
    return [f"{one.path}: {sentence}" for sentence in said]
