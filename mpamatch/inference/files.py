"""Prediction for image files and folders: masks, overlays and a table of areas."""

import csv
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from mpamatch.ahead import ahead
from mpamatch.errors import InputError
from mpamatch.files import replacing
from mpamatch.images import IMAGE_SUFFIXES, overlay, read_image, write_png
from mpamatch.inference.segmenter import Segmenter

READERS = 2  # threads; decoding takes a quarter of the time that painting and writing takes
MOST_WRITERS = 8


@dataclass(frozen=True)
class Areas:
    """How many pixels of an image each class covers."""

    file: Path
    name: str  # of its mask and overlay, without the suffix
    width: int
    height: int
    pixels: tuple[int, ...]  # (C,)


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
) -> list[Areas]:
    """Predicts the label of every image and writes masks, overlays and a table of areas:

    - `masks/<name>.png`: the label, uint8 class index, at the image's own size;
    - `overlays/<name>.png`: the image with the classes painted over it;
    - `areas.csv`: one row per image with file, name, width, height, and for each class its pixels, its share (0 to 1)
      and, if the segmenter knows the microns per pixel, its mm².

    `<name>` is the file's stem; if two images share one, the later is called `<folder>-<stem>`.

    Threads read the images ahead of the model and write what it found, up to eight masks and overlays at a time. The
    first image that cannot be read ends the prediction: nothing is written for it and those after it, while masks and
    overlays of the images before it stay, and areas.csv lists them. If a result cannot be written, up to seven after it
    may be, which areas.csv does not list.

    Of several ranks each predicts every ranks-th image, and an image that cannot be read ends the work of its rank
    alone; rank 0 writes areas.csv.

    Args:
        segmenter: predicts.
        inputs: image files, and folders whose images at the top level are taken (.png, .jpg, .jpeg, .bmp, .tif, .tiff).
        out: a new or empty folder.
        rank: which of the `ranks` this process is.
        ranks: how many processes share the images.
        gather: returns the values of all ranks, by rank.

    Returns:
        The areas of all images, those of other ranks too, in the order of the inputs.

    Raises:
        InputError: there is no input or one is missing, a folder holds no image, a file is no readable image, or `out`
            is a file or not empty; on every rank, whichever had it.
    """
    named = named_apart(list_images(inputs))
    check_empty(out)
    gather(None)  # no rank writes before all have looked
    share, mine = named[rank::ranks], list[Areas]()
    problem: BaseException | None = None
    try:
        with _progress(shown=rank == 0) as progress:
            found = predict_each(segmenter, share, out)
            mine.extend(progress.track(found, total=len(share), description="predict"))
    except (Exception, KeyboardInterrupt) as error:
        problem = error
    met = gather((mine, problem if isinstance(problem, InputError) else None))
    everywhere = in_order([found for found, _ in met])
    if everywhere and rank == 0:
        write_areas(out / "areas.csv", everywhere, segmenter.class_names, segmenter.settings.microns_per_pixel)
    for one in (problem, *(theirs for _, theirs in met)):
        if one is not None:
            raise one
    return everywhere


def in_order(by_rank: Sequence[Sequence[Areas]]) -> list[Areas]:
    """Merges the areas of all ranks, of which each had every len(by_rank)-th image, into the order of the images."""
    placed = [(rank + len(by_rank) * at, one) for rank, mine in enumerate(by_rank) for at, one in enumerate(mine)]
    return [one for _, one in sorted(placed, key=lambda pair: pair[0])]


