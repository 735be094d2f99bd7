"""Paired comparison of methods on one prepared set: same split and same initial weights per seed.

    python -m experiments.compare_methods run DATA OUT --recipe R --labelled 4,10% --seeds 0-4 --test
    python -m experiments.compare_methods run DATA OUT … --trials trials.yaml    choose settings, on validation
    python -m experiments.compare_methods table OUT                              mean ± sd, paired differences

Each run is a process of its own, `--jobs` of them at a time share the cores. A run that is in OUT/results.jsonl is not
done again. `--test` evaluates the test part once per run; without it only validation is looked at.
"""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mpamatch.benchmarks.command import run_main
from mpamatch.data.prepared import load_prepared
from mpamatch.data.splits import draw_splits, save_split
from mpamatch.studies import scores
from mpamatch.studies.sweep import StudyRun, Sweep, do_runs, read_results


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("data", type=Path)
    run.add_argument("out", type=Path)
    run.add_argument("--recipe", required=True)
    run.add_argument("--labelled", default="4", help="budgets with commas: 4,10%% of patients, '8 images,10%% images'")
    run.add_argument("--methods", default="supervised,fixmatch,unimatch,mpamatch")
    run.add_argument("--seeds", default="0-4")
    run.add_argument("--trials", type=Path, help="YAML: method → trial → {field: value}")
    run.add_argument("--jobs", type=int, default=2)
    run.add_argument("--test", action="store_true")
    show = commands.add_parser("table")
    show.add_argument("out", type=Path)
    arguments, flags = parser.parse_known_args(words)
    if arguments.command == "table":
        print(table(read_results(arguments.out)))
        return 0
    return run_all(arguments, flags)


def run_all(arguments: argparse.Namespace, flags: list[str]) -> int:
    """Does every run that has no result yet; the exit code is 1 where one failed."""
    prepared = load_prepared(arguments.data)
    trials = yaml.safe_load(arguments.trials.read_text()) if arguments.trials else {}
    drawn = draw_splits(prepared, budgets_of(arguments), seeds_of(arguments))
    splits = {key: save_split(prepared, split).stem for key, split in drawn.items()}
    sweep = Sweep(str(arguments.out), str(arguments.data), arguments.recipe, test=arguments.test)
    runs = list(make_runs(arguments, splits, trials, flags))
    failed = do_runs(sweep, runs, jobs=arguments.jobs, say=lambda text: print(text, flush=True))
    return 1 if failed else 0


def seeds_of(arguments: argparse.Namespace) -> range:
    low, _, high = arguments.seeds.partition("-")
    return range(int(low), int(high or low) + 1)


def budgets_of(arguments: argparse.Namespace) -> list[str]:
    return [budget.strip() for budget in arguments.labelled.split(",")]


def make_runs(
    arguments: argparse.Namespace, splits: Mapping[tuple[str, int], str], trials: dict[str, Any], flags: list[str]
) -> Iterator[StudyRun]:
    """Seeds outermost, so that an interrupted comparison holds whole pairs."""
    for seed in seeds_of(arguments):
        for labelled in budgets_of(arguments):
            for method in arguments.methods.split(","):
                for trial, settings in (trials.get(method) or {"recipe": {}}).items():
                    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
                    yield StudyRun(method, labelled, seed, splits[labelled, seed], trial, (*flags, *words))


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: per budget, method and trial the mean ± sd over seeds of the test (else validation) mDice in percent,
    the paired differences to supervised and unimatch with their 95 % t intervals, and the mean object scores."""
    part = scores.part_scored(results)
    score = {
        (*key, seed): value for key, values in scores.by_key(results, part).items() for seed, value in values.items()
    }
    rows = sorted({key[:3] for key in score})
    lines = [
        f"| labelled | method | trial | seeds | {part} mDice | − supervised | − unimatch | object F1 | object Dice "
        "| s/step | confident |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for labelled, method, trial in rows:
        mine = {key[3]: value for key, value in score.items() if key[:3] == (labelled, method, trial)}
        of = [r for r in results if (r["labelled"], r["method"], r["trial"]) == (labelled, method, trial)]
        shares = [r["confident"] for r in of if r.get("confident") is not None]
        differences = [
            "–" if method == other else paired(mine, scores_of(score, labelled, other, trial))
            for other in ("supervised", "unimatch")
        ]
        values = np.array(list(mine.values()))
        spread = f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else ""
        confident = f"{np.mean(shares):.0%}" if shares else "–"
        seconds = np.median([r["seconds"] for r in of])
        cells = [
            labelled,
            method,
            trial,
            len(values),
            f"{values.mean():.2f}{spread}",
            *differences,
            *(mean_of_objects(of, name) for name in ("f1", "dice")),
            f"{seconds:.2f}",
            confident,
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def mean_of_objects(results: list[dict[str, Any]], name: str) -> str:
    """The mean over seeds of an object score of the test part, in percent."""
    values = [result["test"]["objects"][name] for result in results if result.get("test", {}).get("objects")]
    return f"{100 * np.mean(values):.1f}" if values else "–"


def scores_of(
    score: dict[tuple[str, str, str, int], float], labelled: str, method: str, trial: str
) -> dict[int, float]:
    """By seed: the trial of that name, or the only one the method has."""
    trials = {key[2] for key in score if key[:2] == (labelled, method)}
    chosen = trial if trial in trials else next(iter(trials)) if len(trials) == 1 else None
    return {key[3]: value for key, value in score.items() if key[:3] == (labelled, method, chosen)}


def paired(mine: dict[int, float], other: dict[int, float]) -> str:
    """Mean of the differences per seed with its 95 % interval."""
    found = scores.paired(mine, other)
    return f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]" if found else "–"


if __name__ == "__main__":
    run_main(main)
