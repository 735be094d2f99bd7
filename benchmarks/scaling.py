"""What training would take on many ranks, from numbers measured on one: a prediction, with every term of the formula.

    python -m mpamatch.benchmarks.scaling --step-seconds 0.5 --labelled 8 --unlabelled 24 --bytes 1.24e9 --ranks 64 \\
        --bandwidth 25e9 --feed 60 --cores 12 --patches 1e8

The formula and where to measure each number: docs/SCALING.md.
"""

import argparse
import sys
from dataclasses import dataclass, fields

from mpamatch.errors import InputError


@dataclass(frozen=True)
class Plan:
    """The numbers that the prediction rests on.

    Attributes:
        step_seconds: one step of one rank alone, its share of the batch in memory (bench_step).
        labelled: labelled images of one rank and step.
        unlabelled: unlabelled images of one rank and step.
        bytes: what one rank hands to all-reduce in a step (bench_ranks).
        ranks: how many there are.
        bandwidth: bytes per second that one rank can send, over the slowest link of the ring.
        feed: images per second that one core decodes and augments into all their views (bench_feed).
        cores: cores that feed one rank.
        patches: unlabelled images to see.
        calls: small messages of a step that nothing hides: all but the gradients (bench_ranks).
        latency: seconds that one of them takes.
        overlap: share of the step in which gradients can travel while others are still being computed.
        image_bytes: of one image file; 0 leaves the storage out.
        storage: bytes per second that all ranks together read.
    """

    step_seconds: float
    labelled: int
    unlabelled: int
    bytes: float
    ranks: int
    bandwidth: float
    feed: float
    cores: float
    patches: float
    calls: int = 12
    latency: float = 30e-6
    overlap: float = 0.5
    image_bytes: float = 0.0
    storage: float = 1e9

    def __post_init__(self) -> None:
        for name in ("step_seconds", "unlabelled", "ranks", "bandwidth", "feed", "cores", "patches", "storage"):
            if not getattr(self, name) > 0:
                raise InputError(f"--{name.replace('_', '-')}: expected above 0, got {getattr(self, name)}.")
        for name in ("labelled", "bytes", "calls", "latency", "image_bytes"):
            if not getattr(self, name) >= 0:
                raise InputError(f"--{name.replace('_', '-')}: expected at least 0, got {getattr(self, name)}.")
        if not 0 <= self.overlap <= 1:
            raise InputError(f"--overlap: expected 0 to 1, got {self.overlap}.")

    @property
    def images(self) -> int:
        return self.labelled + self.unlabelled

    @property
    def exchange(self) -> float:
        """Seconds of a ring all-reduce: each rank sends 2·(n − 1)/n of the bytes."""
        return 2 * (self.ranks - 1) / self.ranks * self.bytes / self.bandwidth

    @property
    def hidden(self) -> float:
        return min(self.exchange, self.overlap * self.step_seconds)

    @property
    def small(self) -> float:
        return self.calls * self.latency if self.ranks > 1 else 0.0

    @property
    def computing(self) -> float:
        """Seconds of a step whose data are there."""
        return self.step_seconds + self.exchange - self.hidden + self.small

    @property
    def feeding(self) -> float:
        return self.images / (self.feed * self.cores)

    @property
    def reading(self) -> float:
        return self.ranks * self.images * self.image_bytes / self.storage

    @property
    def step(self) -> float:
        """Data are made ahead of the step, so the slowest of the three sets the pace."""
        return max(self.computing, self.feeding, self.reading)

    @property
    def bound(self) -> str:
        return max(("computing", "feeding", "reading"), key=lambda name: getattr(self, name))

    @property
    def hours(self) -> float:
        return self.patches / (self.ranks * self.unlabelled) * self.step / 3600

    @property
    def efficiency(self) -> float:
        """Images per second of a rank among others, as a share of one alone with its data in memory."""
        return self.step_seconds / self.step


def terms(plan: Plan) -> list[tuple[str, str, str]]:
    """Name, formula with the numbers in it, and value of each term."""
    p, n = plan, plan.ranks
    return [
        ("one rank alone", "given", f"{p.step_seconds:.4g} s"),
        ("exchange", f"2·({n} − 1)/{n} · {p.bytes:.4g} B / {p.bandwidth:.4g} B/s", f"{p.exchange:.4g} s"),
        ("hidden", f"min({p.exchange:.4g}, {p.overlap:g} · {p.step_seconds:.4g})", f"{p.hidden:.4g} s"),
        ("small messages", f"{p.calls if n > 1 else 0} · {p.latency:g} s", f"{p.small:.4g} s"),
        (
            "computing",
            f"{p.step_seconds:.4g} + {p.exchange:.4g} − {p.hidden:.4g} + {p.small:.4g}",
            f"{p.computing:.4g} s",
        ),
        ("feeding", f"{p.images} / ({p.feed:g} · {p.cores:g})", f"{p.feeding:.4g} s"),
        ("reading", f"{n} · {p.images} · {p.image_bytes:g} B / {p.storage:.4g} B/s", f"{p.reading:.4g} s"),
        ("step", f"max(computing, feeding, reading) = {p.bound}", f"{p.step:.4g} s"),
        ("efficiency", f"{p.step_seconds:.4g} / {p.step:.4g}", f"{p.efficiency:.1%}"),
        ("unlabelled images", f"{n} · {p.unlabelled} / {p.step:.4g} s", f"{n * p.unlabelled / p.step:,.0f} /s"),
        (f"{p.patches:,.0f} patches", f"{p.patches:g} / ({n} · {p.unlabelled}) · {p.step:.4g} s", f"{p.hours:.4g} h"),
        ("ranks' time", f"{n} · {p.hours:.4g} h", f"{n * p.hours:,.4g} h"),
    ]


def main(words: list[str] | None = None) -> int:
    """Prints the terms; 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    helps = dict(line.strip().split(": ", 1) for line in (Plan.__doc__ or "").splitlines() if line.startswith(" " * 8))
    for field in fields(Plan):
        needed = not isinstance(field.default, int | float)
        kind = float if field.type in (float, "float") else int
        text = helps[field.name] + ("" if needed else f" ({field.default:g})")
        default = None if needed else field.default
        parser.add_argument(
            f"--{field.name.replace('_', '-')}", type=kind, required=needed, default=default, help=text, metavar="X"
        )
    arguments = parser.parse_args(words)
    try:
        plan = Plan(**vars(arguments))
    except InputError as error:
        print(f"scaling: {error}", file=sys.stderr)
        return 2
    print("a prediction, from numbers of one rank:")
    for name, formula, value in terms(plan):
        print(f"  {name:<22}{formula:<58}{value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
