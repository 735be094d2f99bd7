"""Does `mpamatch suggest` choose better images to label than chance? Rounds of labelling, simulated.

    python -m experiments.suggest_rounds run DATA OUT --recipe ebhi-seg-gland      DATA: a copy, splits are added to it
    python -m experiments.suggest_rounds summary OUT --json FILE --figure FILE

Every seed begins with one labelled image of each of four patients, the same for all strategies. Each round adds labels,
chosen at random, by uncertainty alone, or as `suggest` does (uncertainty and spread), and trains from scratch with the
same seed; the test part is scored once per training. What is finished is not done again.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from experiments.compare_methods import seeds_of
from mpamatch.ahead import ahead
from mpamatch.benchmarks.command import run_main
from mpamatch.data.prepared import Prepared, load_prepared, split_path, training_lists
from mpamatch.data.splits import Split, images_by_group, save_split
from mpamatch.files import replacing, write_json
from mpamatch.images import read_image
from mpamatch.inference.checkpoint import load_segmenter
from mpamatch.inference.suggest.rank import Wish, rank
from mpamatch.studies import scores
from mpamatch.studies.sweep import StudyRun, Sweep, do_runs, read_results

ROUNDS = (4, 8, 16, 32)  # labelled images
SEEDS = range(5)
STRATEGIES = ("random", "uncertainty", "suggest")
COLOURS = {"random": "#6b6b6b", "uncertainty": "#d55e00", "suggest": "#0072b2"}
FIRST = "start"  # the trial of the round that all strategies share


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("data", type=Path)
    run.add_argument("out", type=Path)
    run.add_argument("--recipe", required=True)
    run.add_argument("--rounds", default=",".join(map(str, ROUNDS)), help="labelled images, each more than before")
    run.add_argument("--seeds", default=f"{SEEDS[0]}-{SEEDS[-1]}")
    show = commands.add_parser("summary")
    show.add_argument("out", type=Path)
    show.add_argument("--json", type=Path, required=True)
    show.add_argument("--figure", type=Path, required=True)
    arguments, flags = parser.parse_known_args(words)
    if arguments.command == "run":
        rounds = [int(word) for word in arguments.rounds.split(",")]
        sweep = Sweep(str(arguments.out), str(arguments.data), arguments.recipe, test=True)
        return run_all(sweep, flags, seeds_of(arguments), rounds)
    found = summary(read_results(arguments.out))
    write_json(arguments.json, found)
    draw(found, arguments.figure)
    print(table(found))
    return 0


def run_all(sweep: Sweep, flags: Sequence[str], seeds: Sequence[int] = SEEDS, rounds: Sequence[int] = ROUNDS) -> int:
    """Does every training that has no result yet, seed by seed; the exit code is 1 if one failed."""
    prepared = load_prepared(Path(sweep.data))
    for seed in seeds:
        for runs in rounds_of(prepared, sweep, seed, rounds, flags):
            if do_runs(sweep, runs, jobs=0, say=lambda text: print(text, flush=True)):
                return 1
    return 0


def rounds_of(
    prepared: Prepared, sweep: Sweep, seed: int, rounds: Sequence[int], flags: Sequence[str]
) -> Iterator[list[StudyRun]]:
    """Yields the trainings of each round, once those of the round before are done and their choice is made."""
    before = {strategy: training(FIRST, rounds[0], seed, flags) for strategy in STRATEGIES}
    write_once(prepared, before["random"].split, seed, lambda: first_images(prepared, seed, rounds[0]))
    yield [before["random"]]
    for size in rounds[1:]:
        for strategy in STRATEGIES:
            run, last = training(strategy, size, seed, flags), before[strategy]
            write_once(
                prepared,
                run.split,
                seed,
                lambda last=last, strategy=strategy, size=size: next_images(
                    prepared, sweep.run_folder(last), last.split, strategy, size, seed
                ),
            )
            before[strategy] = run
        yield list(before.values())


def training(strategy: str, size: int, seed: int, flags: Sequence[str]) -> StudyRun:
    """Names a training and the split that it learns from."""
    return StudyRun("supervised", f"{size} images", seed, f"{strategy}-{size}-seed{seed}", strategy, tuple(flags))


def write_once(prepared: Prepared, name: str, seed: int, images: Any) -> None:
    """Writes the split of the images that `images()` chooses, unless it is there."""
    if split_path(prepared, name).is_file():
        return
    chosen = tuple(sorted(images()))
    groups = tuple(dict.fromkeys(prepared.groups[image] for image in chosen))
    of_groups, of_images = len(images_by_group(prepared)), len(prepared.parts["train"])
    save_split(prepared, Split(name, f"{len(chosen)} images", seed, groups, chosen, of_groups, of_images, (), "images"))


def first_images(prepared: Prepared, seed: int, count: int) -> list[str]:
    """Draws one labelled image of each of `count` patients."""
    by_group, draw = images_by_group(prepared), np.random.default_rng(seed)
    groups = draw.permutation(sorted(by_group))[:count].tolist()
    return [str(draw.choice(sorted(by_group[group]))) for group in groups]


def next_images(prepared: Prepared, run: Path, split: str, strategy: str, size: int, seed: int) -> list[str]:
    """Adds images to those of a split until there are `size`, chosen by the model of the round before or at random."""
    labelled, others = training_lists(prepared, split)
    masked = set(prepared.labelled("train"))  # the annotator here
    others = tuple(name for name in others if name in masked)
    if strategy == "random":
        order = np.random.default_rng(1000 + seed).permutation(prepared.parts["train"]).tolist()
        return [*labelled, *(name for name in order if name in set(others))][:size]
    read = ahead(lambda name: read_image(prepared.image_path(name)), others, threads=1)
    candidates = (((name, 0, 0), prepared.groups[name], image) for name, image in zip(others, read, strict=True))
    known = (read_image(prepared.image_path(name)) for name in labelled)
    wish = Wish(size - len(labelled), spread=strategy == "suggest")
    found = rank(load_segmenter(run, "cpu"), candidates, known, wish)
    return [*labelled, *(choice.candidate.key[0] for choice in found.choices)]


def summary(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Gathers test mDice in percent: strategy → labelled images → by seed, mean and 95 % interval (Student's t), and
    the paired differences to random."""
    by_key = scores.by_key(results, "test")
    sizes = sorted({int(key[0].split()[0]) for key in by_key})
    curves = {
        strategy: {
            size: by_key.get((f"{size} images", "supervised", FIRST if size == sizes[0] else strategy), {})
            for size in sizes
        }
        for strategy in STRATEGIES
    }
    return {
        "part": "test",
        "score": "mDice over background and gland, pooled over the part, percent",
        "labelled_images": sizes,
        "curves": {
            strategy: {str(size): {"by_seed": found, **mean_of(found)} for size, found in of.items()}
            for strategy, of in curves.items()
        },
        "minus_random": {
            strategy: {str(size): difference(found, curves["random"][size]) for size, found in curves[strategy].items()}
            for strategy in STRATEGIES[1:]
        },
        "suggest_minus_uncertainty": {
            str(size): difference(found, curves["uncertainty"][size]) for size, found in curves["suggest"].items()
        },
        "over_rounds": over_rounds(curves, sizes),
    }


