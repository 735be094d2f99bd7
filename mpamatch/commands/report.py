"""`mpamatch report RUN…`: what a run is worth, as a page, a model card and numbers."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mpamatch import ranks
from mpamatch.console import new_console, say
from mpamatch.engine.evaluation import remarks_on_part
from mpamatch.engine.judgement import Judged, compared, examples, judge, predicted_label
from mpamatch.engine.prototype_gallery import Gallery, gather_prototypes, summarised
from mpamatch.errors import InputError
from mpamatch.images import IGNORE
from mpamatch.report.page import Example, PrototypePictures, Report, RunContent, write_report
from mpamatch.report.pictures import Picture, disagreement, flat, heat, labelled, photo
from mpamatch.report.prototypes import paint_assignments
from mpamatch.report.words import percent

EACH = 2  # best, median and worst images; one of each if there are several runs
DIFFERING = 3  # images on which runs differ most
PATCH, MAP = 80, 112  # largest sides of small pictures, in pixels
Label = np.ndarray


def run(arguments: argparse.Namespace) -> int:
    """Writes report.html, summary.json and MODEL_CARD.md of the runs `arguments.runs`; returns 0.

    Raises InputError if a run or its data cannot be used, or runs were scored on different images.
    """
    if ranks.started() > 1:
        raise InputError("report: works in one process; leave out torchrun.")
    runs = [Path(given) for given in arguments.runs]
    out = _place(runs, arguments.out)
    data = Path(arguments.data) if arguments.data else None
    console = new_console()
    judged = []
    for one in runs:
        say(console, f"scoring {one}")
        judged.append(judge(one, data, arguments.part, arguments.device))
        for remark in remarks_on_part(judged[-1].summary["part"], arguments.part):
            say(console, f"note: {remark}")
    _name_apart(judged, runs)
    comparison = compared(judged) if len(judged) > 1 else []
    contents = [
        _content(one, folder, arguments.device, EACH if len(runs) == 1 else 1)
        for one, folder in zip(judged, runs, strict=True)
    ]
    differing = _differing(judged, comparison) if comparison else []
    for path in write_report(Report(contents, comparison, differing), out):
        say(console, f"wrote {path}")
    return 0


def _place(runs: Sequence[Path], out: str | None) -> Path:
    """Returns the folder to write into: the run's own unless one is named. Raises InputError if none can be used."""
    if len({one.resolve() for one in runs}) < len(runs):
        raise InputError("report: a run is named twice; name each once.")
    if out is None:
        if len(runs) > 1:
            raise InputError("report: several runs need a folder for their report; name one by --out.")
        return _writable(runs[0])
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; name a folder by --out.")
    return _writable(folder)


def _writable(folder: Path) -> Path:
    """Returns `folder`. Raises InputError, before any work is done, if it or what it would lie in cannot be written."""
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not os.access(there, os.W_OK):
        raise InputError(f"{there}: cannot be written; name another folder by --out.")
    return folder


def _name_apart(judged: Sequence[Judged], runs: Sequence[Path]) -> None:
    """Puts the folder above before the names of runs that are called alike."""
    names = [one.summary["name"] for one in judged]
    for one, run in zip(judged, runs, strict=True):
        if names.count(one.summary["name"]) > 1:
            place = run.resolve()
            one.summary["name"] = f"{place.parent.name}/{place.name}"


def _content(judged: Judged, run: Path, device: str, each: int) -> RunContent:
    """Gathers the pictures of a run, and the numbers of its prototypes into its summary."""
    chosen = examples(judged.summary["images"], each)
    rows = [_example(judged, word, place) for word, places in chosen.items() for place in places]
    middle = judged.names[(chosen.get("median") or next(iter(chosen.values()), [0]))[0]]
    gallery = gather_prototypes(run, judged.images.prepared, middle, device=device)
    judged.summary["prototypes"] = None if gallery is None else summarised(gallery)
    return RunContent(judged.summary, rows, None if gallery is None else _pictures(gallery, judged))


def _example(judged: Judged, word: str, place: int) -> Example:
    """Draws image, label, prediction and disagreement of an image."""
    about = judged.summary["images"][place]
    name, names, colours = about["image"], judged.summary["classes"], judged.segmenter.settings.colours
    image, label, predicted = predicted_label(judged, name)
    pictures = [
        photo(image, f"Image {name}.", "image"),
        labelled(image, label, colours, f"Its label: {_cover(label, names)}.", "label"),
        labelled(image, predicted, colours, f"The prediction: {_cover(predicted, names)}.", "prediction"),
        photo(disagreement(image, label, predicted), _wrong(label, predicted), "disagreement"),
    ]
    words = f"Patient {about['group']}. Mean Dice {percent(about['mdice'])} %. {_wrong(label, predicted)}"
    return Example(f"{word}: {name}", words, pictures)


