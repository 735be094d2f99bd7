"""The whole training step with fused operations and with eager ones: same weights, same data, in turns.

    python -m mpamatch.benchmarks.bench_step --recipe demo|ebhi-seg-gland --data ROOT [--steps 20] [--out FILE]

For each backend: seconds per step (median, p20, p80), the highest resident memory of a process of its own, and the
share of forward and backward spent outside encoder and decoder. Steps begin where the recipe's prototype terms have
their full weight. Every step starts from eager's weights in both, and the losses are compared: left alone, the two
would part after three steps, as AdamW divides rounding errors of small gradients by their own size.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from mpamatch.batch import Batch, to_device
from mpamatch.benchmarks import measure, rows
from mpamatch.benchmarks.backends import EAGER, using
from mpamatch.benchmarks.measure import summary
from mpamatch.engine.build import open_data
from mpamatch.engine.checkpoints import choose_device
from mpamatch.engine.config import Config, load_config
from mpamatch.engine.loop import Trainer
from mpamatch.errors import InputError
from mpamatch.methods import Method
from mpamatch.ops import dispatch

FUSED = "auto"
PROFILED = 3  # steps behind the shares
LOSS_TOLERANCE = 1e-5  # relative
INSIDE = "benchmark::encoder_or_decoder"
BACKWARD = "autograd::engine::evaluate_function: "


@dataclass
class StepRow:
    """One backend of one recipe; `operations` says what runs each of them. Times are in seconds.

    `outside` is the share of forward + backward outside encoder and decoder, `outside_seconds` that share of the
    profiled step; `difference` the largest relative one of a loss from eager's.
    """

    recipe: str
    backend: str
    operations: dict[str, str]
    steps: int
    median: float
    p20: float
    p80: float
    outside: float
    outside_seconds: float
    peak_resident_bytes: int | None
    difference: float
    machine: str
    torch: str
    load: float


class Run:
    """One method in training with one backend: its own weights, optimizer and prototypes, from the recipe's seed."""

    def __init__(self, config: Config, backend: str):
        self.backend = backend
        self.trainer = Trainer(config, open_data(config), Console(quiet=True))
        self.method, self.device = self.trainer.method, self.trainer.fabric.device
        self.method.train()

    @torch.no_grad()
    def take_weights(self, other: "Run") -> None:
        for mine, its in zip(self.method.state_dict().values(), other.method.state_dict().values(), strict=True):
            mine.copy_(its)

    def batch(self, number: int) -> Batch:
        return to_device(self.trainer.feed[number], self.device)

    def step(self, batch: Batch, number: int) -> tuple[float, float]:
        """The loss, and the seconds of forward, backward and optimizer."""
        began = time.perf_counter()
        with using(self.backend):
            loss = self.forward(batch, number)
            self.backward(loss)
            self.optimize(number)
            return float(loss.detach()), time.perf_counter() - began

    def forward(self, batch: Batch, number: int) -> Tensor:
        return self.trainer.step_module(batch, self.clock(number))["loss"]

    def backward(self, loss: Tensor) -> None:
        self.trainer.fabric.backward(loss)

    def optimize(self, number: int) -> None:
        self.trainer.wrapped_optimizer.step()
        self.trainer.wrapped_optimizer.zero_grad()
        self.method.after_step(self.clock(number))

    def clock(self, number: int) -> Tensor:
        return torch.full((), number, dtype=torch.int64, device=self.device)


def first_step(config: Config) -> int:
    """Where the prototype terms have their full weight."""
    return int(getattr(config.method, "start", 0)) + int(getattr(config.method, "ramp", 0))


def compare(config: Config, steps: int) -> list[StepRow]:
    """Both backends step by step, from the same weights on the same batch; the first step warms up and is not timed."""
    runs = eager, fused = Run(config, EAGER), Run(config, FUSED)
    seconds: dict[str, list[float]] = {run.backend: [] for run in runs}
    losses: dict[str, list[float]] = {run.backend: [] for run in runs}
    start, load = first_step(config), measure.load()
    for number in range(start, start + steps + 1):
        batch = eager.batch(number)
        fused.take_weights(eager)
        for run in runs if number % 2 else reversed(runs):
            loss, taken = run.step(batch, number)
            losses[run.backend].append(loss)
            if number > start:
                seconds[run.backend].append(taken)
    shares = {run.backend: outside_share(run, start + steps + 1) for run in runs}
    found = []
    for backend, taken_by_steps in seconds.items():
        timing = summary(taken_by_steps, "wall")
        outside, outside_seconds = shares[backend]
        found.append(
            StepRow(
                recipe=config.recipe,
                backend="fused" if backend == FUSED else backend,
                operations=operations(backend, eager.device.type),
                steps=steps,
                median=timing.median,
                p20=timing.p20,
                p80=timing.p80,
                outside=outside,
                outside_seconds=outside_seconds,
                peak_resident_bytes=None,
                difference=difference(losses[backend], losses[EAGER]),
                machine=measure.machine(eager.device.type),
                torch=torch.__version__,
                load=load,
            )
        )
    return found


def operations(backend: str, device: str) -> dict[str, str]:
    """What runs each operation."""
    with using(backend):
        return dispatch.prepare(device)


def difference(ours: list[float], theirs: list[float]) -> float:
    """The largest |ours − theirs| / |theirs|."""
    return max(abs(one - other) / abs(other) for one, other in zip(ours, theirs, strict=True))