def over_rounds(curves: dict[str, dict[int, dict[int, float]]], sizes: Sequence[int]) -> dict[str, Any]:
    """Compares the mean over the rounds after the first, by seed: one number for a curve."""
    means = {
        strategy: {
            seed: float(np.mean([of[size][seed] for size in sizes[1:]]))
            for seed in set.intersection(*(set(of[size]) for size in sizes[1:]))
        }
        for strategy, of in curves.items()
    }
    pairs = (("uncertainty", "random"), ("suggest", "random"), ("suggest", "uncertainty"))
    return {f"{one} minus {other}": difference(means[one], means[other]) for one, other in pairs}


def mean_of(found: dict[int, float]) -> dict[str, float | None]:
    """Computes mean, and the ends of its 95 % interval by Student's t; None for fewer than two seeds."""
    if len(found) < 2:
        return {"mean": next(iter(found.values()), None), "low": None, "high": None}
    values = np.array(list(found.values()))
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return {"mean": float(values.mean()), "low": float(values.mean()) - half, "high": float(values.mean()) + half}


def difference(mine: dict[int, float], other: dict[int, float]) -> dict[str, Any] | None:
    """Computes the mean of paired differences and its 95 % interval; None for fewer than two pairs."""
    found = scores.paired(mine, other)
    return None if found is None else {name: getattr(found, name) for name in ("pairs", "mean", "low", "high")}


def table(found: dict[str, Any]) -> str:
    """Formats means and differences as a Markdown table."""
    sizes = [str(size) for size in found["labelled_images"]]
    lines = [f"| labelled images | {' | '.join(sizes)} |", f"|---|{'---|' * len(sizes)}"]
    for strategy, of in found["curves"].items():
        cells = ("–" if of[size]["mean"] is None else f"{of[size]['mean']:.2f}" for size in sizes)
        lines.append(f"| {strategy} | {' | '.join(cells)} |")
    for strategy, of in {**found["minus_random"], "suggest − uncertainty": found["suggest_minus_uncertainty"]}.items():
        name = strategy if "−" in strategy else f"{strategy} − random"
        lines.append(f"| {name} | {' | '.join(told(of[size]) for size in sizes)} |")
    lines += [f"\n{name}, mean over rounds: {told(one)}" for name, one in found["over_rounds"].items()]
    return "\n".join(lines)


def told(one: dict[str, Any] | None) -> str:
    """Formats a difference with its interval."""
    return "–" if one is None else f"{one['mean']:+.2f} [{one['low']:+.2f}, {one['high']:+.2f}]"


def draw(found: dict[str, Any], path: Path) -> None:
    """Draws mDice over labelled images, the mean of each strategy with its 95 % interval and a dot for every seed."""
    figure = Figure(figsize=(7, 4.2), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    sizes = found["labelled_images"]
    for number, (strategy, of) in enumerate(found["curves"].items()):
        x = np.array(sizes) * 2 ** (0.08 * (number - 1))  # beside each other
        points = [of[str(size)] for size in sizes]
        mean = np.array([point["mean"] for point in points], dtype=float)
        ends = np.array([[point["low"], point["high"]] for point in points], dtype=float).T
        bars = np.abs(ends - mean)
        axes.errorbar(x, mean, bars, color=COLOURS[strategy], marker="o", capsize=3, label=strategy)
        for place, point in zip(x, points, strict=True):
            values = list(point["by_seed"].values())
            axes.plot([place] * len(values), values, ".", color=COLOURS[strategy], alpha=0.35, markersize=4)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_xlabel("labelled images")
    axes.set_ylabel("test mDice, %")
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


if __name__ == "__main__":
    run_main(main)
