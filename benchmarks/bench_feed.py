"""The feeds against a PIL + DataLoader pipeline: images per second, and images per second of CPU time.

    python -m mpamatch.benchmarks.bench_feed --data ROOT --split S --recipe R [--steps 100] [--rounds 3] [--out FILE]
    python -m mpamatch.benchmarks.bench_feed --data ROOT --split S --recipe R --training 100

Every variant makes the same views (labelled, weak, two strong) at the recipe's crop, scale and batch from the same
files. An image is one file with all its views. `natural` is UniMatch's augmentation, with no colour in weak views as
there; PIL has no `histology`. Each measurement is a process of its own, pinned to one core or two and with as many
threads; the variants take turns for a number of rounds. CPU time is that of the process, its threads and its workers,
between two points of a feed that runs on past both, so nothing made ahead is counted or forgotten twice. Nothing
decoded is kept, but for the rows that say so. On two cores torchvision and PIL have two workers (PIL two for each of
its two loaders), on one core none.

--training trains that many steps with each feed and tells the share of a step that the loop waited for its batch.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import torch

from mpamatch.batch import Batch
from mpamatch.benchmarks import measure, rows
from mpamatch.benchmarks.command import append_rows, run_main
from mpamatch.benchmarks.pil_feed import PilFeed
from mpamatch.console import new_console
from mpamatch.data.config import DataConfig
from mpamatch.data.prepared import training_lists
from mpamatch.engine.build import build_feed, build_training, open_data
from mpamatch.engine.config import Config, load_config
from mpamatch.errors import InputError

FEEDS = ("pil", "torchvision", "dali")
WARM_UP = 10  # steps before the first point
TRAINED = (("torchvision", 0), ("torchvision", 1), ("dali", 1))  # feed, data.workers
AHEAD = 20  # steps that the feed could still make after the second point
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Variant:
    """One way to make the batches, on so many cores."""

    feed: str
    augment: str
    cores: int
    cache_mb: int = 0

    @property
    def name(self) -> str:
        return f"{self.feed}, decoded images kept" if self.cache_mb else self.feed

    def flags(self) -> list[str]:
        """The fields of the configuration that make it so."""
        workers = 0 if self.cores == 1 and self.feed != "dali" else self.cores
        values = {
            "data.feed": "torchvision" if self.feed == "pil" else self.feed,
            "data.augment": self.augment,
            "data.cache_mb": self.cache_mb,
            "data.workers": workers,
            **({"data.weak_colour": 0.0} if self.augment == "natural" else {}),
            "method.name": "unimatch",  # two strong views
            "engine.device": "cpu",
        }
        return [word for name, value in values.items() for word in (f"--{name}", str(value))]


@dataclass
class Sample:
    """One measurement of one variant."""

    images: int
    seconds: float
    cpu_seconds: float


@dataclass
class FeedRow:
    """A variant's medians over rounds, or the reason why there are none (`rounds` 0 and `note`).

    An image is one file with all its views. `cpu_seconds_per_image` counts threads and workers; `per_core` is its
    inverse, images per second of CPU time, and `over_pil` that over PIL's on as many cores with the same augmentation.
    """

    feed: str
    augment: str
    cores: int
    cache_mb: int
    recipe: str
    crop: int
    scale: float
    batch: int
    unlabelled_batch: int
    steps: int
    rounds: int = 0
    images_per_second: float | None = None
    images_per_second_low: float | None = None
    images_per_second_high: float | None = None
    cpu_seconds_per_image: float | None = None
    cpu_seconds_low: float | None = None
    cpu_seconds_high: float | None = None
    per_core: float | None = None
    over_pil: float | None = None
    note: str = ""
    machine: str = ""
    torch: str = ""
    load: float | None = None


@dataclass
class TrainingRow:
    """Medians over runs: seconds per step, and those of them that the loop waited for its batch."""

    training: str  # the feed
    recipe: str
    method: str
    workers: int
    steps: int
    rounds: int
    seconds: float
    data_seconds: float
    waiting: float  # share
    machine: str
    torch: str
    load: float


def missing(feed: str) -> str:
    """Why a feed cannot run here; empty where it can."""
    there = feed != "dali" or (find_spec("nvidia") and find_spec("nvidia.dali"))
    return "" if there else "nvidia-dali is not installed"


def variants(cores: Sequence[int], default_cache_mb: int) -> list[Variant]:
    found = []
    for count in cores:
        found += [Variant(feed, "natural", count) for feed in FEEDS]
        found += [Variant(feed, "histology", count) for feed in FEEDS if feed != "pil"]
    found += [Variant("torchvision", augment, cores[0], default_cache_mb) for augment in ("natural", "histology")]
    return found


# One measurement, in a process of its own.


def sample(config: Config, variant: Variant, steps: int) -> Sample:
    """Images, seconds and CPU seconds of `steps` batches."""
    torch.set_num_threads(variant.cores)
    before = WARM_UP if not variant.cache_mb else filling(config)
    made = batches(config, variant.feed, before + steps + AHEAD)
    for _ in range(before):
        next(made)
    began, spent = time.perf_counter(), cpu_seconds()
    images = 0
    for _ in range(steps):
        batch = next(made)
        assert batch.unlabelled is not None
        images += len(batch.labelled.image) + len(batch.unlabelled.weak)
    return Sample(images, time.perf_counter() - began, cpu_seconds() - spent)


def filling(config: Config) -> int:
    """Steps until each worker has kept almost every image: it meets one in so many as there are workers."""
    names = training_lists(open_data(config), config.data.split)
    epoch = max(-(-len(names[0]) // config.data.batch), -(-len(names[1]) // config.data.unlabelled_batch))
    return WARM_UP + 3 * max(1, config.data.workers) * epoch


def batches(config: Config, feed: str, stop: int) -> Iterator[Batch]:
    """The batches of steps 0 … stop−1."""
    prepared = open_data(config)
    method = build_training(config, prepared)
    if feed == "pil":
        names, encoder = training_lists(prepared, config.data.split), method.model.encoder
        yield from PilFeed(prepared, *names, config.data, mean=encoder.mean, std=encoder.std).batches(stop)
    else:
        feed_of = build_feed(config, prepared, method, rank=0, ranks=1, device=torch.device("cpu"))
        yield from feed_of.batches(0, stop)


def cpu_seconds() -> float:
    """CPU time so far of this process with its threads, and of its living workers."""
    return time.process_time() + sum(_cpu_seconds_of(child.pid) for child in multiprocessing.active_children())


def _cpu_seconds_of(process: int | None) -> float:
    """User and system time from /proc/PID/stat: fields 14 and 15, counted behind the name in brackets, field 2."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


