"""The network of a run as ONNX against torch: CPU seconds a window, and the largest difference of a probability.

    python -m mpamatch.benchmarks.bench_export RUN… [--data ROOT] [--windows 50] [--batch 8] [--seconds 20]

Each run is exported as `mpamatch export` does it, compared with torch on all windows, and timed on them with one thread
each, in turns: onnxruntime, torch, and torch with weights laid out channels-last, as `mpamatch predict` has them. All
three compute the same graph, scale and normalisation included. CPU seconds count, as a busy machine's wall clock says
little. Windows are those of the run's own data, or of --data, one from each of as many images.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mpamatch.benchmarks.command import run_main
from mpamatch.commands import export
from mpamatch.data.prepared import load_prepared
from mpamatch.engine.config import load_saved
from mpamatch.inference.checkpoint import load_segmenter
from mpamatch.inference.export.graph import Deployed
from mpamatch.inference.export.onnx_file import Checked, export_onnx
from mpamatch.inference.export.runtime import IMAGE, PROBABILITIES, open_session

Way = Callable[[np.ndarray], Any]


class Row(NamedTuple):
    """CPU seconds a window of each way (median of the turns), and how the file compares with torch."""

    run: str
    checked: Checked
    seconds: dict[str, float]
    turns: int


def main(words: list[str] | None = None) -> int:
    """Prints a row for each run; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, help="a prepared set (the one that each was trained on)")
    parser.add_argument("--windows", type=int, default=50)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20.0, help="of CPU for the turns of a run, three at least")
    wanted = parser.parse_args(words)
    torch.set_num_threads(1)
    for run in wanted.runs:
        print(line(measure(run, wanted)), flush=True)
    return 0


def measure(run: Path, wanted: argparse.Namespace) -> Row:
    """Exports a run, compares it and times it."""
    segmenter = load_segmenter(run, "cpu")
    prepared = load_prepared(wanted.data or Path(load_saved(run / "config.yaml").data.root or ""))
    windows, _ = export.windows_of(segmenter, prepared, None, wanted.windows)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        checked = export_onnx(segmenter, file, windows, {})
        session = open_session(file)
    plain, last = (Deployed(segmenter, checked.frame) for _ in range(2))
    last.network.to(memory_format=torch.channels_last)
    ways: dict[str, Way] = {
        "onnxruntime": lambda batch: session.run([PROBABILITIES], {IMAGE: batch}),
        "torch": lambda batch: plain(torch.from_numpy(batch)),
        "torch, channels-last": lambda batch: last(torch.from_numpy(batch)),
    }
    whole = np.stack([one.transpose(2, 0, 1) for one in windows])
    batches = [np.ascontiguousarray(whole[at : at + wanted.batch]) for at in range(0, len(whole), wanted.batch)]
    seconds, turns = in_turns(ways, batches, wanted.seconds)
    return Row(run.name, checked, {name: each / len(whole) for name, each in seconds.items()}, turns)


def in_turns(ways: dict[str, Way], batches: list[np.ndarray], most: float) -> tuple[dict[str, float], int]:
    """Runs all batches by each way in turn; returns the median of CPU seconds, and of how many turns."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    began = time.process_time()
    with torch.inference_mode():
        for way in ways.values():
            way(batches[0])  # memory, and kernels chosen for these sizes
        while len(found["torch"]) < 3 or time.process_time() - began < most:
            for name, way in ways.items():
                start = time.process_time()
                for batch in batches:
                    way(batch)
                found[name].append(time.process_time() - start)
    return {name: float(np.median(each)) for name, each in found.items()}, len(found["torch"])


def line(row: Row) -> str:
    """Formats a row of a table in Markdown."""
    frame, each = row.checked.frame, row.seconds
    free = f"multiples of {frame.step}" if frame.step else "fixed"
    times = " | ".join(f"{1000 * seconds:.1f}" for seconds in each.values())
    ratios = " | ".join(f"{each[name] / each['onnxruntime']:.2f}" for name in list(each)[1:])
    return (
        f"| {row.run} | {frame.window}² ({free}) | {row.checked.windows} | {row.checked.difference:.2g} | "
        f"{row.checked.labels_alike:.3%} | {times} | {ratios} | {row.turns} |"
    )


if __name__ == "__main__":
    run_main(main)