def predict_each(segmenter: Segmenter, files: Sequence[tuple[Path, str]], out: Path) -> Iterator[Areas]:
    """Predicts each (file, name), writes mask and overlay under that name, and yields the areas, in order.

    Raises InputError at the first file that cannot be read, once all before it are done.
    """
    unreadable: list[InputError] = []
    images: deque[np.ndarray] = deque()  # read, and not yet written

    def read() -> Iterator[np.ndarray]:
        try:
            for image in ahead(read_image, [file for file, _ in files], threads=READERS):
                images.append(image)
                yield image
        except InputError as error:  # what was read before it is still to be predicted
            unreadable.append(error)

    def write(found: tuple[tuple[Path, str], np.ndarray, Tensor]) -> Areas:
        (file, name), image, label = found
        return _write(file, name, image, label.cpu().numpy(), segmenter, out)

    labels = segmenter.labels(read())
    results = ((file, images.popleft(), label) for file, label in zip(files, labels, strict=False))
    yield from ahead(write, results, threads=min(MOST_WRITERS, os.cpu_count() or 1))
    if unreadable:
        raise unreadable[0]


def _write(
    file: Path,
    name: str,
    image: np.ndarray,  # (H, W, 3) uint8
    label: np.ndarray,  # (H, W) uint8
    segmenter: Segmenter,
    out: Path,
) -> Areas:
    """Writes mask and overlay of an image and counts its pixels by class."""
    write_png(out / "masks" / f"{name}.png", label)
    write_png(out / "overlays" / f"{name}.png", overlay(image, label, segmenter.settings.colours))
    pixels = np.bincount(label.ravel(), minlength=len(segmenter.class_names))
    return Areas(file, name, image.shape[1], image.shape[0], tuple(pixels.tolist()))


def list_images(inputs: Sequence[Path]) -> list[Path]:
    """Lists the image files among `inputs` and in their folders, these in order of name; each file once.

    Raises InputError for no input, one that does not exist, and a folder without images at its top level.
    """
    if not inputs:
        raise InputError("nothing to predict: name at least one image file or folder.")
    found: dict[Path, Path] = {}
    for given in inputs:
        for file in _images_of(given):
            found.setdefault(file.resolve(), file)
    return list(found.values())


def _images_of(given: Path) -> list[Path]:
    if given.is_file():
        return [given]
    if not given.is_dir():
        raise InputError(f"{given}: no such file or folder.")
    images = sorted(file for file in given.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
    if not images:
        raise InputError(f"{given}: no image at its top level; images end in {', '.join(sorted(IMAGE_SUFFIXES))}.")
    return images


def check_empty(out: Path) -> None:
    """Raises InputError if `out` is a file or not empty: results of two runs are never mixed."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; name a new or empty folder for the results.")
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out}: is not empty; name a new or empty folder for the results.")


def named_apart(files: Sequence[Path]) -> list[tuple[Path, str]]:
    """Gives each file a name of its own; names differ in more than case, which some file systems ignore."""
    taken: set[str] = set()
    named = []
    for file in files:
        base = f"{file.resolve().parent.name}-{file.stem}"
        wishes = [file.stem, base, *(f"{base}-{number}" for number in range(2, len(files) + 2))]
        name = next(wish for wish in wishes if wish.casefold() not in taken)
        taken.add(name.casefold())
        named.append((file, name))
    return named


def write_areas(
    path: Path, areas: Sequence[Areas], class_names: Sequence[str], microns_per_pixel: float | None
) -> None:
    """Writes areas.csv, described at `predict_files`, whole or not at all."""
    quantities = ["pixels", "share"] + (["mm2"] if microns_per_pixel else [])
    header = ["file", "name", "width", "height"]
    header += [f"{name} {quantity}" for name in class_names for quantity in quantities]
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        for one in areas:
            cells: list[object] = [one.file, one.name, one.width, one.height]
            for pixels in one.pixels:
                cells += [pixels, f"{pixels / (one.width * one.height):.6f}"]
                if microns_per_pixel:
                    cells.append(f"{square_millimetres(pixels, microns_per_pixel):.6g}")
            writer.writerow(cells)


def square_millimetres(pixels: int, microns_per_pixel: float) -> float:
    """Computes the area, in mm², of so many pixels."""
    return pixels * (microns_per_pixel / 1000) ** 2


def _progress(shown: bool) -> Progress:
    # On stderr, so that what a command prints can be piped.
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not shown)
