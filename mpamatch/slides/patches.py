"""Which windows of a slide become patches: those with a label, and those of tissue that nobody annotated."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import shapely

from mpamatch.errors import InputError
from mpamatch.slides.annotations.labels import SlideLabel
from mpamatch.slides.annotations.raster import covered
from mpamatch.slides.annotations.read import find_annotations, read_annotations
from mpamatch.slides.reader import Box, Slide, View
from mpamatch.slides.tissue import Tissue, all_tissue, find_tissue

LEAST_TISSUE = 0.5  # of an unlabelled window


def windows(view: View, side: int, stride: int) -> Iterator[Box]:
    """Yields squares of `side` pixels of a view, row by row, `stride` apart from the slide's origin on.

    The last of a row and the last row end at the slide's rim. A slide that is smaller than a square has one.
    """
    across, down = (_starts(length, side, stride) for length in view.size)
    return (Box(x, y, side, side) for y in down for x in across)


def labelled_windows(view: View, label: SlideLabel, tissue: Tissue | None, side: int, stride: int) -> list[Box]:
    """Lists the windows that touch an annotation, in pixels of the view.

    If everything that is not painted is background, all windows with tissue are labelled too.
    """
    found = [box for box, touched in _with_annotated(view, label, side, stride) if touched]
    if not label.everywhere or tissue is None:
        return found
    taken = set(found)
    return [box for box in windows(view, side, stride) if box in taken or tissue.touches(level_box(view, box))]


def unlabelled_windows(view: View, label: SlideLabel | None, tissue: Tissue, side: int) -> Iterator[Box]:
    """Yields the windows that are tissue by half and touch no annotation, beside each other, in pixels of the view."""
    if label is None:
        boxes = windows(view, side, side)
    elif label.everywhere:
        return
    else:
        boxes = (box for box, touched in _with_annotated(view, label, side, side) if not touched)
    for box in boxes:
        if tissue.share(level_box(view, box)) >= LEAST_TISSUE:
            yield box


def level_box(view: View, box: Box) -> Box:
    """Converts a box of a view to pixels of level 0, as large as touches it."""
    left, top = int(np.floor(box.x * view.scale)), int(np.floor(box.y * view.scale))
    right = int(np.ceil((box.x + box.width) * view.scale))
    bottom = int(np.ceil((box.y + box.height) * view.scale))
    return Box(left, top, right - left, bottom - top)


def draw_of(seed: int, name: str, box: Box) -> bytes:
    """Computes a window's place in a random order that depends on the seed, the slide's name and the window alone."""
    return hashlib.sha256(f"{seed}/{box.x}/{box.y}/{name}".encode(errors="surrogateescape")).digest()


def chosen_tissue(slide: Slide, name: str, how: str, origin: str = "qupath") -> Tissue:
    """Finds the tissue of a slide in the way that --tissue says.

    Args:
        slide: the slide.
        name: of the slide, by which its file is found in a folder.
        how: "auto", "all", or a GeoJSON file, or a folder of them, whose regions of any class are tissue.
        origin: as for `read_annotations`.

    Raises:
        InputError: the slide's µm per pixel are not known, or there is no such file or none for this slide.
    """
    if how == "auto":
        return find_tissue(slide)
    whole = all_tissue(slide)
    if how == "all":
        return whole
    place = Path(how)
    if not place.exists():
        raise InputError(f"--tissue {how}: must be auto, all, or a GeoJSON file or a folder of them.")
    paths = [place] if place.is_file() else find_annotations(place, {name: slide.path}).of_slide[name]
    found = read_annotations(paths, bounds=slide.bounds, origin=origin)
    geometry = shapely.union_all([region.geometry for region in found.regions])
    height, width = whole.mask.shape
    return Tissue(covered(geometry, Box(0, 0, width, height), whole.scale), whole.mpp, whole.scale)


def _starts(length: int, side: int, stride: int) -> list[int]:
    starts = list(range(0, max(length - side, 0) + 1, stride))
    if starts[-1] + side < length:
        starts.append(length - side)
    return starts


def _with_annotated(view: View, label: SlideLabel, side: int, stride: int) -> Iterator[tuple[Box, bool]]:
    """Yields every window, and whether it touches what is annotated."""
    boxes = list(windows(view, side, stride))
    return zip(boxes, label.touched(boxes, view.scale).tolist(), strict=True)
