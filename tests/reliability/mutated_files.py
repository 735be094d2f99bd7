"""Thousands of damaged files, each given to the command that reads it: `python -m tests.reliability.mutated_files`.

A case is a kind and a number, which decide reader and damage: `--kinds png --only 17` runs one again, and says all that
the command said. A case passes if the command ends within 10 s of processor time and 2 GB with exit code 0, 1 or 2, and
with 2 after one sentence. What was done stands in --log, and the same command goes on there.
"""

import argparse
import json
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.reliability import children
from tests.reliability.children import Ended
from tests.reliability.readers import KINDS, Reader, build_world, copy_world

TOGETHER = 50  # cases in one child


@dataclass(frozen=True)
class Case:
    """A damaged file and how the command that reads it ended."""

    kind: str
    number: int
    reader: Reader
    ended: Ended

    def line(self) -> dict[str, object]:
        """What is kept of it, as JSON has it."""
        last = self.ended.said.strip().splitlines()[-1:]
        return {
            "kind": self.kind,
            "number": self.number,
            "reader": self.reader.name,
            "code": self.ended.code,
            "seconds": round(self.ended.seconds, 3),
            "peak_mb": self.ended.peak >> 20,
            "fault": self.ended.fault,
            "said": last[0][:300] if last else "",
        }


@contextmanager
def world(parent: Path | None = None) -> Iterator[tuple[Path, Path]]:
    """Builds the world in memory; yields its folder, and that of the cases, which its files name."""
    shared = Path("/dev/shm")
    place = parent or (shared if shared.is_dir() else None)
    with tempfile.TemporaryDirectory(prefix="mutated-", dir=place) as root:
        made, case = Path(root) / "world", Path(root) / "case"
        case.mkdir()

        def build() -> int:
            build_world(case)
            return 0

        ended = children.run(build, Path(root), seconds=600)
        if ended.code:
            raise RuntimeError(f"the world cannot be built: {ended.said[-3000:]}")
        case.rename(made)
        yield made, case


def run_cases(kind: str, numbers: Sequence[int], made: Path, folder: Path) -> Iterator[Case]:
    """Damages files and runs their readers in `folder`, many in one child; one with a fault again in its own."""
    for first in range(0, len(numbers), TOGETHER):
        some = numbers[first : first + TOGETHER]
        commands = [_command(kind, number, made, folder) for number in some]
        together = list(children.run_each(commands, folder.parent))
        for number, command, ended in zip(some, commands, together, strict=True):
            if ended.fault:
                alone = children.run(command, folder.parent)
                ended = alone if alone.fault or ended.late else ended
            yield Case(kind, number, _drawn(kind, number)[0], ended)


def _drawn(kind: str, number: int) -> tuple[Reader, Random]:
    random = Random(f"{kind} {number}")
    return KINDS[kind].reader(random), random


def _command(kind: str, number: int, made: Path, folder: Path) -> Callable[[], int]:
    def command() -> int:
        from mpamatch.cli import main

        reader, random = _drawn(kind, number)
        copy_world(made, folder)
        (folder / reader.file).unlink()  # it may be the world's own file by another name
        mutate = reader.mutate or KINDS[kind].mutate
        (folder / reader.file).write_bytes(mutate(random, (made / reader.file).read_bytes()))
        with reader.during():
            return main([str(word) for word in reader.words(folder)])

    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the cases and prints a table; returns 1 if one found a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability.mutated_files", description=__doc__)
    parser.add_argument("--kinds", default=",".join(KINDS), help="with commas")
    parser.add_argument("--count", type=int, default=2000, help="of each kind")
    parser.add_argument("--only", help="numbers, as 7,9 or 100-120: says what the command said")
    parser.add_argument("--log", type=Path, help="JSON lines; those that are there are not run again")
    options = parser.parse_args(arguments)
    children.get_ready()
    wanted = list(children.numbers(options.only)) if options.only else range(options.count)
    done = _done(options.log)
    faults = 0
    with world() as (made, folder):
        for kind in options.kinds.split(","):
            for case in run_cases(kind, [one for one in wanted if (kind, one) not in done], made, folder):
                _tell(case, options.log, whole=options.only is not None)
                faults += case.ended.fault is not None
    if options.log:
        print(table(_lines(options.log)))
    return 1 if faults else 0


def _tell(case: Case, log: Path | None, whole: bool) -> None:
    if whole:
        print(f"--- {case.kind} {case.number}: {case.reader.name}, exit code {case.ended.code}\n{case.ended.said}")
    if case.ended.fault is not None:
        print(f"{case.kind} {case.number}: {case.reader.name}: {case.ended.fault}", flush=True)
    if log is not None:
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(case.line()) + "\n")


def _lines(log: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in log.read_text("utf-8").splitlines()] if log.exists() else []


def _done(log: Path | None) -> set[tuple[object, object]]:
    return {(line["kind"], line["number"]) for line in (_lines(log) if log else [])}


def table(lines: Iterable[dict[str, object]]) -> str:
    """Formats how many cases of each kind ended how, the longest and the largest of them, and the faults."""
    by_kind = defaultdict(list)
    for line in lines:
        by_kind[line["kind"]].append(line)
    rows = [
        "| files | read | refused by a sentence | 0 or 1 | longest, s of processor | most memory, MB | faults |",
        "|---|" * 7,
    ]
    rows[1] = "|---|---:|---:|---:|---:|---:|---:|"
    for kind, found in by_kind.items():
        codes = Counter(line["code"] for line in found)
        longest, largest = (max(float(str(line[name])) for line in found) for name in ("seconds", "peak_mb"))
        faults = sum(line["fault"] is not None for line in found)
        cells = [kind, len(found), codes[2], codes[0] + codes[1], f"{longest:.1f}", f"{largest:.0f}", faults]
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
