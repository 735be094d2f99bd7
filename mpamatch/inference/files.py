"""Prediction for image files and folders: masks, overlays and a table of areas."""

import csv
import os
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from torch import Tensor

from mpamatch.ahead import ahead
from mpamatch.console import new_bar, text_column
from mpamatch.errors import InputError
from mpamatch.files import replacing
from mpamatch.images import (
    IMAGE_SUFFIXES,
    MOST_OBJECTS,
    Facts,
    overlay,
    read_image_and_facts,
    read_mask,
    write_png,
)
from mpamatch.inference.objects import INSIDE, SMALLEST, label_and_objects
from mpamatch.inference.record import Record, check_place, made_with
from mpamatch.inference.segmenter import Segmenter
from mpamatch.names import check_link, passed_over, visible
from mpamatch.slides.reader import SLIDE_SUFFIXES, is_slide

READERS = 2  # threads; decoding takes a quarter of the time that painting and writing takes
MOST_WRITERS = 8


@dataclass(frozen=True)
class Areas:
    """How many pixels of an image or of a slide's mask each class covers.

    Attributes:
        file: the image.
        name: of its mask and overlay, without the suffix; of a slide the folder.
        width: of the label, in pixels.
        height: of the label, in pixels.
        pixels: (C,).
        microns_per_pixel: of the label; None if it is not known.
        tissue_pixels: (C,) of a slide those in tissue, which the shares are of; None for an image.
    """

    file: Path
    name: str
    width: int
    height: int
    pixels: tuple[int, ...]
    microns_per_pixel: float | None = None
    tissue_pixels: tuple[int, ...] | None = None

    @property
    def shares(self) -> list[float]:
        """(C,) the share of each class, 0 to 1, in the image or in the tissue of the slide; 0 without tissue."""
        counted = self.pixels if self.tissue_pixels is None else self.tissue_pixels
        whole = self.width * self.height if self.tissue_pixels is None else sum(self.tissue_pixels)
        return [count / whole if whole else 0.0 for count in counted]


def alone(value: Any) -> list[Any]:
    """Gathers the values of all ranks, of which there is only this one."""
    return [value]


def predict_files(
    segmenter: Segmenter,
    inputs: Sequence[Path],
    out: Path,
    *,
    rank: int = 0,
    ranks: int = 1,
    gather: Callable[[Any], list[Any]] = alone,
    skip: Callable[[InputError], None] | None = None,
    show: Callable[[list[Areas]], None] | None = None,
    tell: Callable[[list[tuple[Path, Facts]]], None] | None = None,
) -> list[Areas]:
    """Predicts the label of every image and writes masks, overlays and a table of areas:

    - `masks/<name>.png`: the label, uint8 class index, at the image's own size;
    - `overlays/<name>.png`: the image with the classes painted over it;
    - `objects/<name>.png`: uint16 number of the object at each pixel, 0 in the background, if the network has learned
      the border of objects;
    - `areas.csv`: one row per image with file, name, width, height, and for each class its pixels, its share (0 to 1)
      and, if the segmenter knows the microns per pixel, its mm²;
    - `images.json`: what they were made with.

    `<name>` is the file's stem; if two images share one, the later is called `<folder>-<stem>`. Two names of one file
    are two images.

    Threads read the images ahead of the model and write what it found, up to eight masks and overlays at a time. The
    first image that cannot be read ends the prediction: nothing is written for it and those after it, while masks and
    overlays of the images before it stay, and areas.csv lists them. If a result cannot be written, up to seven after it
    may be, which areas.csv does not list. The same call then goes on: images that have mask and overlay are done.

    Of several ranks each predicts every ranks-th image, and an image that cannot be read ends the work of its rank
    alone; rank 0 writes areas.csv.

    Args:
        segmenter: predicts.
        inputs: image files, and folders whose images at the top level are taken (png, jpg, tif, …: IMAGE_SUFFIXES).
        out: a new or empty folder, or that of a prediction with the same model and settings.
        rank: which of the `ranks` this process is.
        ranks: how many processes share the images.
        gather: returns the values of all ranks, by rank.
        skip: is called for each image that cannot be read, in the end and on every rank, and the rest goes on; None:
            the first one ends the prediction.
        show: is called with what will be returned before areas.csv is written, which a full disk may refuse.
        tell: is called in the end, on every rank, with the images that were read now and what was done to them.

    Returns:
        The areas of all images, those of other ranks too, in the order of the inputs.

    Raises:
        InputError: there is no input or one is missing, a folder holds no image, a file is no readable image, or `out`
            is a file, or holds something else; on every rank, whichever had it.
    """
    files = list_images(inputs)
    check_place(out)
    separation = {"objects": [INSIDE, SMALLEST]} if segmenter.tells_objects_apart else {}
    record = Record(out / "images.json", made_with(segmenter, separation), files)
    gather(None)  # no rank writes before all have looked
    share, mine, skipped = record.named[rank::ranks], list[Areas](), list[InputError]()
    facts: list[tuple[Path, Facts]] = []
    problem: BaseException | None = None
    try:
        with _progress(shown=rank == 0) as progress:
            found = predict_each(segmenter, share, out, record, None if skip is None else skipped.append, facts.append)
            mine.extend(progress.track(found, total=len(share), description="predict"))
    except (Exception, KeyboardInterrupt) as error:
        problem = error
    met = gather((mine, skipped, problem if isinstance(problem, InputError) else None))
    read = [one for each in gather(facts) for one in each]
    if tell is not None:
        tell(read)
    order = {file: at for at, file in enumerate(files)}
    everywhere = sorted((one for found, _, _ in met for one in found), key=lambda one: order[one.file])
    if show is not None and all(found is None for found in (problem, *(theirs for _, _, theirs in met))):
        show(everywhere)
    if everywhere and rank == 0:
        write_areas(out / "areas.csv", everywhere, segmenter.class_names)
    for one in (problem, *(theirs for _, _, theirs in met)):
        if one is not None:
            raise one
    for unread in (one for _, those, _ in met for one in those):
        assert skip is not None
        skip(unread)
    return everywhere


