"""Many training runs in one folder: finished ones are kept, those that were stopped go on.

OUT/runs/NAME/     a run folder like any other
OUT/results.jsonl  one line per finished run
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpamatch.claims import LOCK, alone
from mpamatch.console import new_console
from mpamatch.engine.config import Config, load_config
from mpamatch.engine.evaluation import evaluate_run
from mpamatch.engine.loop import resume, train
from mpamatch.errors import InputError, WriteError
from mpamatch.files import read_objects, replacing

UNWRITABLE = 3  # exit code of a worker that cannot write
RunResult = dict[str, Any]  # a line of results.jsonl


@dataclass(frozen=True)
class StudyRun:
    """A training run of a study: a method with settings, on the labelled images that a budget and a seed draw."""

    method: str
    labelled: str
    seed: int
    split: str  # the name of the file in splits/
    trial: str = "recipe"  # name of the settings
    flags: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of its folder and in its result."""
        return re.sub(r"[^\w.=-]+", "_", f"{self.method}-{self.trial}-{self.labelled.replace('%', 'pct')}") + (
            f"-seed{self.seed}"
        )


@dataclass(frozen=True)
class Sweep:
    """What all runs of a folder share.

    Attributes:
        out: the folder.
        data: a prepared set.
        recipe: the recipe to start from, if any.
        config: a YAML file on top of it, if any.
        test: whether each run is evaluated on the test part, once.
    """

    out: str
    data: str
    recipe: str | None = None
    config: str | None = None
    test: bool = False

    def run_folder(self, run: StudyRun) -> Path:
        """Returns the run folder of `run`."""
        return Path(self.out) / "runs" / run.name

    def configuration(self, run: StudyRun) -> Config:
        """Makes the configuration of `run`. Raises InputError as `mpamatch train` does."""
        own = {
            "data.root": self.data,
            "data.split": run.split,
            "method.name": run.method,
            "engine.seed": str(run.seed),
        }
        flags = [*run.flags, *(word for name, value in own.items() for word in (f"--{name}", value))]
        return load_config(self.recipe, Path(self.config) if self.config else None, flags)


def do_runs(
    sweep: Sweep,
    runs: Sequence[StudyRun],
    *,
    jobs: int,  # runs at a time, each a process of its own with its share of the cores; 0: one by one in this process
    say: Callable[[str], None],
) -> list[str]:
    """Does every run that has no result yet; returns the names of those that failed, whose errors `say` has shown."""
    results = read_results(Path(sweep.out))
    done = {result["name"] for result in results if "test" in result or not sweep.test}
    waiting = [run for run in runs if run.name not in done]
    failed: list[str] = []
    began = time.perf_counter()
    for number, (run, result) in enumerate(_finished(sweep, waiting, jobs), start=1):
        if isinstance(result, str):
            failed.append(run.name)
            say(f"{run.name}: failed: {result}")
            continue
        results = [one for one in results if one["name"] != run.name] + [result]
        left = (time.perf_counter() - began) / number * (len(waiting) - number)
        say(f"{run.name}: {score_line(result)} ({number} of {len(waiting)}, about {left / 60:.0f} min left)")
        write_results(Path(sweep.out), results)
    return failed


def do_run(sweep: Sweep, run: StudyRun) -> RunResult:
    """Trains, or resumes a run that was stopped, and evaluates the test part if the sweep asks for it.

    Raises InputError if the configuration is wrong or another process trains this very run.
    """
    folder, quiet = sweep.run_folder(run), new_console(quiet=True)
    config = sweep.configuration(run)
    held = f"{folder}: another process is training this run; wait for it or end it."
    with alone(folder.with_name(f".{folder.name}{LOCK}"), held):
        if (folder / "config.yaml").is_file():
            resume(folder, console=quiet)
        else:
            shutil.rmtree(folder, ignore_errors=True)  # killed while it began: holds nothing yet
            train(config, folder, console=quiet)
        test = evaluate_run(folder, None, "test", config.engine.device) if sweep.test else None
    lines = [line for line in read_objects(folder / "metrics.jsonl") if line is not None]
    steps = [line for line in lines if "loss" in line]
    scores = [line["validation"] for line in lines if "validation" in line]
    scored = [one for one in scores if one["mdice"] is not None]
    best = max(scored, key=lambda one: one["mdice"], default={"mdice": None, "miou": None})
    return {
        **{name: value for name, value in asdict(run).items() if name != "flags"},
        "name": run.name,
        "validation_mdice": best["mdice"],
        "validation_miou": best["miou"],
        "seconds": float(np.median([line["seconds"] for line in steps])),
        **{name: steps[-1].get(name) for name in config.trains.shares},
        "prototypes": {key: value for key, value in steps[-1].items() if key.startswith("prototypes/")},
        **({"test": test} if test else {}),
    }


