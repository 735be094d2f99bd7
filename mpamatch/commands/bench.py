"""`mpamatch bench`: measures the kernels against what one would use instead, or tunes them."""

import argparse
from pathlib import Path

import torch

from mpamatch.benchmarks import goals, rows, suite
from mpamatch.benchmarks.all import BENCHMARKS
from mpamatch.benchmarks.cases import BYTES
from mpamatch.benchmarks.measure import machine
from mpamatch.benchmarks.pretend import pretended
from mpamatch.benchmarks.suite import Benchmark, Settings
from mpamatch.errors import InputError, unknown

DTYPES = {"cpu": ("float32",), "cuda": ("bfloat16", "float32")}


def run(arguments: argparse.Namespace) -> int:
    """Measures, prints the tables, writes JSON lines and the roofline picture; returns 0."""
    device = _device(arguments.device)
    if arguments.tune:
        from mpamatch.benchmarks.tune import tune

        if device != "cuda" and not pretended():
            raise InputError("bench --tune: tile sizes are timed on a CUDA device, and torch sees none here.")
        return tune(arguments.op, arguments.seconds, Path(arguments.out) if arguments.out else None)
    chosen = choose(arguments.op)
    settings = Settings(device, arguments.sizes, _dtypes(arguments.dtype, device), _compare(arguments.compare, chosen))
    out = Path(arguments.out) if arguments.out else rows.results_file(machine(device))
    found: list[rows.Row] = []
    try:
        for of_case in suite.run(chosen, settings):
            found += of_case
            rows.write(out, of_case)  # at once: a run that is stopped keeps what it has
            last = of_case[-1]
            print(f"{last.operation} {last.direction} {last.size} {last.allocation}: measured", flush=True)
    finally:  # what was measured is shown, even if it cannot be written
        report(found)
    print(f"wrote {out}")
    draw(out)
    return 0


def choose(operation: str | None) -> list[Benchmark]:
    """Selects all benchmarks, or those of one operation. Raises InputError if there is none of that name."""
    if operation is None:
        return list(BENCHMARKS)
    chosen = [benchmark for benchmark in BENCHMARKS if operation in benchmark.operation.split("+")]
    if not chosen:
        raise unknown("operation", operation, {name for b in BENCHMARKS for name in b.operation.split("+")})
    return chosen


def report(found: list[rows.Row]) -> None:
    """Prints the measurements, and beside each goal whether it is met."""
    rows.show("measurements", rows.HEADER, [rows.cells(row) for row in found], text_columns=5)
    verdicts = [verdict.cells() for verdict in goals.judge(found)]
    if verdicts:
        rows.show("against the competitors and the goals", goals.HEADER, verdicts, text_columns=6)


def draw(results: Path) -> None:
    """Draws the roofline of a results file as a PNG beside it, if matplotlib is installed."""
    if pretended():
        print("no picture: this is a dry run")
        return
    try:
        from mpamatch.benchmarks import roofline
    except ImportError as error:
        print(f"no picture: {error}")
        return
    picture = roofline.draw(results, results.with_suffix(".png"))
    print(f"drew {picture}" if picture else "no picture: no row has a time")


def _device(wanted: str | None) -> str:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("bench --device cuda: torch sees no GPU here.")
    return wanted or ("cuda" if torch.cuda.is_available() else "cpu")


def _dtypes(words: str | None, device: str) -> tuple[str, ...]:
    if words is None:
        return DTYPES[device]
    for word in words.split(","):
        if word not in BYTES:
            raise unknown("dtype", word, BYTES)
    return tuple(words.split(","))


def _compare(words: str | None, benchmarks: list[Benchmark]) -> tuple[str, ...] | None:
    if words is None:
        return None
    known = {name for benchmark in benchmarks for name in benchmark.names}
    for word in words.split(","):
        if word not in known:
            raise unknown("competitor", word, known)
    return tuple(words.split(","))
