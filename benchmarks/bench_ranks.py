"""Bytes that the ranks exchange in one training step: handed to collectives, seen on the wire, and counted from shapes.

    python -m mpamatch.benchmarks.bench_ranks [--recipes demo,ebhi-seg-gland] [--steps 10] [--out FILE]

Measured: two gloo ranks train on made-up tissue. The gradients are counted in the hook of DistributedDataParallel, all
else where it is handed to torch.distributed, and the loopback device's own counter says what went over the wire.
Counted: UNI (ViT-L) from the shapes of its parameters alone, no weight is made; what its prototypes exchange follows
from their number and width, as the measured rows confirm.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from mpamatch import ranks
from mpamatch.batch import to_device
from mpamatch.benchmarks import measure, rows
from mpamatch.benchmarks.command import append_rows, run_main
from mpamatch.commands.demo import make_tissue
from mpamatch.console import new_console
from mpamatch.data.splits import write_split
from mpamatch.engine.build import open_data
from mpamatch.engine.config import Config, load_config
from mpamatch.engine.loop import Trainer
from mpamatch.methods import build_method
from mpamatch.models.build import build_model

LOOPBACK = Path("/sys/class/net/lo/statistics/rx_bytes")
WINDOWS = 3  # of steps under the loopback counter; other processes can only add to it, so the least one counts
CLASSES = 2  # of made-up tissue, as of EBHI-Seg's glands
LORA_RANK = 8
UNI = ["--model.encoder", "uni", "--model.decoder_width", "512", "--model.decoder_channels", "[256,128,64,16]"]


@dataclass
class RankRow:
    """Bytes of one rank and one step: `gradients` in `buckets` messages, `prototypes` and `losses` in `calls` of them.

    `loopback` is what both ranks of a measured row sent in one step, None where nothing was sent. A ring all-reduce of
    S bytes over n ranks sends 2·(n − 1)·S in all, so two ranks should show 2·S and the headers of TCP.
    """

    model: str
    how: str  # measured or counted
    ranks: int
    gradients: int
    buckets: int | None
    prototypes: int
    losses: int
    calls: int | None
    loopback: float | None
    steps: int
    machine: str
    torch: str
    load: float

    @property
    def total(self) -> int:
        return self.gradients + self.prototypes + self.losses


class Tally:
    """Adds up what this rank hands to others, by what it is for."""

    def __init__(self) -> None:
        self.bytes: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def add(self, purpose: str, tensor: Tensor) -> None:
        self.bytes[purpose] += tensor.numel() * tensor.element_size()
        self.calls[purpose] += 1

    def hook(self, group: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        """What DistributedDataParallel calls for each bucket of gradients, in place of its own all-reduce."""
        self.add("gradients", bucket.buffer())
        return allreduce_hook(group, bucket)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Counts every all_reduce that mpamatch.ops (for prototypes) and mpamatch.methods (for losses) ask for."""
        reduce = dist.all_reduce

        def all_reduce(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            caller = sys._getframe(1).f_globals["__name__"]
            purpose = {"mpamatch.ops": "prototypes", "mpamatch.methods": "losses"}.get(caller.rpartition(".")[0])
            if purpose:  # else the hook above, which has counted it
                self.add(purpose, tensor)
            return reduce(tensor, *args, **kwargs)

        with mock.patch.object(dist, "all_reduce", all_reduce):
            yield


class Run:
    """One recipe in training on this rank."""

    def __init__(self, config: Config):
        self.trainer, self.tally = Trainer(config, open_data(config), new_console(quiet=True)), Tally()
        self.trainer.method.train()
        wrapped: Any = self.trainer.step_module
        self.parallel = next(part for part in wrapped.modules() if isinstance(part, DistributedDataParallel))
        self.parallel.register_comm_hook(None, self.tally.hook)
        self.done = 0

    def step(self) -> None:
        trainer, clock = self.trainer, torch.full((), self.done, dtype=torch.int64)
        loss = trainer.step_module(to_device(trainer.feed[self.done], trainer.fabric.device), clock)["loss"]
        trainer.fabric.backward(loss * ranks.size())
        trainer.wrapped_optimizer.step()
        trainer.wrapped_optimizer.zero_grad()
        trainer.method.after_step(clock)
        self.done += 1

    def count(self, steps: int) -> Tally:
        """The tally of so many steps; one step before them is not counted."""
        self.step()
        self.tally.bytes.clear()
        self.tally.calls.clear()
        with self.tally.listening():
            for _ in range(steps):
                self.step()
        return self.tally

    def loopback(self, steps: int) -> float | None:
        """Bytes per step over the loopback device, of all ranks; None where it has no counter."""
        if not LOOPBACK.is_file():
            return None
        seen = []
        for _ in range(WINDOWS):
            dist.barrier()
            before = int(LOOPBACK.read_text())
            for _ in range(steps):
                self.step()
            dist.barrier()
            seen.append((int(LOOPBACK.read_text()) - before) / steps)
        return min(seen)


def measured(config: Config, steps: int) -> RankRow:
    """What two ranks exchange in training with `config`; both call this."""
    load, run = measure.load(), Run(config)
    tally = run.count(steps)
    each = {purpose: tally.bytes[purpose] // steps for purpose in ("gradients", "prototypes", "losses")}
    return RankRow(
        model=config.recipe,
        how="measured",
        ranks=ranks.size(),
        buckets=tally.calls["gradients"] // steps,
        calls=(tally.calls["prototypes"] + tally.calls["losses"]) // steps,
        loopback=run.loopback(steps),
        steps=steps,
        machine=measure.machine("cpu"),
        torch=torch.__version__,
        load=load,
        **each,
    )


def counted(losses: int) -> list[RankRow]:
    """UNI with every encoder weight, adapters alone, or no encoder weight in training, under the method's defaults.

    `losses`: bytes of the loss sums, as measured with as many classes.
    """
    config = load_config("folder", None, UNI)
    settings = replace(config.method, embedding_width=256)
    with torch.device("meta"):
        method = build_method(settings, build_model(config.model, CLASSES), [str(index) for index in range(CLASSES)])
    encoder = parameters(method.model.encoder)
    rest = parameters(method) - encoder
    trained = {"full": encoder, f"LoRA of rank {LORA_RANK}": adapters(method.model.encoder, LORA_RANK), "frozen": 0}
    return [
        RankRow(
            model=f"UNI, {tuning}",
            how="counted",
            ranks=2,
            gradients=4 * (part + rest),
            buckets=None,
            prototypes=prototype_bytes(settings, CLASSES),
            losses=losses,
            calls=None,
            loopback=None,
            steps=0,
            machine=measure.machine("cpu"),
            torch=torch.__version__,
            load=measure.load(),
        )
        for tuning, part in trained.items()
    ]


def parameters(module: nn.Module) -> int:
    """Numbers that gradients are exchanged for, 4 bytes each in 32 and in bf16 (mixed)."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def adapters(encoder: nn.Module, rank: int) -> int:
    """Numbers in adapters of that rank beside the attention's projections: rank · (inputs + outputs) each."""
    found = (m for name, m in encoder.named_modules() if name.endswith((".attn.qkv", ".attn.proj")))
    return sum(rank * (m.in_features + m.out_features) for m in found if isinstance(m, nn.Linear))


def prototype_bytes(method: Any, classes: int) -> int:
    """C·K numbers for each of Sinkhorn's iterations and C·K·D for the update, float32."""
    iterations = method.iterations if method.assignment == "sinkhorn" else 0
    return 4 * classes * method.prototypes * (iterations + method.embedding_width)


HEADER = ("model", "how", "gradients MB", "buckets", "prototypes kB", "losses B", "calls", "loopback MB", "of 2·S")


def cells(row: RankRow) -> list[str]:
    wire = ["–", "–"]
    if row.loopback is not None:
        wire = [f"{row.loopback / 1e6:.3f}", f"{row.loopback / (2 * (row.ranks - 1) * row.total):.3f}"]
    buckets, calls = ("–" if number is None else str(number) for number in (row.buckets, row.calls))
    sizes = [f"{row.gradients / 1e6:.3f}", buckets, f"{row.prototypes / 1e3:.2f}", str(row.losses), calls]
    return [row.model, row.how, *sizes, *wire]


def as_ranks(words: list[str]) -> int:
    """Runs this file again on two ranks, with made-up tissue to train on; the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        data = make_tissue(Path(folder) / "tissue", seed=0)
        write_split(data, "2", 0)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command += ["-m", "--", "mpamatch.benchmarks.bench_ranks", *words, "--data", str(data.root)]
        return subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode


def main(words: list[str] | None = None) -> int:
    """Shows the table and appends its rows to --out; 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default="demo,ebhi-seg-gland", help="names with commas")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out", type=Path, help="JSON lines to append to")
    parser.add_argument("--data", help=argparse.SUPPRESS)
    given = list(sys.argv[1:] if words is None else words)
    arguments = parser.parse_args(given)
    if ranks.started() == 1:
        return as_ranks(given)
    flags = ["--data.root", arguments.data, "--engine.device", "cpu"]
    found = [measured(load_config(name, None, flags), arguments.steps) for name in arguments.recipes.split(",")]
    found += counted(found[0].losses)
    if ranks.rank() == 0:
        rows.show("bytes per rank and step", HEADER, [cells(row) for row in found], text_columns=2)
        if arguments.out:
            append_rows(arguments.out, found)
    return ranks.leave(0)


if __name__ == "__main__":
    run_main(main)
