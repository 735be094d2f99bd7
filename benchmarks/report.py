"""Tables for a document, of a results file: what was reached against the goals, and one line per case.

python -m mpamatch.benchmarks.report benchmarks/results/NAME.jsonl
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from mpamatch.benchmarks import goals
from mpamatch.benchmarks.backends import EAGER, FUSED
from mpamatch.benchmarks.rows import Row, milliseconds, read
from mpamatch.benchmarks.suite import COMPILE

GOAL_HEADER = ("operation", "size", "direction", "memory", "figure", "reached", "goal", "")
HEADER = (
    "operation", "size", "direction", "memory", "fused, ms", "eager, ms", "torch.compile, ms", "others, ms",
    "% roofline", "extra MB: fused", "eager",
)  # fmt: skip


def goal_lines(rows: Iterable[Row]) -> list[list[str]]:
    """Every goal that was measured."""
    found = [verdict.cells() for verdict in goals.judge(rows) if verdict.met is not None]
    return [[*cells[:3], *cells[4:]] for cells in found]


def case_lines(rows: Sequence[Row]) -> list[list[str]]:
    """A line per case and memory that a fused backend was timed for."""
    timed = [row for row in rows if row.median]
    return [_line(row, [peer for peer in timed if _beside(peer, row)]) for row in timed if row.backend in FUSED]


def _beside(peer: Row, row: Row) -> bool:
    return (peer.case, peer.allocation, peer.machine) == (row.case, row.allocation, row.machine)


def _line(row: Row, peers: Sequence[Row]) -> list[str]:
    by_name = {peer.backend: peer for peer in peers}
    others = [name for name in by_name if name not in (*FUSED, EAGER, COMPILE)]
    return [
        row.operation,
        row.size,
        row.direction,
        row.allocation,
        _time(row),
        _time(by_name.get(EAGER)),
        _time(by_name.get(COMPILE)),
        ", ".join(f"{name} {_time(by_name[name])}" for name in others),
        "–" if row.roofline is None else f"{100 * row.roofline:.0f}",
        _megabytes(row),
        _megabytes(by_name.get(EAGER)),
    ]


def _time(row: Row | None) -> str:
    if row is None or row.median is None:
        return "–"
    return milliseconds(row.median) + (" (differs)" if "differ" in row.note else "")


def _megabytes(row: Row | None) -> str:
    return "–" if row is None or row.peak_extra_bytes is None else f"{row.peak_extra_bytes / 1e6:.1f}"


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *lines])


def main(words: list[str]) -> int:
    rows = read(Path(words[0]))
    last = rows[-1]
    print(
        f"{last.machine}, torch {last.torch}; ceilings: copy {last.copy_bytes_per_second / 1e9:.0f} GB/s, matmul "
        f"{last.matmul_flops_per_second / 1e9:.0f} GFLOP/s; load before the run {last.load}\n"
    )
    print(markdown(GOAL_HEADER, goal_lines(rows)), end="\n\n")
    print(markdown(HEADER, case_lines(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