# The rounds.


def of_feeds(arguments: argparse.Namespace) -> list[FeedRow]:
    """Measures and prints every variant."""
    load, available = measure.load(), len(os.sched_getaffinity(0))
    words = arguments.cores.split(",")
    if not all(word.isdecimal() and 1 <= int(word) <= available for word in words):
        raise InputError(f"bench_feed --cores {arguments.cores}: expected numbers from 1 to {available}, with commas.")
    cores = [int(word) for word in words]
    wanted = variants(cores, DataConfig().cache_mb)
    samples = measured(arguments, [variant for variant in wanted if not missing(variant.feed)])
    found = [
        summarise(configured(arguments, variant.flags()), variant, arguments.steps, samples.get(variant, []), load)
        for variant in wanted
    ]
    compare_with_pil(found)
    for augment in ("natural", "histology"):
        lines = [cells(row) for row in found if row.augment == augment]
        rows.show(f"feeds, {augment}", HEADER, lines, text_columns=3)
    return found


def measured(arguments: argparse.Namespace, wanted: Sequence[Variant]) -> dict[Variant, list[Sample]]:
    """Each variant once a round, each round beginning with another one."""
    samples: dict[Variant, list[Sample]] = {variant: [] for variant in wanted}
    for turn in range(arguments.rounds):
        start = turn % max(1, len(wanted))
        for variant in [*wanted[start:], *wanted[:start]]:
            samples[variant].append(in_own_process(arguments, variant))
            one = samples[variant][-1]
            line = f"{variant.name} {variant.augment} on {variant.cores}: {one.images / one.seconds:.0f} images/s"
            print(f"round {turn + 1}: {line}", flush=True)
    return samples


