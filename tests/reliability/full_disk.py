"""A full disk, a disk without room for another file, and one that cannot be written, at every place that writes.

    python -m tests.reliability.full_disk [--only NAME,NAME] [--kinds space,files,read-only,user] [--out full.jsonl]

It mounts a small tmpfs, which needs root, and runs commands whose working folder lies there. Undisturbed, a command
tells its file operations in order (tests/reliability/commands.py). Then, for each place that writes, it is begun anew,
and just before its first operation there

- `space`: a file takes all room that is left, so that what is written next fails in the middle;
- `files`: empty files take all inodes that are left, so that what is made next fails, folders too;

and from the start

- `read-only`: the disk is mounted read-only;
- `user`: the command is run by a user who may not write there (root may everywhere).

It must end with exit code 2 and one sentence, leave no temporary file, and keep what stood there before bit for bit;
or, where an operation takes no room, with 0 and what it writes undisturbed. Then there is room again, and the same
command must give bitwise what it gives undisturbed.

Every place in the package that writes is listed in WRITERS with the scenario that reaches it; a test compares the list
with the code.
"""

import argparse
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.reliability.commands import Ambush, Command, context, refused_well, site
from tests.reliability.scenarios import (
    SCENARIOS,
    Scenario,
    Shared,
    contents,
    differences,
    leftovers,
    make_shared,
    own_data,
    own_run,
    train_words,
)

SIZE, INODES, PAGE = 64 << 20, 6000, 4096
NOBODY = 65534
RESUME = ["train", "--resume", "run"]
REPORT = ["report", "run", "--device", "cpu"]
BEFORE = b'"what stood there before"'  # also JSON
KINDS = ("space", "files", "read-only", "user")

# File of the package that writes → the scenarios that reach it.
WRITERS = {
    "files.py": ("split", "prepare-folder"),  # replacing, making: all of the following but for those marked *
    "environment.py": (),  # a home in the system's temporary folder, for a user without one
    "claims.py": ("train-mpamatch", "predict-slide", "prototypes"),  # * run folders and locks
    "tensors.py": ("train-mpamatch",),
    "images.py": ("predict-images", "check-again"),
    "engine/config.py": ("train-mpamatch",),
    "engine/log.py": ("train-mpamatch", "train-resume"),  # * metrics.jsonl and TensorBoard's events grow
    "engine/loop.py": ("train-mpamatch",),  # * the run's folders
    "data/prepared.py": ("prepare-synthetic", "prepare-folder"),  # * files in the folder that `making` makes
    "data/splits.py": ("split",),
    "data/checks.py": ("check-again",),
    "engine/checkpoints.py": ("train-mpamatch", "train-resume"),
    "inference/checkpoint.py": ("train-mpamatch", "train-resume"),
    "engine/evaluation.py": ("evaluate-again",),
    "report/figures.py": ("train-mpamatch", "prototypes"),
    "inference/files.py": ("predict-images",),
    "inference/record.py": ("predict-images", "predict-slide"),
    "inference/slides.py": ("predict-slide",),
    "slides/bands.py": ("predict-slide",),
    "slides/mask.py": ("predict-slide",),
    "slides/regions.py": ("predict-slide",),  # * text of the regions, in a file without a name
    "slides/geojson.py": ("predict-slide",),
    "report/page.py": ("report",),
    "report/pictures.py": ("report",),  # * into memory, for the page
    "inference/export/onnx_file.py": ("export-onnx",),
    "inference/export/bioimage.py": ("export-bioimageio",),  # * also in the system's temporary folder
    "studies/scores.py": ("study",),
    "studies/sweep.py": ("study",),  # * locks; what a worker says, in the system's temporary folder
    "commands/study.py": ("study",),
    "inference/suggest/table.py": ("suggest-set", "suggest-images", "suggest-slide"),
    "inference/suggest/sheet.py": ("suggest-set", "suggest-images", "suggest-slide"),
    "inference/suggest/images.py": ("suggest-images",),  # * files in the folder that `making` makes
    "inference/suggest/slides.py": ("suggest-slide",),
    "commands/suggest.py": ("suggest-set",),  # * the list of names in that folder
    "data/corrected.py": ("split-masks",),
}


def _resumed(shared: Shared, folder: Path) -> None:
    shutil.copytree(shared.folder / "stopped", folder / "run")


def _stood_there(make: functools.partial, name: str, shared: Shared, folder: Path) -> None:
    make(shared, folder)
    (folder / name).write_bytes(BEFORE)


def _prototypes(shared: Shared) -> list[str]:
    image = next((shared.data / "images").iterdir())
    return ["prototypes", str(shared.run), str(image), "--out", "out", "--device", "cpu"]


def _bench(shared: Shared) -> list[str]:
    words = ["bench", "--op", "signed_distance", "--sizes", "tiny", "--device", "cpu", "--compare", "eager"]
    return [*words, "--out", "out/bench.jsonl"]


