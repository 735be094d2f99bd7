"""A prepared set, configurations and stopped runs that are small enough for a test."""

import contextlib
import functools
import io
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from rich.console import Console
from safetensors import safe_open
from torch import Tensor

from mpamatch.batch import Batch
from mpamatch.cli import main
from mpamatch.data.feeds import Feed
from mpamatch.data.prepared import Prepared, load_prepared, write_prepared
from mpamatch.data.sources.synthetic import raw_set
from mpamatch.data.splits import write_split
from mpamatch.engine import loop
from mpamatch.engine.config import Config, load_config

SPLIT = "labelled-1-seed0"
FIELDS: dict[str, Any] = {
    "data.crop": 32,
    "data.batch": 2,
    "data.unlabelled_batch": 2,
    "data.workers": 0,
    "model.encoder": "small_conv",
    "model.norm": "batch",
    "model.decoder_width": 16,
    "model.decoder_channels": "[16, 8, 8, 8]",
    "engine.device": "cpu",
    "engine.steps": 2,
    "engine.log_every": 1,
}
# Prototypes from the first step on, and few of them.
OF_METHODS: dict[str, dict[str, Any]] = {
    "mpamatch": {"method.start": 0, "method.ramp": 1, "method.prototypes": 2, "method.embedding_width": 8},
    "pccs": {"method.start": 0, "method.contrast_start": 1, "method.ramp": 2, "method.embedding_width": 8},
    "lpd": {"method.start": 1, "model.prototypes": 3, "model.prototype_width": 6},
}


# What does nothing for a method, and so is refused.
NOT_FOR = {
    "supervised": ("data.unlabelled_batch",),
    "lpd": ("data.unlabelled_batch", "model.decoder_width", "model.decoder_channels"),
}


class Stopped(Exception):
    """What ends a run in the middle."""


def make_set(root: Path) -> Prepared:
    """24 images of 48×48 from six made-up patients, four images of one patient labelled (SPLIT); all of them have an
    image-level label, every third one that it shows nothing."""
    shutil.copytree(_made().name, root, dirs_exist_ok=True)
    return load_prepared(root)


@functools.cache
def _made() -> tempfile.TemporaryDirectory[str]:
    """The folder that `make_set` copies: painting its tissue takes half a second, and thirty tests ask for it."""
    folder = tempfile.TemporaryDirectory()
    raw = raw_set(images=24, size=48)
    items = (replace(item, present=(1,) if number % 3 else ()) for number, item in enumerate(raw.items))
    prepared = write_prepared(Path(folder.name), replace(raw, items=items, microns_per_pixel=0.5))
    write_split(prepared, "1", 0)
    return folder


def tiny_flags(root: Path, method: str, fields: Mapping[str, Any] | None = None) -> list[str]:
    """The words after `mpamatch train --recipe demo` for a run of seconds."""
    values = {"data.root": root, **FIELDS, "method.name": method, **OF_METHODS.get(method, {}), **(fields or {})}
    for name in NOT_FOR.get(str(values["method.name"]), ()):
        values.pop(name, None)
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def make_set_and_run(folder: Path) -> Path:
    """Makes the prepared set FOLDER/set and the trained run FOLDER/run, by the command line; returns `folder`."""
    make_set(folder / "set")
    words = ["train", "--recipe", "demo", "--run", str(folder / "run"), *tiny_flags(folder / "set", "supervised")]
    assert main(words) == 0
    return folder


def tiny_config(root: Path, method: str = "supervised", fields: Mapping[str, Any] | None = None) -> Config:
    return load_config("demo", None, tiny_flags(root, method, fields))


def silent() -> Console:
    return Console(file=io.StringIO())


def train_until(step: int, config: Config, run: Path) -> None:
    """Trains in `run` as far as `step` and stops there, as a crash would: nothing is saved on the way out."""
    whole = loop.build_feed

    def cut(*arguments: Any, **options: Any) -> Feed:
        feed = whole(*arguments, **options)
        batches = feed.batches

        def until(start: int, stop: int) -> Iterator[Batch]:
            yield from batches(start, min(step, stop))
            raise Stopped

        feed.batches = until  # type: ignore[method-assign]
        return feed

    with mock.patch.object(loop, "build_feed", cut), pytest.raises(Stopped):
        loop.train(config, run, console=silent())


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a checkpoint and what it says about itself."""
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        return {name: file.get_tensor(name) for name in names}, json.loads(file.metadata()["mpamatch"])


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without the wall-clock and the memory."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    clocks = ("seconds", "data_seconds", "memory_mb")
    return [{name: value for name, value in line.items() if name not in clocks} for line in lines]


def assert_same_run(one: Path, other: Path) -> None:
    """Weights, prototypes, optimizer, progress and metrics of two runs are bitwise the same."""
    for name in ("last", "best"):
        tensors, about = read_checkpoint(one / "checkpoints" / f"{name}.safetensors")
        others, about_other = read_checkpoint(other / "checkpoints" / f"{name}.safetensors")
        assert about == about_other
        assert tensors.keys() == others.keys()
        differ = [key for key in tensors if not bitwise_equal(tensors[key], others[key])]
        assert differ == []
    assert read_metrics(one) == read_metrics(other)


def bitwise_equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.numpy().tobytes() == other.numpy().tobytes()


@contextlib.contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: writing past it fails as on a full disk, in the middle of the file."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
