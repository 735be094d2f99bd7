"""Paired comparison of methods on one prepared set: same split and same initial weights per seed.

    python -m mpamatch.benchmarks.compare_methods run DATA OUT --recipe R --labelled 4,10% --seeds 0-4 --test
    python -m mpamatch.benchmarks.compare_methods run DATA OUT … --trials trials.yaml    choose settings, on validation
    python -m mpamatch.benchmarks.compare_methods table OUT                              mean ± sd, paired differences

Each run is a process of its own with one thread, `--jobs` of them at a time. A run that is in OUT/results.jsonl is not
done again. `--test` evaluates the test part once per run; without it only validation is looked at.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import yaml
from scipy import stats

from mpamatch.benchmarks.command import run_main
from mpamatch.data.prepared import load_prepared
from mpamatch.data.splits import write_split


@dataclass
class Case:
    """One run: a method with settings on the split that a budget and a seed draw."""

    method: str
    labelled: str
    seed: int
    trial: str = "recipe"
    flags: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.method}-{self.trial}-{self.labelled.replace('%', 'pct')}-seed{self.seed}"


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("data", type=Path)
    run.add_argument("out", type=Path)
    run.add_argument("--recipe", required=True)
    run.add_argument("--labelled", default="4")
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
    """Runs every case that has no result yet; the exit code is 1 where one failed."""
    prepared = load_prepared(arguments.data)
    trials = yaml.safe_load(arguments.trials.read_text()) if arguments.trials else {}
    cases = list(make_cases(arguments, trials, flags))
    for labelled, seed in sorted({(case.labelled, case.seed) for case in cases}):
        write_split(prepared, labelled, seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    done = {result["name"] for result in read_results(arguments.out)}
    lock, failed = Lock(), []

    def one(case: Case) -> None:
        try:
            result = run_case(case, arguments)
        except subprocess.CalledProcessError as error:
            failed.append(case.name)
            print(f"{case.name}: failed\n{error.stdout}{error.stderr}", file=sys.stderr, flush=True)
            return
        with lock, (arguments.out / "results.jsonl").open("a") as file:
            file.write(json.dumps(result) + "\n")
        print(f"{case.name}: validation mDice {100 * result['validation_mdice']:.2f}", flush=True)

    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(one, [case for case in cases if case.name not in done]))
    return 1 if failed else 0


def make_cases(arguments: argparse.Namespace, trials: dict[str, Any], flags: list[str]) -> Iterator[Case]:
    """Seeds outermost, so that an interrupted comparison holds whole pairs."""
    low, _, high = arguments.seeds.partition("-")
    for seed in range(int(low), int(high or low) + 1):
        for labelled in arguments.labelled.split(","):
            for method in arguments.methods.split(","):
                for trial, settings in (trials.get(method) or {"recipe": {}}).items():
                    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
                    yield Case(method, labelled, seed, trial, [*flags, *words])


def run_case(case: Case, arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains in a process of its own, reads what it wrote, and with --test evaluates the test part."""
    run = arguments.out / "runs" / case.name
    split = f"labelled-{case.labelled.replace('%', 'pct')}-seed{case.seed}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def mpamatch(*words: str) -> None:
        command = [sys.executable, "-m", "mpamatch", *words]
        subprocess.run(command, check=True, capture_output=True, text=True, env=environment)

    if run.exists():
        mpamatch("train", "--resume", str(run))
    else:
        where = [
            "--recipe",
            arguments.recipe,
            "--data.root",
            str(arguments.data),
            "--data.split",
            split,
            "--run",
            str(run),
        ]
        mpamatch("train", *where, "--method.name", case.method, "--engine.seed", str(case.seed), *case.flags)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    result = {
        **asdict(case),
        "name": case.name,
        "validation_mdice": max(line["validation"]["mdice"] for line in lines if "validation" in line),
        "seconds": float(np.median([line["seconds"] for line in steps])),
        "confident": steps[-1].get("confident"),
        "prototypes": {key: value for key, value in steps[-1].items() if key.startswith("prototypes/")},
    }
    if arguments.test:
        mpamatch("evaluate", str(run), "--part", "test")
        result["test"] = json.loads((run / "evaluation-test.json").read_text())
    return result


def read_results(out: Path) -> list[dict[str, Any]]:
    path = out / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: per budget, method and trial the mean ± sd over seeds of the test (else validation) mDice in percent,
    and the paired differences to supervised and unimatch with their 95 % t intervals."""
    tested = all("test" in result for result in results)
    score = {
        (r["labelled"], r["method"], r["trial"], r["seed"]): 100
        * (r["test"]["mdice"] if tested else r["validation_mdice"])
        for r in results
    }
    rows = sorted({key[:3] for key in score})
    part = "test" if tested else "validation"
    lines = [
        f"| labelled | method | trial | seeds | {part} mDice | − supervised | − unimatch | s/step | confident |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for labelled, method, trial in rows:
        mine = {key[3]: value for key, value in score.items() if key[:3] == (labelled, method, trial)}
        of = [r for r in results if (r["labelled"], r["method"], r["trial"]) == (labelled, method, trial)]
        shares = [r["confident"] for r in of if r["confident"] is not None]
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
            f"{seconds:.2f}",
            confident,
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def scores_of(
    score: dict[tuple[str, str, str, int], float], labelled: str, method: str, trial: str
) -> dict[int, float]:
    """By seed: the trial of that name, or the only one the method has."""
    trials = {key[2] for key in score if key[:2] == (labelled, method)}
    chosen = trial if trial in trials else next(iter(trials)) if len(trials) == 1 else None
    return {key[3]: value for key, value in score.items() if key[:3] == (labelled, method, chosen)}


def paired(mine: dict[int, float], other: dict[int, float]) -> str:
    """Mean of the differences per seed with its 95 % interval (Student's t)."""
    both = sorted(set(mine) & set(other))
    if len(both) < 2:
        return "–"
    difference = np.array([mine[seed] - other[seed] for seed in both])
    half = stats.t.ppf(0.975, len(both) - 1) * difference.std(ddof=1) / np.sqrt(len(both))
    return f"{difference.mean():+.2f} [{difference.mean() - half:+.2f}, {difference.mean() + half:+.2f}]"


if __name__ == "__main__":
    run_main(main)