def predict_each(
    segmenter: Segmenter,
    files: Sequence[tuple[Path, str]],
    out: Path,
    record: Record,
    skip: Callable[[InputError], None] | None = None,
    tell: Callable[[tuple[Path, Facts]], None] | None = None,
) -> Iterator[Areas]:
    """Predicts each (file, name), writes its results under that name, and yields the areas, those done before first.

    `tell` is called with each file that was read and what was done to it.

    Raises InputError at the first file that cannot be read, once all before it are done, unless `skip` takes it.
    """
    apart = segmenter.tells_objects_apart
    done = [one for one in files if all(path.is_file() for path in _results(out, one[1], apart))]
    yield from ahead(lambda one: _areas_of(*one, segmenter, out), done, threads=READERS)
    todo = [one for one in files if one not in set(done)]
    unreadable: list[InputError] = []
    images: deque[tuple[Path, str, np.ndarray]] = deque()  # read, and not yet written

    def read() -> Iterator[np.ndarray]:
        found = ahead(_image_or_error, [file for file, _ in todo], threads=READERS)
        for (file, name), image in zip(todo, found, strict=True):
            if not isinstance(image, InputError):
                pixels, facts = image
                if tell is not None:
                    tell((file, facts))
                images.append((file, name, pixels))
                yield pixels
            elif skip is None:  # what was read before it is still to be predicted
                told = f"{str(image).rstrip('.')}; --on-error skip goes on without it."
                unreadable.append(InputError(told))
                return
            else:
                skip(image)

    def write(found: tuple[tuple[Path, str, np.ndarray], tuple[Tensor, ...]]) -> Areas:
        (file, name, image), predicted = found
        if apart:
            label, objects = label_and_objects(predicted[0], predicted[1], segmenter.settings.scale)
        else:
            label, objects = predicted[0].cpu().numpy(), None
        record.write()
        return _write(file, name, image, label, objects, segmenter, out)

    predicted = segmenter.with_borders(read()) if apart else ((label,) for label in segmenter.labels(read()))
    results = ((images.popleft(), one) for one in predicted)
    yield from ahead(write, results, threads=min(MOST_WRITERS, os.cpu_count() or 1))
    if unreadable:
        raise unreadable[0]


def _image_or_error(file: Path) -> tuple[np.ndarray, Facts] | InputError:
    try:
        check_link(file)
        return read_image_and_facts(file)
    except InputError as error:
        return error


def _results(out: Path, name: str, objects: bool) -> tuple[Path, ...]:
    """The files of an image, in the order in which they are written."""
    folders = ("masks", "overlays", "objects") if objects else ("masks", "overlays")
    return tuple(out / folder / f"{name}.png" for folder in folders)


def _write(
    file: Path,
    name: str,
    image: np.ndarray,  # (H, W, 3) uint8
    label: np.ndarray,  # (H, W) uint8
    objects: np.ndarray | None,  # (H, W) int32
    segmenter: Segmenter,
    out: Path,
) -> Areas:
    """Writes the results of an image and counts its pixels by class.

    Raises InputError if it has more objects than 16 bits number.
    """
    mask, painted, *numbered = _results(out, name, objects is not None)
    if objects is not None and objects.max() > MOST_OBJECTS:
        raise InputError(
            f"{file}: has {objects.max()} objects, and a file of objects holds {MOST_OBJECTS}: cut the image into "
            "smaller ones."
        )
    write_png(mask, label)
    write_png(painted, overlay(image, label, segmenter.settings.colours))
    if objects is not None:
        write_png(numbered[0], objects.astype(np.uint16))
    return _counted(file, name, label, segmenter)


