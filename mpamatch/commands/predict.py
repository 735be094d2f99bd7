"""`mpamatch predict RUN INPUT…`: masks, overlays and areas for images."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.table import Table

from mpamatch import ranks
from mpamatch.console import new_console, say
from mpamatch.inference.checkpoint import load_segmenter
from mpamatch.inference.files import Areas, check_empty, list_images, predict_files, square_millimetres
from mpamatch.inference.segmenter import Segmenter


def run(arguments: argparse.Namespace) -> int:
    """Predicts `arguments.inputs` with the run `arguments.run` into `arguments.out`; returns 0.

    `arguments.device` is auto, cpu or cuda; `arguments.overlap` the share of a side that windows have in common, None
    for that of the run. Raises InputError if the run, an input or the output folder cannot be used.
    """
    inputs = [Path(given) for given in arguments.inputs]
    out = Path(arguments.out)
    list_images(inputs)  # a mistyped path is told before the seconds that loading a model takes
    check_empty(out)
    if ranks.started() > 1:
        ranks.join(arguments.device, patience=ranks.LONG)
    segmenter = load_segmenter(Path(arguments.run), arguments.device)
    if arguments.overlap is not None:
        segmenter = Segmenter(segmenter.model, replace(segmenter.settings, overlap=arguments.overlap))
    areas = predict_files(segmenter, inputs, out, rank=ranks.rank(), ranks=ranks.size(), gather=ranks.gather)
    console = new_console(quiet=ranks.rank() > 0)
    console.print(summary(areas, segmenter))
    say(console, f"masks, overlays and areas.csv are in {out}")
    return 0


def summary(areas: Sequence[Areas], segmenter: Segmenter) -> Table:
    """Builds a table of all images together: by class pixels, share and, if the size of a pixel is known, mm²."""
    microns = segmenter.settings.microns_per_pixel
    total = sum(one.width * one.height for one in areas)
    table = Table(title=f"{len(areas)} image{'s' if len(areas) != 1 else ''}")
    table.add_column("class")
    for heading in ["pixels", "share", *(["mm²"] if microns else [])]:
        table.add_column(heading, justify="right")
    for index, name in enumerate(segmenter.class_names):
        pixels = sum(one.pixels[index] for one in areas)
        cells = [name, f"{pixels:,}", f"{pixels / total:.1%}"]
        table.add_row(*cells, *([f"{square_millimetres(pixels, microns):.4g}"] if microns else []))
    return table
