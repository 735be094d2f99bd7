"""Prediction on files and folders: masks, overlays and a table of areas."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mpamatch.errors import InputError
from mpamatch.files import replacing
from mpamatch.images import IMAGE_SUFFIXES, overlay, read_image, write_png
from mpamatch.inference.segmenter import Segmenter


@dataclass(frozen=True)
class Areas:
    """How much of one image each class covers."""

    file: Path
    name: str  # of its mask and overlay, without the suffix
    width: int
    height: int
    pixels: tuple[int, ...]  # (C,)


def predict_files(segmenter: Segmenter, inputs: Sequence[Path], out: Path) -> list[Areas]:
    """Predicts every input and writes three things into the new or empty folder `out`:

    - `masks/<name>.png`: the label, uint8 class index, at the image's own size;
    - `overlays/<name>.png`: the image with the classes painted over it;
    - `areas.csv`: one row per image with file, name, width, height, and for each class its pixels, its share
      (0..1) and, where the segmenter knows the microns per pixel, its mm².

    An input is an image file or a folder, of which the images at its top level are taken (.png, .jpg,
    .jpeg, .bmp, .tif, .tiff). `<name>` is the file's stem; where two inputs share one, the later is called
    `<folder>-<stem>`.

    Images are read one after the other. The first that cannot be read stops everything with its name;
    nothing is written for it, while masks and overlays of the images before it stay and areas.csv lists
    them.

    Raises InputError for no input, a missing one, a folder without images, a file that is no readable
    image, and an `out` that is a file or a folder with something in it.
    """
    files = list_images(inputs)
    check_empty(out)
    rows: list[Areas] = []
    try:
        with _progress() as progress:
            for file, name in progress.track(named_apart(files), description="predict"):
                image = read_image(file)
                label = segmenter.predict(image)
                painted = overlay(image, label, segmenter.colours)
                write_png(out / "masks" / f"{name}.png", label)
                write_png(out / "overlays" / f"{name}.png", painted)
                pixels = np.bincount(label.ravel(), minlength=len(segmenter.class_names))
                rows.append(Areas(file, name, image.shape[1], image.shape[0], tuple(pixels.tolist())))
    finally:
        if rows:
            write_areas(out / "areas.csv", rows, segmenter.class_names, segmenter.microns_per_pixel)
    return rows


def list_images(inputs: Sequence[Path]) -> list[Path]:
    """The image files that `inputs` mean, folders in order of name, each file once.

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
    """Raises InputError where `out` is a file or holds anything: results of two runs are never mixed."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; name a new or empty folder for the results.")
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out}: is not empty; name a new or empty folder for the results.")


def named_apart(files: Sequence[Path]) -> list[tuple[Path, str]]:
    """Each file with a name of its own, in more than capitals (some file systems ignore these)."""
    taken: set[str] = set()
    named = []
    for file in files:
        base = f"{file.resolve().parent.name}-{file.stem}"
        wishes = [file.stem, base, *(f"{base}-{number}" for number in range(2, len(files) + 2))]
        name = next(wish for wish in wishes if wish.casefold() not in taken)
        taken.add(name.casefold())
        named.append((file, name))
    return named


def write_areas(path: Path, rows: Sequence[Areas], class_names: Sequence[str], microns_per_pixel: float | None) -> None:
    """Writes the table described at `predict_files`, whole or not at all."""
    quantities = ["pixels", "share"] + (["mm2"] if microns_per_pixel else [])
    header = ["file", "name", "width", "height"]
    header += [f"{name} {quantity}" for name in class_names for quantity in quantities]
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        for row in rows:
            cells: list[object] = [row.file, row.name, row.width, row.height]
            for pixels in row.pixels:
                cells += [pixels, f"{pixels / (row.width * row.height):.6f}"]
                if microns_per_pixel:
                    cells.append(f"{square_millimetres(pixels, microns_per_pixel):.6g}")
            writer.writerow(cells)


def square_millimetres(pixels: int, microns_per_pixel: float) -> float:
    """The area of so many pixels."""
    return pixels * (microns_per_pixel / 1000) ** 2


def _progress() -> Progress:
    # On stderr, so that what a command prints can be piped.
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))
