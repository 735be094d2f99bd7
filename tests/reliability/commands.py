"""Commands in processes of their own that something befalls: at a moment, or just before one of their file operations.

To import torch takes seconds, so a server imports all that commands need, once, before any thread is made, and forks a
process for every command: it runs `mpamatch.cli.main` after some 50 ms. The server is multiprocessing's own
("forkserver"), the one that tests.tools.warm preloads for the tests. The parent only waits and kills.

In the process an audit hook sees every file that Python opens for writing, makes, renames or removes. It counts those
in one folder, and does what is asked just before the N-th of them: kills its process, or fills the disk. So every place
that writes can be hit, however short it takes.
"""

import importlib.util
import json
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.tools import warm

SECONDS = 300.0  # that a command may take on a busy machine
MODULES = [
    *(f"mpamatch.commands.{name}" for name in ("bench", "check", "evaluate", "export", "predict", "prepare")),
    *(f"mpamatch.commands.{name}" for name in ("prototypes", "report", "split", "study", "suggest", "train")),
    *(f"mpamatch.data.sources.{name}" for name in ("folder", "synthetic")),
    "mpamatch.inference.slides", "mpamatch.inference.suggest.slides",
    "mpamatch.report.figures", "mpamatch.report.study", "mpamatch.report.prototypes",
    "mpamatch.studies.worker", "mpamatch.data.feeds.torchvision", "torch.utils.tensorboard", "torch._dynamo",
    "lightning_fabric.strategies", "tifffile", "imagecodecs", "openslide", "tests.tiny", "encodings.utf_8_sig",
]  # fmt: skip
LATE = ("zoneinfo", "graphlib", "onnx", "onnxscript", "onnxruntime")  # libraries import the first two within functions
MAKES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}


def kill() -> None:
    """Ends this process as the system does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Ambush:
    """What happens just before the `at`-th file operation in a folder, counted from 1; never if `at` is 0."""

    folder: Path
    at: int = 0
    act: Callable[[], None] = kill


class Command:
    """A command that runs in a folder.

    Args:
        words: after `mpamatch`.
        folder: its working folder.
        said: file for what it prints.
        ambush: counts its file operations.
        python: what it takes for the interpreter, if it starts processes.
        user: number of the user that it runs as; None: this one.
        seconds: after which `end` ends it.
    """

    def __init__(
        self,
        words: Sequence[str | Path],
        folder: Path,
        said: Path,
        ambush: Ambush | None = None,
        *,
        python: str | None = None,
        user: int | None = None,
        seconds: float = SECONDS,
    ) -> None:
        self._said, self._seconds = said, seconds
        _beside(said).unlink(missing_ok=True)
        arguments = ([str(word) for word in words], folder, said, ambush or Ambush(folder), python, user)
        self._process: BaseProcess = context().Process(target=_command, args=arguments)
        self._process.start()

    def kill_after(self, seconds: float) -> bool:
        """Kills it after so many seconds; returns False if it had ended by then."""
        self._process.join(seconds)
        self._process.kill()
        return self.end() == -signal.SIGKILL

    def end(self) -> int:
        """Waits for its end; returns its exit code, or minus the signal that ended it."""
        self._process.join(self._seconds)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode

    @property
    def said(self) -> str:
        """What it has printed."""
        return self._said.read_text("utf-8", "replace")

    @property
    def operations(self) -> list[str]:
        """Its file operations in order, such as "open out/masks/a.png", once it has ended by itself."""
        return json.loads(_beside(self._said).read_text("utf-8"))


def context() -> ForkServerContext:
    """The start method; the server has MODULES imported unless it was started for something else before."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a pool of threads does not outlive a fork
    context = warm.context()
    context.set_forkserver_preload([*warm.PRELOAD, *MODULES])
    return context


def be_ordinary() -> None:
    """Lets what this process starts, such as the workers of a feed, begin as in a process that no server forked."""
    import torch

    torch.set_num_threads(1)
    multiprocessing.set_start_method(None, force=True)


def refused_well(code: int, said: str) -> str | None:
    """What is wrong with the way a command refused: exit code 2 and one sentence; None if nothing."""
    own = [line for line in said.splitlines() if line.startswith("mpamatch: ")]
    if "Traceback" in said:
        return f"traceback: {said.strip().splitlines()[-1][:200]}"
    if code != 2:
        return f"exit code {code}: {said.strip().splitlines()[-1:]}"
    if len(own) != 1 or not said.strip().endswith(own[0]):
        return f"{len(own)} sentences, the last line is {said.strip().splitlines()[-1:]}"
    return None


def _beside(said: Path) -> Path:
    return said.with_suffix(".operations")


def _command(words: list[str], folder: Path, said: Path, ambush: Ambush, python: str | None, user: int | None) -> None:
    """Runs the command in this process, which ends with its exit code."""
    be_ordinary()
    handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(handle, number)
    told = _beside(said).open("w", encoding="utf-8")  # now, as the user may not
    os.chdir(folder)
    sys.executable = python or sys.executable
    if user is not None:
        for name in (*MODULES, *LATE):  # the user may not read where these lie
            if importlib.util.find_spec(name):  # the libraries of an extra may be missing
                importlib.import_module(name)
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    os.environ["HOME"] = str(said.parent)  # caches of libraries lie where the command may write
    operations = _lie_in_wait(ambush)
    from mpamatch.cli import main

    code = main(words)
    told.write(json.dumps(operations))
    told.close()
    sys.exit(code)


def _lie_in_wait(ambush: Ambush) -> list[str]:
    """Adds the audit hook, which stays for the life of this process; the operations are listed as they come."""
    operations: list[str] = []
    inside = f"{ambush.folder.resolve()}{os.sep}"

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        path = _written(event, arguments)
        if path is None:
            return
        place = os.path.abspath(path)  # noqa: PTH100 - Path.resolve would look at the disk
        if place.startswith(inside):
            operations.append(f"{event.removeprefix('os.')} {place.removeprefix(inside)}")
            if len(operations) == ambush.at:
                ambush.act()

    sys.addaudithook(hook)
    return operations


def _written(event: str, arguments: tuple[Any, ...]) -> str | None:
    """The path that an audited event makes, changes or removes; None if it does none of it."""
    if event == "open":
        path, _, flags = arguments
        changes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
    else:
        changes = event in MAKES
        path = arguments[1 if event == "os.rename" else 0] if changes else None
    return os.fsdecode(path) if changes and isinstance(path, str | bytes | os.PathLike) else None


def site(operation: str) -> str:
    """Names the place in the code by what it writes: random parts, numbers and temporary names are left out."""
    what, _, path = operation.partition(" ")
    path = re.sub(r"\.mpamatch-unfinished", "", path)
    path = re.sub(r"(^|/)\.([^/]+)\.[\w]{8}(?=$|/)", r"\1\2", path)
    path = re.sub(r"events\.out\.tfevents[^/]*", "events", path)
    return f"{what} {re.sub(r'[0-9]+', '0', path)}"
