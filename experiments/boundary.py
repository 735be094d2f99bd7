"""What the border of objects (`model.boundary`) is worth: with and without it, paired by split and initial weights.

    mpamatch prepare synthetic DATA --images 240 --seed 1 --crowded
    python -m experiments.boundary run DATA OUT          five seeds of supervised and fixmatch, both arms
    python -m experiments.boundary shape DATA OUT        cuts the regions of the runs without it at their waists
    python -m experiments.boundary table OUT FILE        Markdown, and FILE (JSON) with every run
    python -m experiments.boundary picture DATA OUT FILE image | true objects | without | with

Both arms are scored against the same true objects, the numbers in DATA/instances; predicted ones are 8-connected
regions without the border, and what the watershed separates with it. EBHI-Seg has no numbers of objects, so crowded
made-up tissue stands in; GlaS has them (`mpamatch prepare glas`). A run that is in OUT/results.jsonl is not done again.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from skimage import measure
from skimage.morphology import h_maxima
from skimage.segmentation import watershed

from experiments.compare_methods import seeds_of
from mpamatch.benchmarks.command import run_main
from mpamatch.benchmarks.measure import machine
from mpamatch.data.cache import ImageCache
from mpamatch.data.prepared import load_prepared
from mpamatch.data.splits import draw_splits, save_split
from mpamatch.engine.metrics import SegmentationMetrics
from mpamatch.files import read_json, write_json
from mpamatch.images import write_png
from mpamatch.inference.checkpoint import load_segmenter
from mpamatch.inference.objects import SMALLEST
from mpamatch.studies.scores import Difference, paired
from mpamatch.studies.sweep import StudyRun, Sweep, do_runs, read_results

LABELLED = "24 images"
ARMS: dict[str, tuple[str, ...]] = {"without": (), "with": ("--model.boundary", "true")}
FLAGS = ("--data.crop", "112", "--data.workers", "0", "--engine.validate_every", "100", "--engine.save_every", "500")
# name → where it stands in evaluation-test.json, its factor, its digits
SCORES: dict[str, tuple[tuple[str, ...], float, int]] = {
    "object F1, %": (("objects", "f1"), 100, 1),
    "object Dice, %": (("objects", "dice"), 100, 1),
    "object Hausdorff, px": (("objects", "hausdorff"), 1, 1),
    "mDice, %": (("mdice",), 100, 2),
}
HEIGHT = 3.0  # of a maximum of the distance that is a seed; chosen as the border's settings were
SHOWN = 4  # images of the picture
ENLARGED = 2
HEADINGS = ("image", "true objects", "objects without the border", "objects with it")


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("data", type=Path)
    run.add_argument("out", type=Path)
    run.add_argument("--methods", default="supervised,fixmatch")
    run.add_argument("--seeds", default="0-4")
    run.add_argument("--steps", type=int, default=500)
    cut = commands.add_parser("shape")
    cut.add_argument("data", type=Path)
    cut.add_argument("out", type=Path)
    cut.add_argument("--part", default="test")
    cut.add_argument("--height", type=float, default=HEIGHT)
    show = commands.add_parser("table")
    show.add_argument("out", type=Path)
    show.add_argument("file", type=Path)
    draw = commands.add_parser("picture")
    draw.add_argument("data", type=Path)
    draw.add_argument("out", type=Path)
    draw.add_argument("file", type=Path)
    draw.add_argument("--method", default="supervised")
    arguments = parser.parse_args(words)
    if arguments.command == "run":
        return run_all(arguments)
    if arguments.command == "shape":
        found = shape_results(arguments.data, arguments.out, arguments.part, arguments.height)
        write_json(arguments.out / f"shape-{arguments.part}.json", found)
        for name in SCORES:
            print(f"{name}: {np.mean([score_of(one, name) for one in found]):.2f}")
        return 0
    if arguments.command == "table":
        results = read_results(arguments.out)
        shaped = arguments.out / "shape-test.json"
        results += read_json(shaped) if shaped.is_file() else []
        write_json(arguments.file, {"machine": machine("cpu"), "runs": results})
        print(table(results))
        return 0
    write_png(arguments.file, picture(arguments.data, arguments.out, arguments.method))
    return 0


def run_all(arguments: argparse.Namespace) -> int:
    """Does every run that has no result yet; the exit code is 1 if one failed."""
    prepared = load_prepared(arguments.data)
    drawn = draw_splits(prepared, [LABELLED], seeds_of(arguments))
    splits = {seed: save_split(prepared, split).stem for (_, seed), split in drawn.items()}
    sweep = Sweep(str(arguments.out), str(arguments.data), "demo", test=True)
    runs = list(make_runs(arguments.methods.split(","), splits, ("--engine.steps", str(arguments.steps))))
    return 1 if do_runs(sweep, runs, jobs=0, say=lambda text: print(text, flush=True)) else 0


def make_runs(methods: list[str], splits: dict[int, str], flags: tuple[str, ...]) -> Iterator[StudyRun]:
    """Lists method by method and, within, seed by seed both arms, so that an interrupted comparison holds pairs."""
    for method in methods:
        for seed, split in splits.items():
            for arm, own in ARMS.items():
                yield StudyRun(method, LABELLED, seed, split, arm, (*FLAGS, *flags, *own))


def score_of(result: dict[str, Any], name: str) -> float:
    """Returns a score of the test part, in the unit of its name."""
    place, factor, _ = SCORES[name]
    value: Any = result["test"]
    for key in place:
        value = value[key]
    return factor * value


def table(results: list[dict[str, Any]]) -> str:
    """Formats by method and score the means over seeds, and paired differences with their 95 % t intervals.

    "cut by shape" are the runs without, as `shape` scores them.
    """
    head = ["method", "score", "without", "cut by shape", "with", "with − without", "with − cut by shape", "seeds"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for method in dict.fromkeys(result["method"] for result in results):
        for name, (_, _, digits) in SCORES.items():
            of_arm = [
                {one["seed"]: score_of(one, name) for one in results if (one["method"], one["trial"]) == (method, arm)}
                for arm in ("without", "shape", "with")
            ]
            means = [f"{np.mean(list(values.values())):.{digits}f}" if values else "–" for values in of_arm]
            changes = [change(paired(of_arm[2], other), digits) for other in of_arm[:2]]
            cells = [method, name, *means, *changes, str(len(of_arm[2]))]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def change(found: Difference | None, digits: int) -> str:
    """Formats a paired difference with its interval; – for fewer than two pairs."""
    if found is None:
        return "–"
    return f"{found.mean:+.{digits}f} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"


def shape_results(data: Path, out: Path, part: str, height: float) -> list[dict[str, Any]]:
    """Scores the runs without the border once more, their regions cut by `cut_by_shape`."""
    images = ImageCache(load_prepared(data), 0)
    found = []
    for result in (one for one in read_results(out) if one["trial"] == "without"):
        segmenter = load_segmenter(out / "runs" / result["name"], "cpu")
        metrics = SegmentationMetrics(images.prepared.class_names, objects=True)
        for name in images.prepared.labelled(part):
            image, label = images.labelled(name)
            predicted = segmenter.predict(image)
            metrics.update(predicted, label, cut_by_shape(predicted > 0, height), images.instances(name, label))
        name = result["name"].replace("without", "shape")
        found.append({**result, "trial": "shape", "name": name, "test": metrics.compute()})
    return found


def cut_by_shape(mask: NDArray[np.bool_], height: float) -> NDArray[np.integer]:  # (H, W)
    """Numbers objects by a watershed of the distance to the background, from maxima that stand out by `height` pixels.

    A region without such a maximum is one object, or none if it is a speck, as with the border.
    """
    depth = ndimage.distance_transform_edt(mask)
    seeds, regions = measure.label(h_maxima(depth, height), connectivity=2), measure.label(mask, connectivity=2)
    bare = mask & ~np.isin(regions, regions[seeds > 0]) & (np.bincount(regions.ravel()) >= SMALLEST)[regions]
    seeds[bare] = seeds.max() + regions[bare]
    return watershed(-depth, seeds, mask=mask, connectivity=2)


def picture(data: Path, out: Path, method: str) -> NDArray[np.uint8]:
    """Draws image, true objects and those of both arms of seed 0 for the test images with most objects."""
    images = ImageCache(load_prepared(data), 0)
    names = images.prepared.labelled("test")
    counts = {name: int(images.instances(name, images.labelled(name)[1]).max()) for name in names}
    chosen = sorted(counts, key=lambda name: (-counts[name], name))[:SHOWN]
    arms = [load_segmenter(Path(out) / "runs" / StudyRun(method, LABELLED, 0, "", arm).name, "cpu") for arm in ARMS]
    rows = []
    for name in chosen:
        image, label = images.labelled(name)
        regions = measure.label(arms[0].predict(image) > 0, connectivity=2)
        objects = (images.instances(name, label), regions, arms[1].predict_objects(image)[1])
        rows.append(_beside([image, *(painted(one) for one in objects)]))
    return headed(np.concatenate(rows).repeat(ENLARGED, 0).repeat(ENLARGED, 1))


def headed(panels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Puts a line above columns of equal width that says what they show."""
    width = panels.shape[1]
    line = Image.new("RGB", (width, 24), "white")
    for number, heading in enumerate(HEADINGS):
        place = (number * width // len(HEADINGS) + 2, 3)
        ImageDraw.Draw(line).text(place, heading, fill="black", font=ImageFont.load_default(size=15))
    return np.concatenate([np.asarray(line), panels])


def painted(numbers: NDArray[np.integer]) -> NDArray[np.uint8]:  # (H, W) -> (H, W, 3)
    """Paints each object in a colour of its own, the background black."""
    palette = np.random.default_rng(3).integers(70, 256, (int(numbers.max()) + 1, 3)).astype(np.uint8)
    palette[0] = 0
    return palette[numbers]


def _beside(panels: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Puts panels side by side, with white between them and below."""
    framed = [np.pad(panel, ((0, 3), (0, 3), (0, 0)), constant_values=255) for panel in panels]
    return np.concatenate(framed, axis=1)


if __name__ == "__main__":
    run_main(main)