def _areas_of(file: Path, name: str, segmenter: Segmenter, out: Path) -> Areas:
    """Counts the pixels of an image that was predicted before, by its mask."""
    return _counted(file, name, read_mask(_results(out, name, objects=False)[0]).astype(np.uint8), segmenter)


def _counted(file: Path, name: str, label: np.ndarray, segmenter: Segmenter) -> Areas:
    pixels = np.bincount(label.ravel(), minlength=len(segmenter.class_names))
    microns = segmenter.settings.microns_per_pixel
    return Areas(file, name, label.shape[1], label.shape[0], tuple(pixels.tolist()), microns)


@dataclass(frozen=True)
class Inputs:
    """What a command is to predict.

    Attributes:
        images: files of plain images, each name once.
        slides: files of whole slides.
        remarks: which files in folders were passed over by their names, in sentences.
    """

    images: list[Path]
    slides: list[Path]
    remarks: tuple[str, ...]


def list_images(inputs: Sequence[Path], suffixes: Collection[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Lists the image files among `inputs` and in their folders, these in order of name.

    Each name is listed once, and two names of one file are two; links that lead nowhere are listed too.

    Args:
        inputs: files, whatever their names, and folders, of which hidden files are left out.
        suffixes: of the files that are taken from folders.

    Raises InputError for no input, one that does not exist, and a folder without images at its top level.
    """
    if not inputs:
        raise InputError("nothing to predict: name at least one image file or folder.")
    found: dict[str, Path] = {}
    for given in inputs:
        for file in _images_of(given, suffixes):
            found.setdefault(os.path.abspath(file), file)  # noqa: PTH100  # a/../b is b, and a link is not its target
    return list(found.values())


def list_inputs(inputs: Sequence[Path]) -> Inputs:
    """Lists the images and the slides among `inputs` and in their folders, as `list_images` does.

    A DICOM slide is one of its files, and must be named: a folder of it would be as many slides as files.
    """
    suffixes = IMAGE_SUFFIXES | (SLIDE_SUFFIXES - {".dcm"})
    files = list_images(inputs, suffixes)
    slides = [file for file in files if is_slide(file)]
    images = [file for file in files if file not in set(slides)]
    folders = dict.fromkeys(given for given in inputs if given.is_dir())
    return Inputs(images, slides, tuple(one for folder in folders for one in passed_over(folder, suffixes)))


def _images_of(given: Path, suffixes: Collection[str]) -> list[Path]:
    if given.is_file() or (given.is_symlink() and not given.is_dir()):
        return [given]
    if not given.is_dir():
        raise InputError(f"{given}: no such file or folder.")
    images = [file for file in visible(given) if file.suffix.lower() in suffixes and not file.is_dir()]
    if not images:
        raise InputError(f"{given}: no image at its top level; images end in {', '.join(sorted(suffixes))}.")
    return images


def write_areas(path: Path, areas: Sequence[Areas], class_names: Sequence[str]) -> None:
    """Writes areas.csv, described at `predict_files`, whole or not at all.

    If there are slides among them, two more columns tell the µm per pixel of each mask and the mm² of tissue.
    """
    of_slides = any(one.tissue_pixels is not None for one in areas)
    quantities = ["pixels", "share"] + (["mm2"] if any(one.microns_per_pixel for one in areas) else [])
    header = ["file", "name", "width", "height", *(["microns per pixel", "tissue mm2"] if of_slides else [])]
    header += [f"{name} {quantity}" for name in class_names for quantity in quantities]
    with (
        replacing(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as stream,
    ):
        writer = csv.writer(stream)
        writer.writerow(header)
        for one in areas:
            microns, cells = one.microns_per_pixel, list[object]([one.file, one.name, one.width, one.height])
            if of_slides:
                tissue = None if one.tissue_pixels is None else sum(one.tissue_pixels)
                cells += ["" if microns is None else f"{microns:.6g}", _mm2(tissue, microns)]
            for pixels, share in zip(one.pixels, one.shares, strict=True):
                cells += [pixels, f"{share:.6f}", _mm2(pixels, microns)][: len(quantities)]
            writer.writerow(cells)


def _mm2(pixels: int | None, microns: float | None) -> str:
    return "" if pixels is None or microns is None else f"{square_millimetres(pixels, microns):.6g}"


def square_millimetres(pixels: int, microns_per_pixel: float) -> float:
    """Computes the area, in mm², of so many pixels."""
    return pixels * (microns_per_pixel / 1000) ** 2


def _progress(shown: bool) -> Progress:
    return new_bar(text_column(), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), shown=shown)