def _reported(shared: Shared, folder: Path) -> None:
    own_run(shared, folder)
    (folder / "run" / "summary.json").write_bytes(BEFORE)


def _export(form: str, out: str) -> Scenario:
    """Exports the run; the package of bioimage.io says when it was made."""

    def words(shared: Shared) -> list[str]:
        return ["export", str(shared.run), "--out", out, "--format", form]

    return Scenario(f"export-{form}", words, lambda shared, folder: words(shared), measures=form == "bioimageio")


def _again(scenario: str, make: object, name: str) -> Scenario:
    """The scenario in a folder where its result of before is."""
    one = SCENARIOS[scenario]
    return Scenario(f"{scenario}-again", one.words, one.again, functools.partial(_stood_there, make, name))


MORE = {
    one.name: one
    for one in (
        Scenario("train-resume", lambda shared: RESUME, lambda shared, folder: RESUME, _resumed),
        _again("check", own_data, "data/check.png"),
        _again("evaluate", own_run, "run/evaluation-test.json"),
        Scenario("prototypes", _prototypes, lambda shared, folder: _prototypes(shared)),
        Scenario("report", lambda shared: REPORT, lambda shared, folder: REPORT, _reported),
        *(_export(form, out) for form, out in (("onnx", "model.onnx"), ("bioimageio", "model.zip"))),
        Scenario("bench", _bench, lambda shared, folder: _bench(shared), measures=True),
    )
}
# All methods write by the same code, and so does a study with processes; what was there before is tried in MORE.
TRIED = ("train-mpamatch", "predict-images", "predict-slide", "prepare-synthetic", "prepare-folder", "split", "study")
TRIED += ("suggest-set", "suggest-images", "suggest-slide", "split-masks")
ALL = {name: SCENARIOS[name] for name in TRIED} | MORE


@dataclass
class Trial:
    """One command on a disk that fails.

    Attributes:
        scenario: its name.
        kind: of KINDS.
        where: the place that writes, as `commands.site` names it.
        code: the exit code.
        said: its last line.
        faults: what did not hold.
    """

    scenario: str
    kind: str
    where: str
    code: int = 0
    said: str = ""
    faults: list[str] = field(default_factory=list)


def fill(disk: Path, kind: str) -> None:
    """Takes all room or all inodes of a disk that are left."""
    (disk / "balloon").mkdir()
    with suppress(OSError):
        if kind == "files":
            for number in range(2 * INODES):
                os.close(os.open(disk / "balloon" / str(number), os.O_CREAT | os.O_WRONLY))
    if kind == "space":
        with (disk / "balloon" / "all").open("wb") as file:
            _take_all(file.fileno(), SIZE)


def _take_all(handle: int, most: int) -> None:
    """Makes a file as long as the disk lets it; others write meanwhile, so what is left is not asked for but tried."""
    taken, size = 0, most
    while size >= PAGE:
        try:
            os.posix_fallocate(handle, taken, size)
            taken += size
        except OSError:  # nothing of it is kept
            size = size // 2 // PAGE * PAGE


def may_mount() -> bool:
    """Tells whether this user may mount a disk."""
    with tempfile.TemporaryDirectory() as name:
        if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", name], capture_output=True).returncode:
            return False
        subprocess.run(["umount", name], check=True)
    return True


@contextmanager
def small_disk() -> Iterator[Path]:
    """A disk of SIZE with INODES inodes."""
    with tempfile.TemporaryDirectory(prefix="disk-") as name:
        options = f"size={SIZE},nr_inodes={INODES},mode=755"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", name], check=True)
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", "--lazy", name], check=True)


