"""The whole training step against other ways to write it: same weights, same data, a process each, in turns.

    python -m mpamatch.benchmarks.bench_step --recipe ebhi-seg-gland --data ROOT [--split S] [--steps 20] \\
        [--variants straightforward,published,eager,fused,compiled] [--out FILE] [--model.encoder uni …]

Any field of the configuration may follow. For each variant: seconds per step (median, p20, p80), the highest memory of
its process, and the share of forward and backward spent outside encoder and decoder. Steps begin where the prototype
terms have their full weight, and the learning rate is 0: the optimizer works, but all variants keep the same weights,
so that the losses of every step can be compared.

A frozen or adapted encoder without model.encoder_weights is one with random weights: times do not depend on them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from mpamatch.batch import Batch, to_device
from mpamatch.benchmarks import measure, rows, straightforward
from mpamatch.benchmarks.backends import EAGER, using
from mpamatch.benchmarks.command import append_rows, run_main
from mpamatch.benchmarks.measure import summary
from mpamatch.benchmarks.shares import inside_seconds, marked
from mpamatch.console import new_console
from mpamatch.engine.build import open_data
from mpamatch.engine.config import Config, load_config
from mpamatch.engine.loop import Trainer
from mpamatch.errors import InputError, unknown
from mpamatch.models.encoders import build_encoder
from mpamatch.ops import dispatch

PROFILED = 3  # steps behind the shares
LOSS_TOLERANCE = 1e-5  # relative


class Variant(NamedTuple):
    about: str
    backend: str = "auto"
    flags: tuple[str, ...] = ()
    passes: str = "ours"  # ours; published (UniMatch's order, our losses); straightforward (all of it as first written)


PLAIN = ("--engine.fused", "false", "--engine.keep_memory", "false")
VARIANTS = {
    "straightforward": Variant("UniMatch's loop, prototypes class by class", EAGER, PLAIN, "straightforward"),
    "published": Variant("the published order of passes, fused operations", passes="published"),
    "eager": Variant("our order of passes, eager operations", EAGER),
    "fused": Variant("our order of passes, fused operations"),
    "compiled": Variant("the same as one graph", flags=("--engine.compile", "default")),
}


@dataclass
class StepRow:
    """One variant of one configuration; `operations` says what runs each of them. Times are in seconds.

    `outside` is the share of forward + backward outside encoder and decoder (None where it is one graph),
    `outside_seconds` that share of the profiled step; `peak_bytes` the highest memory of a process that trains (CPU:
    resident; CUDA: torch's allocator); `difference` the largest relative one of a loss from the first variant's.
    """

    recipe: str
    settings: str
    variant: str
    operations: dict[str, str]
    steps: int
    median: float
    p20: float
    p80: float
    outside: float | None
    outside_seconds: float | None
    peak_bytes: int | None
    difference: float
    device: str
    machine: str
    torch: str
    load: float


class Run:
    """One variant in training: its own weights, optimizer and prototypes, from the recipe's seed."""

    def __init__(self, config: Config, variant: Variant):
        self.variant = variant
        self.trainer = Trainer(config, open_data(config), new_console(quiet=True))
        self.method, self.device = self.trainer.method, self.trainer.fabric.device
        self.method.train()
        if variant.passes != "ours":
            plain = straightforward.check(self.method)
            if variant.passes == "published":
                plain.see = lambda batch: straightforward.passes(plain, batch)[0]

    def batch(self, number: int) -> Batch:
        return to_device(self.trainer.feed[number], self.device)

    def step(self, number: int) -> tuple[float, float]:
        """The loss, and the seconds of forward, backward and optimizer."""
        batch = self.batch(number)
        self.wait()
        began = time.perf_counter()
        with using(self.variant.backend):
            loss = self.forward(batch, number)
            self.trainer.fabric.backward(loss)
            self.optimize(number)
            self.wait()
        return float(loss.detach()), time.perf_counter() - began

    def forward(self, batch: Batch, number: int) -> Tensor:
        clock = self.clock(number)
        if self.variant.passes == "straightforward":
            with self.trainer.fabric.autocast():
                return straightforward.forward(straightforward.check(self.method), batch, clock)["loss"]
        return self.trainer.step_module(batch, clock)["loss"]

    def optimize(self, number: int) -> None:
        self.trainer.wrapped_optimizer.step()
        self.trainer.wrapped_optimizer.zero_grad()
        self.method.after_step(self.clock(number))

    def clock(self, number: int) -> Tensor:
        return torch.full((), number, dtype=torch.int64, device=self.device)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def peak(self) -> int | None:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        return measure.resident("VmHWM") if measure.PAGE_STATE.is_file() else None

    def outside(self, start: int) -> tuple[float, float] | None:
        """The share of forward + backward outside encoder and decoder, and those seconds per step."""
        if self.trainer.config.engine.compile != "none":
            return None
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.device.type == "cuda" else [])]
        inside = total = 0.0
        for number in range(start, start + PROFILED):
            batch = self.batch(number)
            with using(self.variant.backend), marked(self.method), profile(activities=activities) as seen:
                with record_function("benchmark::forward"):
                    loss = self.forward(batch, number)
                with record_function("benchmark::backward"):
                    self.trainer.fabric.backward(loss)
            self.optimize(number)
            spent = inside_seconds(seen.events() or [])
            inside, total = inside + spent[0], total + spent[1]
        return 1 - inside / total, (total - inside) / PROFILED