def read_results(out: Path) -> list[RunResult]:
    """Reads OUT/results.jsonl; empty if there is none. Raises InputError for a line that is no result."""
    path = out / "results.jsonl"
    results = read_objects(path)
    for number, result in enumerate(results, start=1):
        if result is None or not _is_result(result):
            raise InputError(f"{path}: line {number} is no result of a run: remove it, and that run is scored again.")
    return [result for result in results if result is not None]


def _is_result(found: RunResult) -> bool:
    """Tells whether what a line holds has the fields of a result, with values of their types."""
    words = (found.get(name) for name in ("name", "labelled", "method", "trial"))
    test, prototypes = found.get("test", {"mdice": None}), found.get("prototypes", {})
    if not all(isinstance(one, dict) for one in (test, prototypes)) or type(found.get("seed")) is not int:
        return False
    scores = [found.get("validation_mdice"), found.get("validation_miou"), test.get("mdice"), test.get("miou")]
    numbers = [found.get("seconds"), *prototypes.values(), *(one for one in scores if one is not None)]
    known = all(type(one) in (int, float) and -1e9 < one < 1e9 for one in numbers)
    return known and all(isinstance(word, str) for word in words)


def write_results(out: Path, results: Sequence[RunResult]) -> None:
    """Writes OUT/results.jsonl, whole or not at all."""
    with replacing(out / "results.jsonl") as temporary:
        temporary.write_text("".join(f"{json.dumps(result)}\n" for result in results), encoding="utf-8")


def score_line(result: RunResult) -> str:
    """Formats the scores of a run, in percent."""
    parts = {"validation": result["validation_mdice"], "test": result.get("test", {}).get("mdice")}
    shown = [f"{part} mDice {100 * value:.2f}" for part, value in parts.items() if value is not None]
    return ", ".join(shown) or "no score"


def _finished(sweep: Sweep, runs: Sequence[StudyRun], jobs: int) -> Iterator[tuple[StudyRun, RunResult | str]]:
    """Yields each run when it ends, with its result or the sentence that says why it failed.

    Raises WriteError if the disk is full: every other run would meet the same.
    """
    if not jobs:
        for run in runs:
            try:
                yield run, do_run(sweep, run)
            except WriteError:
                raise
            except InputError as error:
                yield run, str(error)
        return
    pool, workers = ThreadPoolExecutor(jobs), set[subprocess.Popen[str]]()
    try:
        running: dict[Future[RunResult | str], StudyRun] = {
            pool.submit(_in_own_process, sweep, run, jobs, workers): run for run in runs
        }
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()
    finally:
        for process in list(workers):  # there are some after an interrupt alone
            process.kill()
        pool.shutdown(cancel_futures=True)  # an interrupt starts no further run


def _in_own_process(sweep: Sweep, run: StudyRun, jobs: int, workers: set[subprocess.Popen[str]]) -> RunResult | str:
    """Does the run in a process, whose memory and compiled graphs end with it; returns result or error.

    `workers` holds the process while it runs.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    command = [sys.executable, "-m", "mpamatch.studies.worker"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    pipe = subprocess.PIPE
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, text=True, env=environment) as process:
            workers.add(process)
            assert process.stdin is not None
            assert process.stdout is not None
            with suppress(BrokenPipeError):  # it ended before it read
                process.stdin.write(json.dumps({"sweep": asdict(sweep), "run": asdict(run)}) + "\n")
                process.stdin.flush()
            said = process.stdout.read()  # stdin stays open meanwhile: at its end the worker ends too
        workers.discard(process)
        errors.seek(0)
        told = errors.read().strip()
    if process.returncode == UNWRITABLE:
        raise WriteError(told.splitlines()[-1])
    if process.returncode:
        last = told.splitlines()[-1:] or [f"its process ended with {process.returncode}"]
        return last[0] if process.returncode == 2 else told or last[0]
    return json.loads(said.splitlines()[-1])
