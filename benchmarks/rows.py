"""A row per operation, backend, direction, size and allocation; JSON lines and tables of them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any

from mpamatch.benchmarks.cases import Case
from mpamatch.benchmarks.pretend import pretended
from mpamatch.errors import InputError
from mpamatch.files import replacing

RESULTS = Path(__file__).parent / "results"
PREDICT = '{"predict":'  # the rows of bench_predict
CHECK = '{"check":'  # the summary of gpu_check, always the last line
OTHERS = (CHECK, PREDICT, '{"info":', '{"tune":', '{"recipe":')  # lines of another form, which stay as they are


@dataclass
class Row:
    """One measurement, or the reason why there is none (`median` None and `note`).

    Times in seconds; `roofline` is the least time for `bytes` and `flops` under the ceilings, over the median;
    `allocation` warm or fresh (measure.ALLOCATIONS); `timer` wall, graph or do_bench; `load` that of the machine
    before the run; `predicted` what the cost model says of a GPU's kernels.
    """

    operation: str
    backend: str
    direction: str
    n: int
    d: int
    c: int
    k: int
    dtype: str
    device: str
    allocation: str
    median: float | None = None
    p20: float | None = None
    p80: float | None = None
    rounds: int = 0
    timer: str = ""
    bytes: int = 0
    flops: int = 0
    roofline: float | None = None
    peak_extra_bytes: int | None = None
    launches: int | None = None
    predicted: float | None = None
    note: str = ""
    copy_bytes_per_second: float = 0.0
    matmul_flops_per_second: float = 0.0
    machine: str = ""
    torch: str = ""
    load: float | None = None
    pretend: bool = field(default_factory=pretended)

    @property
    def key(self) -> tuple[object, ...]:
        """What a new measurement replaces."""
        return (*self.case, self.backend, self.allocation, self.machine)

    @property
    def case(self) -> tuple[object, ...]:
        return (self.operation, self.direction, self.n, self.d, self.c, self.k, self.dtype, self.device)

    @property
    def size(self) -> str:
        return Case(self.operation, self.direction, self.n, self.d, self.c, self.k, self.dtype).name


def write(path: Path, rows: Iterable[Row]) -> None:
    """Adds `rows` to the JSON lines of `path`, in place of older ones of the same key; other lines stay."""
    before = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    fresh = {row.key: row for row in rows}
    kept = [row for row in (read(path) if before else []) if not _outdated(row, fresh)]
    lines = [json.dumps(asdict(row)) for row in [*kept, *fresh.values()]]
    write_lines(path, [*lines, *(line for line in before if line.startswith(OTHERS))])


def add(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Adds lines of another form than a Row's; those of a dry run say so."""
    mark = {"pretend": True} if pretended() else {}
    before = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    write_lines(path, [*before, *(json.dumps({**record, **mark}) for record in records)])


def replace_kind(path: Path, start: str, records: Iterable[Mapping[str, Any]]) -> None:
    """Adds lines of another form in place of all that begin with `start`."""
    before = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    if any(line.startswith(start) for line in before):
        write_lines(path, [line for line in before if not line.startswith(start)])
    add(path, records)


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Writes the whole file or nothing of it, the summary of a gpu_check last."""
    summaries = [line for line in lines if line.startswith(CHECK)]
    others = [line for line in lines if not line.startswith(CHECK)]
    write_text(path, "".join(line + "\n" for line in chain(others, summaries)))


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _outdated(old: Row, fresh: dict[tuple[object, ...], Row]) -> bool:
    """Whether a new row takes its place: of the same key; or a time for a reason why there was none, or the reverse."""
    same = [row for row in fresh.values() if replace(row, allocation="").key == replace(old, allocation="").key]
    return old.key in fresh or any((row.median is None) != (old.median is None) for row in same)


def read(path: Path) -> list[Row]:
    """The rows of a file, without lines of another form, such as bench_predict's and the summary of gpu_check.

    Raises InputError where a line is none of ours.
    """
    known = {one.name for one in fields(Row)}
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith(OTHERS):
            continue
        try:
            content = json.loads(line)
            rows.append(Row(**{name: value for name, value in content.items() if name in known}))
        except (json.JSONDecodeError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: line {number} is no benchmark row ({error}).") from error
    return rows


def results_file(machine: str) -> Path:
    """benchmarks/results/<machine>.jsonl"""
    return RESULTS / f"{slug(machine)}.jsonl"


def slug(text: str) -> str:
    """Lower case, words joined by hyphens: NVIDIA H100 80GB HBM3 → nvidia-h100-80gb-hbm3."""
    return "-".join("".join(letter if letter.isalnum() else " " for letter in text.lower()).split())


HEADER = (
    "operation", "size", "direction", "backend", "memory", "ms", "p20–p80", "predicted", "% roofline", "extra MB",
    "launches",
)  # fmt: skip


def cells(row: Row) -> list[str]:
    """A row as text, in the order of HEADER; where there is no time the note stands in its place."""
    start = [row.operation, row.size, row.direction, row.backend, row.allocation]
    if row.median is None or row.p20 is None or row.p80 is None:
        return [*start, f"– {row.note}", "", "", "", "", ""]
    return [
        *start,
        f"{milliseconds(row.median)}{f' ({row.note})' if row.note else ''}",
        f"{milliseconds(row.p20)}–{milliseconds(row.p80)}",
        "–" if row.predicted is None else milliseconds(row.predicted),
        "–" if row.roofline is None else f"{100 * row.roofline:.1f}",
        "–" if row.peak_extra_bytes is None else f"{row.peak_extra_bytes / 1e6:.1f}",
        "–" if row.launches is None else str(row.launches),
    ]


def milliseconds(seconds: float) -> str:
    value = 1e3 * seconds
    return f"{value:.4f}" if value < 1 else f"{value:.2f}"


def show(title: str, header: Sequence[str], lines: Sequence[Sequence[str]], *, text_columns: int) -> None:
    """Prints a table, the first `text_columns` columns aligned left; with rich where it is installed."""
    try:
        from rich.table import Table

        from mpamatch.console import new_console
    except ImportError:
        print(plain(title, header, lines))
        return
    table = Table(title=title)
    for place, name in enumerate(header):
        table.add_column(name, justify="left" if place < text_columns else "right", no_wrap=place < text_columns)
    for line in lines:
        table.add_row(*line)
    console = new_console()
    if not console.is_terminal:  # a file or a pipe has no width to fit into
        console = new_console(width=240)
    console.print(table)


def plain(title: str, header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """The table in plain text."""
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    rows = [header, ["-" * width for width in widths], *lines]
    return "\n".join([title, *("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows)])