class Disk:
    """Runs one scenario on a small disk.

    Args:
        scenario: what is run.
        shared: what it reads, on another disk.
        disk: a small one, with nothing on it.
        place: a folder on another disk.
    """

    def __init__(self, scenario: Scenario, shared: Shared, disk: Path, place: Path) -> None:
        self.scenario, self.shared, self.disk, self.place = scenario, shared, disk, place
        self.folder = disk / "work"
        self._fresh()
        command = self._start()
        if command.end():
            raise RuntimeError(f"{scenario.name} fails undisturbed: {command.said}")
        self.operations = command.operations
        self.wanted = self._contents()

    @property
    def places(self) -> dict[str, int]:
        """The places that write, and the number of the first operation there."""
        found: dict[str, int] = {}
        for number, operation in enumerate(self.operations, start=1):
            if operation.startswith(("open", "mkdir")):  # what else there is takes no room
                found.setdefault(site(operation), number)
        return found

    def full(self, kind: str, where: str, number: int) -> Trial:
        """Fills the disk just before an operation."""
        trial = Trial(self.scenario.name, kind, where)
        before = self._fresh()
        ambush = Ambush(self.folder, number, functools.partial(fill, self.disk, kind))
        self._judge(trial, before, self._start(ambush))
        if not (self.disk / "balloon").exists():
            trial.faults.append("its operation never came, and the disk was not filled")
        shutil.rmtree(self.disk / "balloon", ignore_errors=True)
        return self._once_more(trial)

    def unwritable(self, kind: str) -> Trial:
        """Forbids writing from the start."""
        trial = Trial(self.scenario.name, kind, "from the start")
        before = self._fresh()
        if kind == "read-only":
            self._mount("ro")
        try:
            self._judge(trial, before, self._start(user=NOBODY if kind == "user" else None))
        finally:
            self._mount("rw")
        if trial.code == 0:
            trial.faults.append("ended with 0")
        return self._once_more(trial)

    def _judge(self, trial: Trial, before: dict, command: Command) -> None:
        trial.code = command.end()
        trial.said = (command.said.strip().splitlines() or [""])[-1][:300]
        if trial.code:
            wrong = refused_well(trial.code, command.said)
            trial.faults += [wrong] if wrong else []
            # A run that goes on replaces what stands there, step by step.
            kept = before if self.scenario.name != "train-resume" else {}
            now = self._contents()
            trial.faults += [f"{name} was there and is lost" for name in kept if now.get(name) != kept[name]]
        else:
            trial.faults += differences(self._contents(), self.wanted)
        trial.faults += [f"{name} is left" for name in leftovers(self.folder) if name not in self._left_before]

    def _once_more(self, trial: Trial) -> Trial:
        words = self.scenario.again(self.shared, self.folder) if trial.code else None
        if words is not None:
            command = Command(words, self.folder, self.place / "said")
            if command.end():
                trial.faults.append(f"with room again: {command.said.strip()[-300:]}")
            else:
                wrong = differences(self._contents(), self.wanted)
                trial.faults += [f"with room again: {one}" for one in wrong]
        return trial

    def _fresh(self) -> dict:
        """Makes the working folder anew; returns what lies in it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self.scenario.makes(self.shared, self.folder)
        self._left_before = leftovers(self.folder)  # by the kill of train-resume: a disk that is read-only keeps it
        return self._contents()

    def _start(self, ambush: Ambush | None = None, *, user: int | None = None) -> Command:
        words = self.scenario.words(self.shared)
        return Command(words, self.folder, self.place / "said", ambush or Ambush(self.folder), user=user)

    def _contents(self) -> dict:
        found = contents(self.folder)
        return dict.fromkeys(found) if self.scenario.measures else found

    def _mount(self, how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(self.disk)], check=True)


def trials(scenario: Scenario, shared: Shared, place: Path, kinds: tuple[str, ...] = KINDS) -> Iterator[Trial]:
    """Tries one scenario on disks that fail in every way at every place."""
    place.mkdir()
    with small_disk() as small:
        disk = Disk(scenario, shared, small, place)
        for kind in kinds:
            if kind in ("space", "files"):
                for where, number in disk.places.items():
                    yield disk.full(kind, where, number)
            else:
                yield disk.unwritable(kind)


def make_stopped(shared: Shared) -> None:
    """Makes the run that train-resume goes on with: killed just before its second checkpoint takes its place."""
    folder = shared.folder / "whole"
    folder.mkdir()
    words = train_words(shared, "mpamatch")
    command = Command(words, folder, shared.folder / "said")
    assert command.end() == 0, command.said
    saved = [
        at for at, one in enumerate(command.operations, start=1) if one == "rename run/checkpoints/last.safetensors"
    ]
    shutil.rmtree(folder)
    folder.mkdir()
    Command(words, folder, shared.folder / "said", Ambush(folder, saved[1])).end()
    (folder / "run").rename(shared.folder / "stopped")


def main() -> int:
    """Tries what is asked for and prints a line for each trial; returns 1 if something did not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(ALL), help="scenarios, with commas")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--out", type=Path, help="JSON lines, one per trial")
    words = parser.parse_args()
    if not may_mount():
        print("full_disk: to mount a small disk takes root: nothing was tried.")
        return 0
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the disk is unmounted
    count = faults = 0
    with tempfile.TemporaryDirectory(prefix="full-") as name:
        place = Path(name)
        place.chmod(0o755)
        (place / "shared").mkdir()
        context()
        shared = make_shared(place / "shared")
        make_stopped(shared)
        for one in words.only.split(","):
            for trial in trials(ALL[one], shared, place / one, tuple(words.kinds.split(","))):
                count, faults = count + 1, faults + bool(trial.faults)
                print(f"{trial.scenario}, {trial.kind}, {trial.where}: {trial.code} {trial.said}", flush=True)
                print(*(f"  FAULT {fault}\n" for fault in trial.faults), sep="", end="", flush=True)
                if words.out:
                    with words.out.open("a") as file:
                        file.write(json.dumps(asdict(trial)) + "\n")
    print(f"{count} trials, {faults} with faults")
    return int(faults > 0)


if __name__ == "__main__":
    raise SystemExit(main())
