"""SIGKILL at random moments of every command that takes long, and then the same command to its end.

    python -m tests.reliability.kills --moments 20 [--only NAME,NAME] [--seed 0] [--out kills.jsonl]

Each command is run once undisturbed, which tells how long it takes and how many file operations it makes. Then it is
begun anew, each time in an empty folder, and killed: half of the kills come at a moment drawn evenly over that time,
half just before a file operation drawn evenly from all of them (tests/reliability/commands.py says how, and how a
process begins in milliseconds). Then the same command is run to its end: `train` with --resume, or anew if it had no
configuration yet. All that it wrote must be bitwise what the undisturbed one wrote, but for measured times; no
temporary file and no lock may be left; TensorBoard must show every step once. `checkpoint` kills a process that does
nothing but save checkpoints: the file must be one of them, whole.

--out keeps a line per scenario and goes on after the last of them.
"""

import argparse
import itertools
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mpamatch.files import clear_unfinished
from tests.reliability.commands import Ambush, Command, context
from tests.reliability.scenarios import (
    SCENARIOS,
    Scenario,
    Shared,
    contents,
    differences,
    leftovers,
    make_shared,
    scalars,
)
from tests.tiny import make_set, read_checkpoint, tiny_config
from tests.tools import warm

CHECKPOINT = "checkpoint"
TRIES = 20  # moments that are drawn until one falls before the end: a busy machine is slow once and quick then


@dataclass
class Found:
    """What came of the kills of a scenario.

    Attributes:
        scenario: its name.
        seconds: that it takes undisturbed.
        operations: how many file operations it makes.
        kills: how many met it alive.
        begun: after how many of them something of it lay on the disk.
        faults: what did not hold, with the moment.
    """

    scenario: str
    seconds: float = 0.0
    operations: int = 0
    kills: int = 0
    begun: int = 0
    faults: list[str] = field(default_factory=list)


class Killer:
    """Kills a scenario again and again.

    Args:
        scenario: what is killed.
        shared: what it reads.
        place: for its folders.
        python: an interpreter for those that start processes.
    """

    def __init__(self, scenario: Scenario, shared: Shared, place: Path, python: str) -> None:
        self.scenario, self.shared, self.place = scenario, shared, place
        self._python = python if scenario.starts_processes else None
        folder = self._folder()
        began = time.monotonic()
        command = self._start(scenario.words(shared), folder)
        if command.end():
            raise RuntimeError(f"{scenario.name} fails undisturbed: {command.said}")
        self.seconds, self.operations = time.monotonic() - began, command.operations
        self.wanted, self._scalars = contents(folder), self._shown(folder)

    def at_moment(self, draw: random.Random, found: Found) -> None:
        """Kills it at a random moment, and adds what came of it."""
        for _ in range(TRIES):
            moment = draw.uniform(0, self.seconds)
            folder = self._folder()
            if self._start(self.scenario.words(self.shared), folder).kill_after(moment):
                self._go_on(folder, f"after {moment:.3f} s", found)
                return

    def before_operation(self, draw: random.Random, found: Found) -> None:
        """Kills it just before a random file operation, and adds what came of it."""
        number = draw.randint(1, len(self.operations))
        folder = self._folder()
        self._start(self.scenario.words(self.shared), folder, Ambush(folder, number)).end()
        self._go_on(folder, f"before operation {number} ({self.operations[number - 1]})", found)

    def _go_on(self, folder: Path, when: str, found: Found) -> None:
        found.kills += 1
        found.begun += any(folder.iterdir())
        words = self.scenario.again(self.shared, folder)
        if words is not None:
            command = self._start(words, folder)
            code = command.end()
            if code:
                found.faults.append(f"{when}: then it ended with {code}: {command.said.strip()[-300:]}")
                return
        wrong = differences(contents(folder), self.wanted)
        wrong += [f"{name} is left" for name in leftovers(folder)]
        if self._shown(folder) != self._scalars:
            wrong.append("TensorBoard shows other steps")
        found.faults += [f"{when}: {one}" for one in wrong]

    def _start(self, words: list[str], folder: Path, ambush: Ambush | None = None) -> Command:
        return Command(words, folder, self.place / "said", ambush or Ambush(folder), python=self._python)

    def _folder(self) -> Path:
        """Makes the working folder anew, always at one place, as some results hold its path."""
        folder = self.place / "work"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        self.scenario.makes(self.shared, folder)
        return folder

    def _shown(self, folder: Path) -> Any:
        return scalars(folder / "run") if self.scenario.name.startswith("train-") else None