def outside_share(run: Run, start: int) -> tuple[float, float]:
    """The share of forward + backward outside encoder and decoder, and those seconds per step, from the profiler."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if run.device.type == "cuda" else [])]
    inside = total = 0.0
    for number in range(start, start + PROFILED):
        batch = run.batch(number)
        with using(run.backend), marked(run.method), profile(activities=activities) as seen:
            with record_function("benchmark::forward"):
                loss = run.forward(batch, number)
            with record_function("benchmark::backward"):
                run.backward(loss)
        run.optimize(number)
        spent = inside_seconds(seen.events() or [])
        inside, total = inside + spent[0], total + spent[1]
    return 1 - inside / total, (total - inside) / PROFILED


@contextmanager
def marked(method: Method) -> Iterator[None]:
    """Every call of the encoder and the decoder runs within a range that the profiler sees."""
    open_ranges: list[record_function] = []

    def enter(module: nn.Module, arguments: object) -> None:
        open_ranges.append(record_function(INSIDE))
        open_ranges[-1].__enter__()

    def leave(module: nn.Module, arguments: object, result: object) -> None:
        open_ranges.pop().__exit__(None, None, None)

    parts = (method.model.encoder, method.model.decoder)
    hooks = [hook for part in parts for hook in _hooks(part, enter, leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _hooks(part, enter, leave):
    return part.register_forward_pre_hook(enter), part.register_forward_hook(leave)


def inside_seconds(events: list[FunctionEvent]) -> tuple[float, float]:
    """(seconds inside encoder and decoder, seconds in all), forward and backward together.

    Forward: the marked ranges. Backward: a node of the graph bears the sequence number that its forward operation was
    given; numbers are given in order, so the last operation that starts with a number is the one that made the node.
    A node belongs inside where that operation started within a marked range, and so do the accumulations of gradients
    that directly follow it.
    """
    whole = sum(_seconds(e) for e in events if e.name in ("benchmark::forward", "benchmark::backward"))
    ranges = sorted((e.time_range.start, e.time_range.end) for e in events if e.name == INSIDE)
    forward = sum(end - start for start, end in ranges) / 1e6
    nodes = sorted((e for e in events if e.name.startswith(BACKWARD)), key=lambda e: e.time_range.start)
    began = nodes[0].time_range.start
    made_at: dict[int, float] = {}
    for event in events:
        if event.sequence_nr >= 0 and event.time_range.start < began:
            made_at[event.sequence_nr] = max(event.time_range.start, made_at.get(event.sequence_nr, 0.0))
    backward, inside = 0.0, False
    for node in nodes:
        if "AccumulateGrad" not in node.name:
            at = made_at.get(node.sequence_nr, -1.0)
            inside = any(start <= at <= end for start, end in ranges)
        backward += _seconds(node) if inside else 0.0
    return forward + backward, whole


def _seconds(event: FunctionEvent) -> float:
    return (event.time_range.end - event.time_range.start) / 1e6


def peak_resident(arguments: argparse.Namespace, backend: str) -> int | None:
    """The highest resident memory of a process of its own that trains three steps with `backend`."""
    words = ["--recipe", arguments.recipe, "--data", str(arguments.data), "--peak-of", backend]
    words += ["--split", arguments.split] if arguments.split else []
    command = [sys.executable, "-m", "mpamatch.benchmarks.bench_step", *words]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def own_peak(config: Config, backend: str) -> int | None:
    """Of this process: three steps, all memory mapped anew, so that pages given back do not hide the peak."""
    run, start = Run(config, backend), first_step(config)
    with measure.memory("counted"):
        if not measure.restart_peak():
            return None
        for number in range(start, start + 3):
            run.step(run.batch(number), number)
        return measure.resident("VmHWM")


HEADER = ("recipe", "backend", "steps", "ms/step", "p20–p80", "outside", "outside ms", "peak MB", "loss differs by")


def cells(row: StepRow) -> list[str]:
    peak = "–" if row.peak_resident_bytes is None else f"{row.peak_resident_bytes / 1e6:.0f}"
    spread = f"{rows.milliseconds(row.p20)}–{rows.milliseconds(row.p80)}"
    share = f"{100 * row.outside:.1f} %"
    times = [rows.milliseconds(row.median), spread, share, rows.milliseconds(row.outside_seconds)]
    return [row.recipe, row.backend, str(row.steps), *times, peak, f"{row.difference:.1e}"]


def main(words: list[str] | None = None) -> int:
    """Returns 0, or 1 where a loss differs by more than 1e-5."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--data", required=True, type=Path, help="a prepared folder")
    parser.add_argument("--split", help="which of its splits, where there are several")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, help="JSON lines to append to")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)  # a process of its own for each backend's memory
    arguments = parser.parse_args(words)
    flags = ["--data.root", str(arguments.data), *(["--data.split", arguments.split] if arguments.split else [])]
    config = load_config(arguments.recipe, None, flags)
    if arguments.peak_of:
        print(json.dumps(own_peak(config, arguments.peak_of)))
        return 0
    if set(operations(FUSED, choose_device(config.engine.device).type).values()) == {EAGER}:
        raise InputError("bench_step: no fused operation runs here, so there is nothing to compare; see mpamatch info.")
    found = compare(config, arguments.steps)
    for row, backend in zip(found, (EAGER, FUSED), strict=True):
        row.peak_resident_bytes = peak_resident(arguments, backend)
    rows.show("training step", HEADER, [cells(row) for row in found], text_columns=2)
    if arguments.out:
        with arguments.out.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(row)) + "\n" for row in found)
    return 1 if max(row.difference for row in found) > LOSS_TOLERANCE else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