def _differing(judged: Sequence[Judged], comparison: Sequence[dict]) -> list[Example]:
    """Draws the images on which a run differs most from the first one, with the prediction of every run."""
    most = np.nanmax(np.abs(np.array([one["by_image"] for one in comparison], dtype=float)), axis=0, initial=0)
    found = []
    for place in np.argsort(-most, kind="stable")[:DIFFERING]:
        name, names = judged[0].names[place], judged[0].summary["classes"]
        colours = judged[0].segmenter.settings.colours
        image, label, _ = predicted_label(judged[0], name)
        pictures = [
            photo(image, f"Image {name}.", "image"),
            labelled(image, label, colours, f"Its label: {_cover(label, names)}.", "label"),
        ]
        for one in judged:
            predicted, run = predicted_label(one, name)[2], one.summary["name"]
            alt = f"The prediction of {run}: {_cover(predicted, names)}."
            pictures.append(labelled(image, predicted, colours, alt, run))
        scores = "; ".join(
            f"{one.summary['name']} {percent(one.summary['images'][place]['mdice'])} %" for one in judged
        )
        found.append(Example(name, f"Mean Dice: {scores}.", pictures))
    return found


def _pictures(gallery: Gallery, judged: Judged) -> PrototypePictures:
    """Draws the patches of every prototype, and what they see in one image."""
    patches = [
        [
            [
                photo(one.pixels, f"Patch of {one.image}, cosine {one.cosine:.2f} with {name} {k + 1}.", "", PATCH)
                for one in nearest
            ]
            for k, nearest in enumerate(of_class)
        ]
        for name, of_class in zip(gallery.classes, gallery.patches, strict=True)
    ]
    look, names = gallery.example, judged.summary["classes"]
    low, high = float(look.cosine.min()), float(look.cosine.max())
    painted = paint_assignments(look.label, look.nearest, look.cosine.shape[1], len(names))
    colours = judged.segmenter.settings.colours
    example: list[Picture] = [
        photo(look.image, f"Image {gallery.example_name}.", "image"),
        labelled(look.image, look.label, colours, f"The prediction: {_cover(look.label, names)}.", "prediction"),
        flat(painted, _assigned(gallery, len(names)), "nearest prototype of the class"),
    ]
    maps = [
        [
            heat(
                one,
                low,
                high,
                f"Map of {name} {k + 1}: cosines from {one.min():.2f} to {one.max():.2f}.",
                f"{k + 1}",
                MAP,
            )
            for k, one in enumerate(of_class)
        ]
        for name, of_class in zip(gallery.classes, look.cosine, strict=True)
    ]
    return PrototypePictures(patches, example, maps)


def _assigned(gallery: Gallery, classes: int) -> str:
    """Says how many prototypes of each class the example shows."""
    look = gallery.example
    offset = classes - len(gallery.classes)
    found = (
        f"{len(np.unique(look.nearest[(look.label == offset + c) & (look.nearest >= 0)]))} of {name}"
        for c, name in enumerate(gallery.classes)
    )
    return f"Pixels in the colour of their nearest prototype: {', '.join(found)}."


def _cover(label: Label, names: Sequence[str]) -> str:
    """Says which share of an image each class covers."""
    known = label[label != IGNORE]
    if not known.size:
        return "nothing is labelled"
    shares = ((name, (known == index).mean()) for index, name in enumerate(names) if index)
    return ", ".join(f"{name} covers {percent(float(share), 0)} %" for name, share in shares)


def _wrong(label: Label, predicted: Label) -> str:
    """Says which share of the labelled pixels was missed, marked in vain or taken for another class."""
    known = label != IGNORE
    wrong = known & (label != predicted)
    missed, extra = wrong & (predicted == 0), wrong & (label == 0)
    total = max(int(known.sum()), 1)
    shares = [percent(int(each.sum()) / total, 1) for each in (missed, extra, wrong & ~missed & ~extra)]
    swapped = f", {shares[2]} % taken for another class" if shares[2] != "0.0" else ""
    return f"{shares[0]} % of the pixels missed, {shares[1]} % marked but are not{swapped}."