def in_own_process(arguments: argparse.Namespace, variant: Variant) -> Sample:
    """A fresh process on the variant's cores; libraries see no other ones and start as many threads."""
    cores = sorted(os.sched_getaffinity(0))[: variant.cores]
    words = ["--recipe", arguments.recipe, "--data", str(arguments.data), "--steps", str(arguments.steps)]
    words += ["--split", arguments.split] if arguments.split else []
    words += ["--sample-of", json.dumps(asdict(variant))]
    done = subprocess.run(
        [sys.executable, "-m", "mpamatch.benchmarks.bench_feed", *words],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(variant.cores)},
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    if done.returncode:
        raise InputError(f"bench_feed: the {variant.name} feed failed with exit code {done.returncode}; see above.")
    return Sample(**json.loads(done.stdout.splitlines()[-1]))


def summarise(config: Config, variant: Variant, steps: int, samples: Sequence[Sample], load: float) -> FeedRow:
    """One row; without samples it says why."""
    data = config.data
    row = FeedRow(
        variant.feed, variant.augment, variant.cores, variant.cache_mb, config.recipe, data.crop, data.scale,
        data.batch, data.unlabelled_batch, steps, note=missing(variant.feed), machine=measure.machine("cpu"),
        torch=torch.__version__, load=load,
    )  # fmt: skip
    if not samples:
        return row
    rate = measure.summary([one.images / one.seconds for one in samples], "wall")
    spent = measure.summary([one.cpu_seconds / one.images for one in samples], "wall")
    return replace(
        row,
        rounds=len(samples),
        images_per_second=rate.median,
        images_per_second_low=rate.p20,
        images_per_second_high=rate.p80,
        cpu_seconds_per_image=spent.median,
        cpu_seconds_low=spent.p20,
        cpu_seconds_high=spent.p80,
        per_core=1 / spent.median,
    )


def compare_with_pil(found: Sequence[FeedRow]) -> None:
    """Fills `over_pil` where there is a PIL row to compare with."""
    pil = {(row.augment, row.cores): row.per_core for row in found if row.feed == "pil"}
    for row in found:
        base = pil.get((row.augment, row.cores))
        row.over_pil = row.per_core / base if row.per_core and base else None


# Waiting in a training run.


def of_training(arguments: argparse.Namespace) -> list[TrainingRow]:
    """Trains with each of TRAINED in turns and prints the shares."""
    if arguments.training < 2:
        raise InputError(
            f"bench_feed --training {arguments.training}: expected at least 2 steps, the first not counted."
        )
    load, samples = measure.load(), defaultdict(list)
    possible = [key for key in TRAINED if not missing(key[0])]
    for _ in range(arguments.rounds):
        for key in possible:
            samples[key].append(train(training_config(arguments, *key)))
    found = []
    for feed, workers in possible:
        config = training_config(arguments, feed, workers)
        seconds, waited = (statistics.median(column) for column in zip(*samples[feed, workers], strict=True))
        row = TrainingRow(
            feed, config.recipe, config.method.name, workers, arguments.training, arguments.rounds, seconds, waited,
            waited / seconds, measure.machine("cpu"), torch.__version__, load,
        )  # fmt: skip
        found.append(row)
    rows.show("waiting for data in training", TRAINING_HEADER, [training_cells(row) for row in found], text_columns=1)
    for feed in {feed for feed, _ in TRAINED if missing(feed)}:
        print(f"{feed}: {missing(feed)}")
    return found


