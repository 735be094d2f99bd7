"""Commands that write, each with what it needs and how it goes on after it was stopped."""

import csv
import io
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpamatch.data.prepared import load_prepared
from mpamatch.files import is_unfinished
from mpamatch.methods import METHODS
from tests.inference.slides import make_slide
from tests.reliability.commands import Command
from tests.tiny import FIELDS, OF_METHODS, make_set, tiny_flags

STEPS = {"engine.steps": 6, "engine.save_every": 2, "engine.validate_every": 3}
# What differs from run to run: times, and the most memory that a process had.
CLOCKS = ("seconds", "data_seconds", "seconds_per_step", "memory_mb")
Words = list[str]


@dataclass(frozen=True)
class Shared:
    """What the commands read: a prepared set, its raw folder, a trained run with prototypes, a slide."""

    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def raw(self) -> Path:
        return self.folder / "raw"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def slide(self) -> Path:
        return self.folder / "slide.tif"


@dataclass(frozen=True)
class Scenario:
    """A command in a working folder of its own.

    Attributes:
        name: such as train-mpamatch.
        words: the command, with paths relative to the working folder for what it writes.
        again: the command after a stop in that folder; None: it had done all.
        makes: fills the working folder before the command.
        starts_processes: whether it starts an interpreter.
        measures: whether its results are times, so that their names alone can be compared.
    """

    name: str
    words: Callable[[Shared], Words]
    again: Callable[[Shared, Path], Words | None]
    makes: Callable[[Shared, Path], None] = lambda shared, folder: None
    starts_processes: bool = False
    measures: bool = False


def make_shared(folder: Path) -> Shared:
    """Makes what the commands read. Raises AssertionError if the training fails."""
    shared = Shared(folder)
    prepared = make_set(shared.data)
    for part in ("images", "masks"):
        (shared.raw / part).mkdir(parents=True)
    for name in prepared.parts["train"][:10]:
        shutil.copy(prepared.image_path(name), shared.raw / "images")
        mask = prepared.mask_path(name)
        if mask is not None:
            shutil.copy(mask, shared.raw / "masks")
    make_slide(shared.slide, mpp=0.5)
    words = train_words(shared, "mpamatch", run="run")
    command = Command(words, folder, folder / "said")
    assert command.end() == 0, command.said
    for extra in folder.glob("said*"):
        extra.unlink()
    return shared


def train_words(shared: Shared, method: str, *, run: str = "run", data: Path | None = None) -> Words:
    return ["train", "--recipe", "demo", "--run", run, *tiny_flags(data or shared.data, method, STEPS)]


def _training(method: str) -> Scenario:
    def again(shared: Shared, folder: Path) -> Words:
        if (folder / "run" / "config.yaml").is_file():
            return ["train", "--resume", "run"]
        shutil.rmtree(folder / "run", ignore_errors=True)  # nothing to go on with yet: anew
        return train_words(shared, method)

    return Scenario(f"train-{method}", lambda shared: train_words(shared, method), again)


def _same(words: Callable[[Shared], Words]) -> tuple[Callable[[Shared], Words], Callable[[Shared, Path], Words]]:
    """The command and the same one again."""
    return words, lambda shared, folder: words(shared)


def _until_there(words: Callable[[Shared], Words]) -> tuple[Callable[[Shared], Words], Callable[..., Words | None]]:
    """The command, and the same one again unless it had made its folder: then it is whole."""
    return words, lambda shared, folder: None if (folder / "made").exists() else words(shared)


def _predict(input_of: Callable[[Shared], Path]) -> Callable[[Shared], Words]:
    return lambda shared: [
        "predict", str(shared.run), str(input_of(shared)), "--out", "out", "--device", "cpu",
    ]  # fmt: skip


def study_words(jobs: int) -> Callable[[Shared], Words]:
    fields = {**FIELDS, **OF_METHODS["mpamatch"]}
    flags = [
        word for name, value in fields.items() if name != "method.prototypes" for word in (f"--{name}", str(value))
    ]
    words = ["study", "prototypes", "--recipe", "demo", "--data.root", "data", "--out", "out", "--jobs", str(jobs)]
    return lambda shared: [*words, *flags, "--values", "1,3", "--seeds", "1", "--labelled", "2", "--test"]


def own_data(shared: Shared, folder: Path) -> None:
    """A prepared set of its own, for a command that writes into it."""
    shutil.copytree(shared.data, folder / "data")


