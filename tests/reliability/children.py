"""Commands run in children that this process forks, with limits: what each said, took, and how it ended.

A command in a process of its own spends seconds on importing torch; a child that is forked after the imports spends
milliseconds. The parent must not have started a thread, so it imports and runs no operation of torch.
"""

import contextlib
import faulthandler
import gc
import importlib
import io
import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

CODES = (0, 1, 2)
SECONDS = 10.0  # of processor time
PATIENCE = 12  # times as many by the clock
MEMORY = 3 << 29  # bytes that a command may use beside the imports, which are half a GB: 2 GB in all
ROOM = 4 << 30  # of addresses beyond what is there at the fork: a thread reserves 70 MB that it never touches
UNFORESEEN = 70  # the exit code of a child whose command raised
LONGEST = 2500  # letters of what a command says when it refuses: one sentence, which may list all 90 fields
MOST_LINES = 20  # of stderr, with the warnings of libraries
KEPT = 20_000  # letters of a text that is longer than twice as many, at its beginning and at its end
OUT, ERRORS = ".stdout", ".stderr"

# What the commands import when they run: in the parent, once.
MODULES = (
    "mpamatch.commands.check", "mpamatch.commands.evaluate", "mpamatch.commands.predict", "mpamatch.commands.prepare",
    "mpamatch.commands.prototypes", "mpamatch.commands.split", "mpamatch.commands.study", "mpamatch.commands.train",
    "mpamatch.data.sources.folder", "mpamatch.data.sources.glas", "mpamatch.data.sources.slides",
    "mpamatch.inference.slides", "mpamatch.report.figures", "PIL.PngImagePlugin", "PIL.JpegImagePlugin",
    "PIL.TiffImagePlugin", "PIL.BmpImagePlugin", "imagecodecs", "openslide", "tifffile", "torch._dynamo",
)  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: its exit code, or minus the signal that ended it.
        said: what it wrote to stdout and stderr.
        errors: what it wrote to stderr.
        seconds: of processor time: by the clock, a busy machine would look like a slow command.
        peak: bytes of memory that it had at most.
        held: bytes that it had when it began, all of its parent's; a test's may have seen large things before.
        late: whether it was ended because its time was over.
    """

    code: int
    said: str
    errors: str
    seconds: float
    peak: int
    held: int = 0
    late: bool = False

    @property
    def fault(self) -> str | None:
        """What a user must not meet, in a few words; None if the command ended as it should."""
        if self.late:
            return f"ran longer than {SECONDS:g} s"
        if self.code < 0:
            return f"ended by {signal.Signals(-self.code).name}"
        if "Traceback (most recent call last)" in self.said or self.code == UNFORESEEN:
            return f"traceback: {self.said.strip().splitlines()[-1][:200]}"
        if "mpamatch: memory ran out" in self.errors:
            return "memory ran out"
        if self.code not in CODES:
            return f"exit code {self.code}"
        if self.peak - self.held > MEMORY:
            return f"used {(self.peak - self.held) >> 20} MB"
        if self.code == 2:
            return self._of_refusal()
        return "says nothing" if not self.said.strip() else None

    def _of_refusal(self) -> str | None:
        """Looks at what was said with exit code 2: one sentence of mpamatch, the last line of stderr."""
        lines = self.errors.strip().splitlines()
        own = [line for line in lines if line.startswith("mpamatch")]
        if len(own) != 1 or not lines[-1].startswith("mpamatch"):
            return f"{len(own)} sentences in {len(lines)} lines of stderr, the last {lines[-1:]!r}"[:300]
        if len(lines) > MOST_LINES:
            return f"{len(lines)} lines of stderr"
        if len(self.errors) > LONGEST:
            return f"a sentence of {len(self.errors):,} letters"
        return None


def get_ready() -> None:
    """Imports what the commands need, so that children find it, and keeps the garbage collector from touching it."""
    import torch

    torch.set_num_threads(1)
    for name in MODULES:
        with contextlib.suppress(ImportError):  # an extra that is not there
            importlib.import_module(name)
    gc.collect()
    gc.freeze()


def run_command(words: Sequence[str | Path], folder: Path, *, seconds: float = SECONDS) -> Ended:
    """Runs `mpamatch WORDS…` in a child.

    Args:
        words: after `mpamatch`.
        folder: what it says is kept here for a moment.
        seconds: after which it is ended.
    """

    def command() -> int:
        from mpamatch.cli import main

        return main([str(word) for word in words])

    return run(command, folder, seconds=seconds)


def run(function: Callable[[], int], folder: Path, *, seconds: float = SECONDS) -> Ended:
    """Runs a function in a child; what it returns is the exit code."""
    [ended] = run_each([function], folder, seconds=seconds)
    return ended


def run_each(functions: Sequence[Callable[[], int]], folder: Path, *, seconds: float = SECONDS) -> Iterator[Ended]:
    """Runs functions one after the other in a child, and yields how each ended; a child that dies is replaced.

    Of many in one child each costs half of what one in each costs, whose pages are copied anew.
    """
    at = 0
    while at < len(functions):
        reading, writing = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            os.close(reading)
            _be_the_child(functions[at:], writing, folder)
        os.close(writing)
        with os.fdopen(reading, "rb") as results:
            for one in _ends(child, results, folder, seconds):
                yield one
                at += 1
                if at == len(functions):
                    break
            else:
                continue
        with contextlib.suppress(ChildProcessError):  # it died in the last of them, and was waited for
            os.waitpid(child, 0)


def _ends(child: int, results: BinaryIO, folder: Path, seconds: float) -> Iterator[Ended]:
    """Yields what the child tells of each function; of the one that it does not tell of, how it died."""
    told = b""
    while True:
        began, before = time.monotonic(), _spent(child)
        while b"\n" not in told and not (late := _is_late(child, began, before, seconds)):
            if select.select([results], [], [], 0.2)[0]:
                more = os.read(results.fileno(), 1 << 20)
                told += more
                if not more:
                    break
        line, whole, told = told.partition(b"\n")
        if whole:
            yield Ended(**json.loads(line))
            continue
        took = _spent(child) - before
        if late:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
        _, status, used = os.wait4(child, 0)
        said, errors = (_text(folder / name) for name in (OUT, ERRORS))
        code = os.waitstatus_to_exitcode(status)
        yield Ended(code, said + errors, errors, took, used.ru_maxrss << 10, late=late)
        return


def _is_late(child: int, began: float, before: float, seconds: float) -> bool:
    """Tells whether a child has computed for so long, or waited for PATIENCE times as long."""
    return _spent(child) - before > seconds or time.monotonic() - began > PATIENCE * seconds


def _spent(child: int) -> float:
    """Reads the seconds of processor time that a child has had."""
    try:
        fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _be_the_child(functions: Sequence[Callable[[], int]], results: int, folder: Path) -> None:
    """Runs the functions with limits and ends this process: whatever comes, the parent's own code never runs here."""
    try:
        os.setpgid(0, 0)  # so that what it starts ends with it
        _limit()
        for function in functions:
            _say_into(folder / OUT, folder / ERRORS)
            Path("/proc/self/clear_refs").write_text("5")  # the peak of memory begins anew
            held, began = _peak(), time.process_time()
            code = _code_of(function)
            took = time.process_time() - began
            sys.stdout.flush()
            sys.stderr.flush()
            said, errors = (_text(folder / name) for name in (OUT, ERRORS))
            ended = Ended(code, said + errors, errors, took, _peak(), held)
            os.write(results, json.dumps(asdict(ended)).encode() + b"\n")
    finally:
        os._exit(0)


def _code_of(function: Callable[[], int]) -> int:
    try:
        return function()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return UNFORESEEN


def _peak() -> int:
    """Reads how many bytes this process had at most since its peak began anew."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def _text(place: Path) -> str:
    """Reads what was said, of very long texts the beginning and the end."""
    text = place.read_text("utf-8", "replace") if place.exists() else ""
    return text if len(text) <= 2 * KEPT else text[:KEPT] + text[-KEPT:]


def _say_into(out: Path, errors: Path) -> None:
    for number, place in enumerate((out, errors), start=1):
        handle = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, number)
        os.close(handle)
    sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), "utf-8", "strict", line_buffering=True)
    sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", closefd=False), "utf-8", "backslashreplace", line_buffering=True)


def _limit() -> None:
    """Lets this process map ROOM beyond what it has, write no core, and tell where a signal met it."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.enable(sys.stderr)


def numbers(text: str) -> Iterator[int]:
    """Reads "7", "3,9" or "100-120"."""
    for word in text.split(","):
        first, _, last = word.partition("-")
        yield from range(int(first), int(last or first) + 1)
