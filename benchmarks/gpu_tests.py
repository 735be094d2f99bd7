"""Runs tests/gpu in several processes of pytest and merges their JUnit files; pytest-xdist need not be installed.

    python -m mpamatch.benchmarks.gpu_tests --out FILE.xml [--processes N] [--seconds S]

Each process takes its share of the tests. When the time is up all are interrupted: they end their test and write what
they have. A process that left no file becomes an error in the merged one.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from mpamatch.benchmarks.gpu_check import CUT, die_with_parent
from mpamatch.files import replacing

ROOT = Path(__file__).resolve().parent.parent
TESTS = ("tests/gpu", "--confcutdir=tests/gpu", "--import-mode=append", "-rs", "-p", "mpamatch.benchmarks.share")
COUNTS = ("tests", "failures", "errors", "skipped")
GRACE = 8.0  # seconds from the interrupt to the end of a process that does not answer
NO_TESTS = 5  # pytest's exit code for a share without any


def processes_for(cores: int) -> int:
    """Compiling takes the cores; each process has a context of its own on the GPU, half a gigabyte."""
    return max(1, min(cores, 6))


def start(number: int, processes: int, folder: Path, words: Sequence[str]) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-P", "-m", "pytest", *TESTS, "--share", f"{number}/{processes}"]
    command += [f"--junit-xml={folder / f'{number}.xml'}", *words]
    with (folder / f"{number}.log").open("wb") as log:
        return subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, preexec_fn=prepared,
            env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip


def prepared() -> None:
    """Lets the process end with its parent and take an interrupt, which what runs in the background ignores else."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait(running: "Sequence[subprocess.Popen[bytes]]", end: float) -> bool:
    """Waits for all, until `end` at most; whether it had to interrupt one."""
    interrupted = False
    while any(process.poll() is None for process in running):
        if not interrupted and time.monotonic() > end:
            interrupted = True
            for process in running:
                process.send_signal(signal.SIGINT)
        if time.monotonic() > end + GRACE:
            for process in running:
                process.kill()
        time.sleep(0.1)
    return interrupted


def merged(files: Sequence[Path]) -> ElementTree.Element:
    """One <testsuites> of all files; a missing or broken one is an error of its own."""
    root = ElementTree.Element("testsuites")
    for file in files:
        try:
            root.extend(ElementTree.parse(file).getroot().iter("testsuite"))
        except (OSError, ElementTree.ParseError) as error:
            suite = ElementTree.SubElement(root, "testsuite", name=f"share {file.stem}")
            case = ElementTree.SubElement(suite, "testcase", classname="share", name=file.stem)
            ElementTree.SubElement(case, "error", message=f"the process left no file: {error}")
    seen: set[tuple[str | None, str | None]] = {(None, None)}  # no name: what an interrupted test leaves
    for suite in root:
        for case in list(suite.iter("testcase")):
            own = (case.get("classname"), case.get("name"))
            if own in seen:  # a file that is skipped as a whole is so in every process
                suite.remove(case)
            seen.add(own)
    for element in (root, *root):
        for name, number in counts(element).items():
            element.set(name, str(number))
    return root


def counts(element: ElementTree.Element) -> Counter[str]:
    """COUNTS of the test cases within it."""
    found = Counter(dict.fromkeys(COUNTS, 0))
    for case in element.iter("testcase"):
        found["tests"] += 1
        for name, child in zip(COUNTS[1:], ("failure", "error", "skipped"), strict=True):
            found[name] += case.find(child) is not None
    return found


def write(path: Path, root: ElementTree.Element) -> None:
    with replacing(path) as temporary:
        ElementTree.ElementTree(root).write(temporary, encoding="utf-8", xml_declaration=True)


def report(root: ElementTree.Element, folder: Path) -> str:
    """Prints what failed and why tests were skipped, and what a process without a file said; one line of the sums."""
    for case in root.iter("testcase"):
        for kind in ("failure", "error"):
            for problem in case.iter(kind):
                print(f"{case.get('classname')}::{case.get('name')}: {str(problem.get('message'))[:300]}")
                log = folder / f"{case.get('name')}.log"
                if case.get("classname") == "share" and log.is_file():
                    print(log.read_text(encoding="utf-8", errors="replace")[-1000:])
    reasons = Counter(str(skipped.get("message"))[:120] for skipped in root.iter("skipped"))
    for reason, number in reasons.most_common():
        print(f"skipped {number}: {reason}")
    sums = counts(root)
    failed = sums["failures"] + sums["errors"]
    return f"{sums['tests'] - failed - sums['skipped']} passed, {failed} failed, {sums['skipped']} skipped"


def main(words: list[str] | None = None) -> int:
    """Returns 0; 1 where a test failed; CUT where the time was up before the last test, and none failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the merged JUnit file")
    parser.add_argument("--processes", type=int, default=processes_for(len(os.sched_getaffinity(0))))
    parser.add_argument("--seconds", type=float, default=600.0)
    arguments, rest = parser.parse_known_args(words)
    end = time.monotonic() + arguments.seconds
    with tempfile.TemporaryDirectory() as name:
        folder, numbers = Path(name), range(1, arguments.processes + 1)
        running = [start(number, arguments.processes, folder, rest) for number in numbers]
        interrupted = wait(running, end)
        ended = zip(numbers, running, strict=True)
        files = [folder / f"{number}.xml" for number, process in ended if process.returncode != NO_TESTS]
        root = merged(files)
        write(arguments.out, root)
        sums = report(root, folder)
    late = f", stopped after {arguments.seconds:.0f} s" if interrupted else ""
    print(f"{sums} in {arguments.processes} processes{late}; wrote {arguments.out}")
    found = counts(root)
    return 1 if found["failures"] or found["errors"] else CUT if interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