def _mask_beside(shared: Shared, folder: Path) -> None:
    """A prepared set in which one training image has no mask, that mask in a folder, and a list of the image."""
    own_data(shared, folder)
    prepared = load_prepared(folder / "data")
    name = prepared.parts["train"][-1]
    mask = prepared.mask_path(name)
    assert mask is not None
    (folder / "new").mkdir()
    mask.rename(folder / "new" / mask.name)
    (folder / "list.txt").write_text(name)


def _suggest(input_of: Callable[[Shared], Path], *words: str) -> Callable[[Shared], Words]:
    return lambda shared: [
        "suggest", str(shared.run), str(input_of(shared)), "--out", "made", "--count", "3", "--device", "cpu", *words,
    ]  # fmt: skip


def own_run(shared: Shared, folder: Path) -> None:
    """A run of its own."""
    shutil.copytree(shared.run, folder / "run")


PREPARE = {
    "synthetic": lambda shared: ["prepare", "synthetic", "made", "--images", "24", "--size", "48"],
    "folder": lambda shared: ["prepare", "folder", str(shared.raw), "made"],
}
SCENARIOS = {
    one.name: one
    for one in (
        *(_training(method) for method in METHODS),
        Scenario("predict-images", *_same(_predict(lambda shared: shared.data / "images"))),
        Scenario("predict-slide", *_same(_predict(lambda shared: shared.slide))),
        *(Scenario(f"prepare-{kind}", *_until_there(words)) for kind, words in PREPARE.items()),
        Scenario("suggest-set", *_until_there(_suggest(lambda shared: shared.data))),
        Scenario("suggest-images", *_until_there(_suggest(lambda shared: shared.raw / "images"))),
        Scenario("suggest-slide", *_until_there(_suggest(lambda shared: shared.slide, "--tissue", "all"))),
        Scenario(
            "split-masks",
            *_same(lambda shared: ["split", "data", "--list", "list.txt", "--masks", "new"]),
            _mask_beside,
        ),
        Scenario("split", *_same(lambda shared: ["split", "data", "--images", "2"]), own_data),
        Scenario("check", *_same(lambda shared: ["check", "data"]), own_data),
        Scenario("evaluate", *_same(lambda shared: ["evaluate", "run", "--device", "cpu"]), own_run),
        Scenario("study", *_same(study_words(0)), own_data),
        Scenario("study-jobs", *_same(study_words(1)), own_data, starts_processes=True),
    )
}


def contents(folder: Path) -> dict[str, Any]:
    """What lies in a folder, to be compared: bytes, or what is left of them without the times that were measured."""
    found = {str(path.relative_to(folder)): _content(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: content for name, content in found.items() if content is not None}


def leftovers(folder: Path) -> list[str]:
    """Temporary files and locks in a folder."""
    return [str(path.relative_to(folder)) for path in folder.rglob(".*")]


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Names what is missing, too much, or different."""
    lacking = [f"{name} is missing" for name in wanted.keys() - found.keys()]
    extra = [f"{name} is too much" for name in found.keys() - wanted.keys()]
    return [*lacking, *extra, *(f"{name} differs" for name in wanted if name in found and found[name] != wanted[name])]


def _content(path: Path) -> Any:
    if is_unfinished(path) or path.name.startswith(".") or "tfevents" in path.name:
        return None  # told by leftovers(); TensorBoard's names hold the time
    data = path.read_bytes()
    if path.suffix == ".jsonl":
        return [_without_clocks(json.loads(line)) for line in data.decode().splitlines()]
    if path.suffix == ".json":
        return _without_clocks(json.loads(data))
    if path.name == "table.csv":
        rows = list(csv.reader(io.StringIO(data.decode())))
        kept = [at for at, name in enumerate(rows[0]) if name not in CLOCKS]
        return [[row[at] for at in kept] for row in rows]
    if path.name == "table.md":
        return re.sub(r"[^|]*\|\n", "\n", data.decode())  # the last column is seconds a step
    return data


def _without_clocks(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _without_clocks(value) for name, value in content.items() if name not in CLOCKS}
    return [_without_clocks(one) for one in content] if isinstance(content, list) else content


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run, without times: tag → (step, value)."""
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it reports every restart
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run)).Reload()
    tags: Iterable[str] = events.Tags()["scalars"]
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in tags if not tag.endswith(CLOCKS)}
