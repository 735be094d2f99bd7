"""What the fused operations have to reach, and whether they did: ratios within one process, shares of the roofline."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from mpamatch.benchmarks.backends import EAGER, FUSED
from mpamatch.benchmarks.cases import BOTH, FORWARD, SINKHORN_AND_UPDATE
from mpamatch.benchmarks.rows import Row

FULL_PIXELS = 65_536


@dataclass(frozen=True)
class Goal:
    """A bound on one figure of an operation's rows.

    `figure`: a competitor's name (its median over ours, at least `bound`), roofline (at least), or seconds, launches,
    bytes_per_pixel (at most). `m` and `n` restrict it to one size, `d` to one width.
    """

    operation: str
    direction: str
    device: str
    dtype: str
    figure: str
    bound: float
    m: int | None = None
    n: int | None = None
    d: int | None = None

    def fits(self, row: Row) -> bool:
        same = (row.operation, row.direction, row.device, row.dtype) == (
            self.operation,
            self.direction,
            self.device,
            self.dtype,
        )
        return same and self.m in (None, row.c * row.k) and self.n in (None, row.n) and self.d in (None, row.d)


def _cpu(operation: str, direction: str, figure: str, bound: float, **sizes: int) -> Goal:
    return Goal(operation, direction, "cpu", "float32", figure, bound, **sizes)


def _gpu(operation: str, direction: str, figure: str, bound: float, **sizes: int) -> Goal:
    return Goal(operation, direction, "cuda", "bfloat16", figure, bound, **sizes)


GOALS = (
    _cpu("prototype_distance", FORWARD, EAGER, 8, m=20, n=FULL_PIXELS, d=256),
    _cpu("prototype_distance", FORWARD, EAGER, 6, m=50, n=FULL_PIXELS, d=256),
    _cpu("prototype_distance", FORWARD, EAGER, 3, m=190, n=FULL_PIXELS, d=256),
    _cpu(SINKHORN_AND_UPDATE, FORWARD, "loop", 5, n=FULL_PIXELS),
    _cpu("prototype_update_", FORWARD, "index_add", 2, n=FULL_PIXELS),
    _cpu("prototype_contrast", BOTH, EAGER, 6, n=FULL_PIXELS, d=256),
    _cpu("prototype_contrast", BOTH, "compile", 2, n=FULL_PIXELS, d=256),
    _cpu("segmentation_loss", BOTH, EAGER, 5, n=8 * FULL_PIXELS),
    _cpu("segmentation_loss", BOTH, "compile", 2.5, n=8 * FULL_PIXELS),
    _gpu("prototype_distance", FORWARD, "roofline", 0.6, n=FULL_PIXELS),
    _gpu("prototype_distance", FORWARD, "roofline", 0.75, n=4 * FULL_PIXELS),
    _gpu("sinkhorn_assign", FORWARD, "seconds", 25e-6, n=FULL_PIXELS),
    _gpu("sinkhorn_assign", FORWARD, "loop", 100, n=FULL_PIXELS),
    _gpu("prototype_update_", FORWARD, "roofline", 0.6, n=FULL_PIXELS),
    _gpu("prototype_contrast", BOTH, "roofline", 0.65, n=FULL_PIXELS, d=256),
    _gpu("prototype_contrast", BOTH, EAGER, 10, n=FULL_PIXELS, d=256),
    _gpu("prototype_contrast", BOTH, "compile", 3, n=FULL_PIXELS, d=256),
    _gpu("prototype_contrast", BOTH, "bytes_per_pixel", 12, n=FULL_PIXELS, d=256),
    _gpu("segmentation_loss", BOTH, "roofline", 0.5, n=8 * FULL_PIXELS),
    _gpu("segmentation_loss", BOTH, "launches", 3, n=8 * FULL_PIXELS),
)


class Verdict(NamedTuple):
    row: Row  # of the fused backend
    figure: str
    reached: float
    bound: float | None  # None: no goal was set
    met: bool | None

    def cells(self) -> list[str]:
        at_most = self.figure in AT_MOST
        shown = AT_MOST[self.figure] if at_most else _share if self.figure == "roofline" else _times
        wanted = "–" if self.bound is None else f"{'≤' if at_most else '≥'} {shown(self.bound)}"
        verdict = {True: "met", False: "missed", None: ""}[self.met]
        against = self.figure if at_most or self.figure == "roofline" else f"{self.figure} / {self.row.backend}"
        size = [self.row.operation, self.row.size, self.row.direction, self.row.backend, self.row.allocation]
        return [*size, against, shown(self.reached), wanted, verdict]


HEADER = ("operation", "size", "direction", "backend", "memory", "figure", "reached", "goal", "")
AT_MOST: dict[str, Callable[[float], str]] = {
    "seconds": lambda value: f"{1e6 * value:.1f} µs",
    "launches": lambda value: f"{value:.0f}",
    "bytes_per_pixel": lambda value: f"{value:.1f} B/pixel",
}


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"


def _times(value: float) -> str:
    return f"{value:.2f}×"


def judge(rows: Iterable[Row]) -> list[Verdict]:
    """Every fused row against each competitor of its case (same allocation), and against every goal that fits."""
    rows = [row for row in rows if row.median and not row.pretend]
    verdicts = []
    for row in rows:
        if row.backend not in FUSED or "differ" in row.note:
            continue
        goals = {goal.figure: goal.bound for goal in GOALS if goal.fits(row)}
        peers = {peer.backend: peer for peer in rows if _same_case(peer, row) and peer.backend not in FUSED}
        figures = {name: _ratio(peer, row) for name, peer in peers.items()} | _own_figures(row)
        for figure, reached in figures.items():
            bound = goals.get(figure)
            if bound is None and figure not in peers:
                continue
            met = None if bound is None else reached <= bound if figure in AT_MOST else reached >= bound
            verdicts.append(Verdict(row, figure, reached, bound, met))
    return verdicts


def _same_case(one: Row, other: Row) -> bool:
    return (one.case, one.allocation, one.machine) == (other.case, other.allocation, other.machine)


def _ratio(peer: Row, row: Row) -> float:
    assert peer.median is not None
    assert row.median is not None
    return peer.median / row.median


def _own_figures(row: Row) -> dict[str, float]:
    assert row.median is not None
    figures = {"seconds": row.median}
    if row.roofline is not None:
        figures["roofline"] = row.roofline
    if row.launches is not None:
        figures["launches"] = row.launches
    if row.peak_extra_bytes is not None:
        figures["bytes_per_pixel"] = row.peak_extra_bytes / row.n
    return figures
