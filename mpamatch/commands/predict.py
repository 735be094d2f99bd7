"""`mpamatch predict RUN INPUT…`: masks, overlays and areas for images, and masks and regions for whole slides."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from mpamatch import ranks
from mpamatch.console import new_console, say
from mpamatch.data.image_facts import Seen, remarks_on
from mpamatch.errors import InputError
from mpamatch.images import Facts
from mpamatch.inference.checkpoint import load_segmenter
from mpamatch.inference.files import Areas, list_inputs, predict_files, square_millimetres
from mpamatch.inference.progress import Shown
from mpamatch.inference.record import check_place
from mpamatch.inference.segmenter import Segmenter
from mpamatch.names import check_link
from mpamatch.slides.shards import Shard, shard_of
from mpamatch.slides.sources.base import library

if TYPE_CHECKING:
    from mpamatch.inference.slides import SlideOptions


def run(arguments: argparse.Namespace) -> int:
    """Predicts `arguments.inputs` with the run `arguments.run` into `arguments.out`.

    Returns 0, or 1 if some of them could not be predicted (on_error skip), or parts of slides could not be read.

    Raises InputError if the run, an option or the output folder cannot be used, or an input with on_error stop.
    """
    out = Path(arguments.out)
    inputs = list_inputs([Path(given) for given in arguments.inputs])  # before the seconds that a model takes
    images, slides = inputs.images, inputs.slides
    options, shard = _options(arguments, slides), _shard(arguments.shard, images)
    skips = (arguments.on_error or ("skip" if slides else "stop")) == "skip"
    for file in () if skips else (*images, *slides):
        check_link(file)
    check_place(out)
    if ranks.started() > 1:
        ranks.join(arguments.device, patience=ranks.LONG)
    segmenter = load_segmenter(Path(arguments.run), arguments.device).with_overlap(arguments.overlap)
    console, problems = new_console(quiet=ranks.rank() > 0), list[InputError]()
    skip = problems.append if skips else None
    areas, facts = list[Areas](), list[tuple[Path, Facts]]()
    show = None if slides else lambda found: console.print(summary(found, segmenter))
    if images:
        areas += predict_files(
            segmenter,
            images,
            out,
            rank=ranks.rank(),
            ranks=ranks.size(),
            gather=ranks.gather,
            skip=skip,
            show=show,
            tell=facts.extend,
        )
    remarks = [*inputs.remarks, *remarks_on([Seen(*one) for one in facts], "mask and overlay are turned too")]
    if slides and segmenter.tells_objects_apart:
        remarks.append(
            "regions of slides are those of classes: objects that touch are told apart in plain images alone."
        )
    if options is not None:
        from mpamatch.inference.slides import predict_slides

        mine = [file for file in slides if shard.owns(file)]
        with Shown(len(mine), shown=ranks.rank() == 0) as progress:
            done = predict_slides(
                segmenter, slides, out, options, shard=shard, images=areas, skip=skip, progress=progress
            )
        bad = [error for file in done if (error := _unread(out, file))]
        met = ranks.gather((done, [*problems, *bad], _remarks(out, done)))
        areas += [one for found, _, _ in met for one in found]
        problems = list({str(error): error for _, errors, _ in met for error in errors}.values())
        remarks += [remark for _, _, told in met for remark in told]
        console.print(summary(areas, segmenter))
    kinds = "masks, overlays, objects" if segmenter.tells_objects_apart else "masks, overlays"
    return _end(console, out, "" if slides else kinds, problems, remarks)


def _options(arguments: argparse.Namespace, slides: Sequence[Path]) -> "SlideOptions | None":
    """Collects the options of slides. Raises InputError if one is given and there is no slide, or for its value."""
    names = ("mpp", "model_mpp", "tissue", "origin", "simplify")
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    if given and not slides:
        word = "--" + next(iter(given)).replace("_", "-")
        raise InputError(f"{word}: is for whole slides, and none of the inputs is one: leave it out.")
    if not slides:
        return None
    for name in ("shapely", "tifffile"):
        library(name, slides[0])
    from mpamatch.inference.slides import SlideOptions  # the extra `slides` comes with it, plain images need none

    return SlideOptions(**given, overlap=arguments.overlap)


def _shard(word: str | None, images: Sequence[Path]) -> Shard:
    """Reads the share of slides, and shares it among ranks. Raises InputError for a share of plain images."""
    if word is not None and images:
        raise InputError(f"--shard {word}: shares whole slides, but {images[0]} is none: predict images by torchrun.")
    shard = shard_of(word)
    return shard if word == "auto" else shard.split(ranks.rank(), ranks.started())


def _remarks(out: Path, done: Sequence[Areas]) -> list[str]:
    """Collects what there is to know of each slide."""
    from mpamatch.inference.slides import SlideResult

    return [f"{one.file}: {remark}" for one in done for remark in SlideResult.read(out / one.name).remarks]


def _unread(out: Path, one: Areas) -> InputError | None:
    """Says how many tiles of a slide could not be read, if there are any."""
    from mpamatch.inference.slides import SlideResult

    count = SlideResult.read(out / one.name).bad_tiles
    tiles = f"{count} tile{'s' if count != 1 else ''}"
    return InputError(f"{one.file}: {tiles} cannot be decoded and counted as white: copy it again.") if count else None


def _end(console: Console, out: Path, of_images: str, problems: Sequence[InputError], remarks: Sequence[str]) -> int:
    """Says what is missing and where the results are; returns the exit code. `of_images`: empty if there are slides."""
    for remark in remarks:
        say(console, f"note: {remark}")
    for problem in problems:
        say(console, f"not predicted: {problem}")
    if of_images:
        say(console, f"{of_images} and areas.csv are in {out}")
    else:
        say(console, f"mask.ome.tif, regions.geojson.gz and thumbnail.jpg of each slide, and areas.csv, are in {out}")
    return 1 if problems else 0


def summary(areas: Sequence[Areas], segmenter: Segmenter) -> Table:
    """Builds a table of all inputs together: by class pixels, share and, if the size of pixels is known, mm²."""
    known = bool(areas) and all(one.microns_per_pixel for one in areas)
    total = sum(sum(one.tissue_pixels) if one.tissue_pixels is not None else one.width * one.height for one in areas)
    slides = sum(one.tissue_pixels is not None for one in areas)
    counts = [(len(areas) - slides, "image"), (slides, "slide")]
    title = " and ".join(f"{count} {word}{'s' if count != 1 else ''}" for count, word in counts if count)
    table = Table(title=title or "nothing new")
    table.add_column("class")
    for heading in ["pixels", "share of tissue" if slides else "share", *(["mm²"] if known else [])]:
        table.add_column(heading, justify="right")
    for index, name in enumerate(segmenter.class_names):
        pixels = sum(one.pixels[index] for one in areas)
        inside = sum((one.pixels if one.tissue_pixels is None else one.tissue_pixels)[index] for one in areas)
        square = sum(square_millimetres(one.pixels[index], one.microns_per_pixel or 0) for one in areas)
        cells = [name, f"{pixels:,}", f"{inside / total if total else 0:.1%}"]
        table.add_row(*cells, *([f"{square:.4g}"] if known else []))
    return table