def save_for_ever(folder: Path, started: Path) -> None:
    """Saves checkpoint after checkpoint of 12 MB; all weights in the N-th are N."""
    import torch

    from mpamatch.engine.build import build_training, open_data
    from mpamatch.engine.checkpoints import Progress, save_last

    torch.set_num_threads(1)
    prepared = make_set(started.with_name("data"))
    wide = {"model.decoder_width": 256, "model.decoder_channels": "[256, 128, 64, 32]"}
    config = tiny_config(prepared.root, "supervised", wide)
    method = build_training(config, open_data(config))
    optimizer = torch.optim.AdamW(method.parameters())
    for number in itertools.count(1):
        with torch.no_grad():
            for parameter in method.parameters():
                parameter.fill_(number)
        save_last(folder / "last.safetensors", method, optimizer, Progress(number), {}, "")
        started.touch()


def kill_saves(place: Path, moments: int, seed: int) -> Found:
    """Kills a process that saves checkpoints, each time a random while after its first."""
    folder, started, found, draw = place / "saved", place / "started", Found(CHECKPOINT), random.Random(seed)
    folder.mkdir()
    for number in range(moments):
        started.unlink(missing_ok=True)
        process = context().Process(target=save_for_ever, args=(folder, started))
        process.start()
        while not started.exists():
            if not process.is_alive():
                raise RuntimeError("the process that saves has ended")
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.3))
        process.kill()
        process.join()
        found.kills += 1
        found.begun += bool(leftovers(folder))  # met while it wrote
        found.faults += [f"kill {number}: {one}" for one in _faults_of_checkpoint(folder / "last.safetensors")]
        clear_unfinished(folder)  # as the next write does
        found.faults += [f"kill {number}: {name} is left" for name in leftovers(folder)]
    return found


def _faults_of_checkpoint(path: Path) -> list[str]:
    """Reads a checkpoint of `save_for_ever`: it must be one of them, whole."""
    tensors, about = read_checkpoint(path)
    saved = about["progress"]["step"]
    weights = {name: value for name, value in tensors.items() if name.endswith(("weight", "bias"))}
    if not weights:
        return ["the checkpoint holds no weights"]
    return [f"{name} is not of step {saved}" for name, value in weights.items() if not bool((value == saved).all())]


def kill_scenario(name: str, shared: Shared, place: Path, moments: int, seed: int, python: str) -> Found:
    """Kills one scenario `moments` times, in turns at a moment and before a file operation."""
    place.mkdir()
    if name == CHECKPOINT:
        return kill_saves(place, moments, seed)
    killer, draw = Killer(SCENARIOS[name], shared, place, python), random.Random(f"{seed} {name}")
    found = Found(name, round(killer.seconds, 2), len(killer.operations))
    for number in range(moments):
        (killer.before_operation if number % 2 else killer.at_moment)(draw, found)
    return found


@contextmanager
def workplace() -> Iterator[tuple[Path, Shared, str]]:
    """A folder, what all scenarios read, and an interpreter whose processes are warm."""
    with tempfile.TemporaryDirectory(prefix="kills-") as name, tempfile.TemporaryDirectory() as server:
        place = Path(name)
        (place / "shared").mkdir()
        context()  # preloads before the first process starts the server
        shared = make_shared(place / "shared")
        with warm.warm_python(Path(server)) as python:
            yield place, shared, python


def main() -> int:
    """Kills what is asked for and prints a line per scenario; returns 1 if something did not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=20, help="kills of each scenario (20)")
    parser.add_argument("--only", default=",".join([*SCENARIOS, CHECKPOINT]), help="scenarios, with commas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON lines; scenarios that are in it are not done again")
    words = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that its servers end too
    lines = words.out.read_text().splitlines() if words.out and words.out.is_file() else []
    done, faults = {json.loads(line)["scenario"] for line in lines}, 0
    with workplace() as (place, shared, python):
        for name in words.only.split(","):
            if name in done:
                continue
            found = kill_scenario(name, shared, place / name, words.moments, words.seed, python)
            print(f"{name}: {found.kills} kills, {found.begun} with something on the disk; {found.seconds:.2f} s, "
                  f"{found.operations} operations undisturbed; {len(found.faults)} faults", *found.faults, sep="\n  ",
                  flush=True)  # fmt: skip
            if words.out:
                with words.out.open("a") as file:
                    file.write(json.dumps(asdict(found)) + "\n")
            faults += len(found.faults)
            shutil.rmtree(place / name)
    return int(faults > 0)


if __name__ == "__main__":
    raise SystemExit(main())