def first_step(config: Config) -> int:
    """Where all terms of the loss have their full weight."""
    return config.trains.settled(config.method)


def work(config: Config, variant: Variant, orders: Iterator[str], answer: Any) -> None:
    """What a variant's process does: one step for each line with its number, then on "end" the shares and the peak."""
    run = Run(config, variant)
    with using(variant.backend):
        answer({"operations": dispatch.prepare(str(run.device)), "device": run.device.type})
    number = 0
    for order in orders:
        if order.strip() == "end":
            peak = run.peak()  # before the profiler, which needs memory of its own
            answer({"peak": peak, "outside": run.outside(number + 1)})
            return
        number = int(order)
        loss, seconds = run.step(number)
        answer({"loss": loss, "seconds": seconds})


class Worker:
    """A variant's process, as the one that measures sees it."""

    def __init__(self, name: str, words: Sequence[str]):
        command = [sys.executable, "-m", "mpamatch.benchmarks.bench_step", *words, "--worker", name]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.name, self.losses, self.seconds = name, list[float](), list[float]()
        self.about = self.read()

    def ask(self, order: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{order}\n")
        self.process.stdin.flush()
        return self.read()

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise InputError(f"bench_step: the process of {self.name} ended with code {self.process.wait()}.")
        return json.loads(line)

    def end(self) -> dict[str, Any]:
        """The last answer. The process is gone then: what it still had to do would slow the next one's profile."""
        answer = self.ask("end")
        self.process.wait()
        return answer

    def step(self, number: int, *, timed: bool) -> None:
        answer = self.ask(str(number))
        self.losses.append(answer["loss"])
        if timed:
            self.seconds.append(answer["seconds"])


def compare(config: Config, names: Sequence[str], words: Sequence[str], steps: int) -> list[StepRow]:
    """All variants step by step, one at a time; the first step warms up and is not timed."""
    start, load, settings = first_step(config), measure.load(), " ".join(_settings(words))
    workers = [Worker(name, words) for name in names]
    for number in range(start, start + steps + 1):
        for worker in workers if number % 2 else reversed(workers):
            worker.step(number, timed=number > start)
    found = []
    for worker in workers:
        timing, end = summary(worker.seconds, "wall"), worker.end()
        outside, outside_seconds = end["outside"] or (None, None)
        found.append(
            StepRow(
                recipe=config.recipe,
                settings=settings,
                variant=worker.name,
                operations=worker.about["operations"],
                steps=steps,
                median=timing.median,
                p20=timing.p20,
                p80=timing.p80,
                outside=outside,
                outside_seconds=outside_seconds,
                peak_bytes=end["peak"],
                difference=difference(worker.losses, workers[0].losses),
                device=worker.about["device"],
                machine=measure.machine(worker.about["device"]),
                torch=torch.__version__,
                load=load,
            )
        )
    return found


def difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The largest |ours − theirs| / |theirs|."""
    return max(abs(one - other) / abs(other) for one, other in zip(ours, theirs, strict=True))


def _settings(words: Sequence[str]) -> Iterator[str]:
    """The fields among the words, without those that say where the data lie."""
    for name, value in pairwise(words):
        if name.startswith("--") and "." in name and name not in ("--model.encoder_weights",):
            yield f"{name.removeprefix('--')}={value}"


@contextmanager
def random_weights(config: Config) -> Iterator[list[str]]:
    """Flags that name a file of random weights if the encoder is to be kept and RANDOM stands for its weights."""
    if config.model.tuning == "full" or config.model.encoder_weights != RANDOM:
        yield []
        return
    encoder = build_encoder(config.model.encoder, None, config.model.norm)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.safetensors"
        save_file(getattr(encoder, "vit", encoder).state_dict(), path)
        del encoder
        yield ["--model.encoder_weights", str(path)]


RANDOM = "random"  # in place of weights that nobody named
HEADER = ("variant", "steps", "ms/step", "p20–p80", "outside", "outside ms", "peak MB", "loss differs by")


def cells(row: StepRow) -> list[str]:
    peak = "–" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.0f}"
    spread = f"{rows.milliseconds(row.p20)}–{rows.milliseconds(row.p80)}"
    share, outside = "–", "–"
    if row.outside is not None and row.outside_seconds is not None:
        share, outside = f"{100 * row.outside:.1f} %", rows.milliseconds(row.outside_seconds)
    return [row.variant, str(row.steps), rows.milliseconds(row.median), spread, share, outside, peak] + [
        f"{row.difference:.1e}"
    ]


def main(words: list[str] | None = None) -> int:
    """Returns 0, or 1 where a loss differs by more than 1e-5."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--data", required=True, type=Path, help="a prepared folder")
    parser.add_argument("--split", help="which of its splits, where there are several")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--variants", default=",".join(VARIANTS), help="which, the first is what losses compare with")
    parser.add_argument("--out", type=Path, help="JSON lines to append to")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments, fields = parser.parse_known_args(words)
    flags = ["--data.root", str(arguments.data), *(["--data.split", arguments.split] if arguments.split else [])]
    flags += ["--engine.learning_rate", "0", *fields]
    if arguments.worker:
        variant = VARIANTS[arguments.worker]
        lines = _own_output()
        work(load_config(arguments.recipe, None, [*flags, *variant.flags]), variant, sys.stdin, lines)
        return 0
    names = arguments.variants.split(",")
    for name in names:
        if name not in VARIANTS:
            raise unknown("variant", name, VARIANTS)
    wanted = load_config(arguments.recipe, None, ["--model.encoder_weights", RANDOM, *flags])
    with random_weights(wanted) as weights:
        config = load_config(arguments.recipe, None, [*flags, *weights])
        given = ["--recipe", arguments.recipe, "--data", str(arguments.data)]
        given += [*(["--split", arguments.split] if arguments.split else []), *fields, *weights]
        found = compare(config, names, given, arguments.steps)
    title = " ".join(word for word in ("training step:", found[0].recipe, found[0].settings) if word)
    rows.show(title, HEADER, [cells(row) for row in found], text_columns=1)
    if arguments.out:
        append_rows(arguments.out, found)
    return 1 if max(row.difference for row in found) > LOSS_TOLERANCE else 0


def _own_output() -> Any:
    """Writes answers to what was standard output; whatever libraries print goes to standard error instead."""
    stream = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(content: dict[str, Any]) -> None:
        stream.write(json.dumps(content) + "\n")
        stream.flush()

    return answer


if __name__ == "__main__":
    run_main(main)