def train(config: Config) -> tuple[float, float]:
    """Seconds per step and those of them spent waiting; the first line of metrics holds what starts up: left out."""
    from mpamatch.engine import loop  # seconds of imports, which no measurement of a feed alone needs

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        loop.train(config, run, console=new_console(quiet=True))
        texts = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    lines = [line for line in map(json.loads, texts) if "data_seconds" in line][1:]
    seconds, waited = (sum(line[name] for line in lines) / len(lines) for name in ("seconds", "data_seconds"))
    return seconds, waited


def training_config(arguments: argparse.Namespace, feed: str, workers: int) -> Config:
    """The recipe for so many steps, ten lines of metrics, and no validation before the end."""
    steps = arguments.training
    values = {
        "data.feed": feed,
        "data.workers": workers,
        "engine.steps": steps,
        "engine.log_every": max(1, steps // 10),
        "engine.validate_every": steps,
        "engine.save_every": steps,
    }
    return configured(arguments, [word for name, value in values.items() for word in (f"--{name}", str(value))])


# The command.

HEADER = ("feed", "augment", "cores", "images/s", "p20–p80", "CPU ms/image", "p20–p80", "images/CPU s", "over PIL")
TRAINING_HEADER = ("feed", "workers", "steps", "s/step", "waiting s", "waiting")


def cells(row: FeedRow) -> list[str]:
    name = f"{row.feed}, decoded images kept" if row.cache_mb else row.feed
    start = [name, row.augment, str(row.cores)]
    if row.images_per_second is None or row.cpu_seconds_per_image is None:
        return [*start, f"– {row.note}", "", "", "", "", ""]
    spent = [1e3 * (value or 0) for value in (row.cpu_seconds_per_image, row.cpu_seconds_low, row.cpu_seconds_high)]
    return [
        *start,
        f"{row.images_per_second:.1f}",
        f"{row.images_per_second_low:.1f}–{row.images_per_second_high:.1f}",
        f"{spent[0]:.2f}",
        f"{spent[1]:.2f}–{spent[2]:.2f}",
        f"{row.per_core:.1f}",
        "–" if row.over_pil is None else f"{row.over_pil:.2f}",
    ]


def training_cells(row: TrainingRow) -> list[str]:
    seconds = [f"{row.seconds:.3f}", f"{row.data_seconds:.4f}", f"{100 * row.waiting:.1f} %"]
    return [row.training, str(row.workers), str(row.steps), *seconds]


def configured(arguments: argparse.Namespace, flags: Sequence[str]) -> Config:
    place = ["--data.root", str(arguments.data), *(["--data.split", arguments.split] if arguments.split else [])]
    return load_config(arguments.recipe, None, [*place, *flags])


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--data", required=True, type=Path, help="a prepared folder")
    parser.add_argument("--split", help="which of its splits, where there are several")
    parser.add_argument("--steps", type=int, default=100, help="batches behind one measurement (100)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each variant (3)")
    parser.add_argument("--cores", default="1,2", help="numbers of cores, with commas (1,2)")
    parser.add_argument("--training", type=int, metavar="STEPS", help="train instead, and tell the share of waiting")
    parser.add_argument("--out", type=Path, help="JSON lines to append to")
    parser.add_argument("--sample-of", help=argparse.SUPPRESS)  # one measurement, in a process of its own
    arguments = parser.parse_args(words)
    if arguments.sample_of:
        variant = Variant(**json.loads(arguments.sample_of))
        print(json.dumps(asdict(sample(configured(arguments, variant.flags()), variant, arguments.steps))))
        return 0
    found: Sequence[FeedRow | TrainingRow] = of_training(arguments) if arguments.training else of_feeds(arguments)
    if arguments.out:
        append_rows(arguments.out, found)
    return 0


if __name__ == "__main__":
    run_main(main)
