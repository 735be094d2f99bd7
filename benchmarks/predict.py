"""Tables of what the cost model predicts: times of the operations on each card, and of each launch what bounds it.

    python -m mpamatch.benchmarks.predict                                    Markdown for docs/PERFORMANCE.md
    python -m mpamatch.benchmarks.predict --op prototype_contrast --card H100

Needs triton, and no GPU: its kernels are compiled, not run.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from mpamatch.benchmarks.all import BENCHMARKS
from mpamatch.benchmarks.cards import CARDS, Card, card_of
from mpamatch.benchmarks.cases import BOTH, Case
from mpamatch.benchmarks.command import run_main
from mpamatch.benchmarks.launches import described, launches
from mpamatch.benchmarks.model import MEMORY_SHARE, TENSOR_SHARE, Launch, Prediction, predict
from mpamatch.benchmarks.report import markdown
from mpamatch.errors import unknown

DTYPE = "bfloat16"
HEADER = ("operation", "size", "direction", *(name for card in CARDS for name in (f"{card.name}, µs", "of the floor")))
PARTS_HEADER = (
    "operation", "launch", "programs", "at once", "registers", "shared, KB", "µs", "bound by", "memory, µs",
    "instructions, µs", "tensor cores, µs",
)  # fmt: skip


@dataclass(frozen=True)
class Predicted:
    """A case on a card, all its launches."""

    case: Case
    card: Card
    launches: tuple[Launch, ...]
    parts: tuple[Prediction, ...]

    @property
    def seconds(self) -> float:
        return sum(part.seconds for part in self.parts)

    @property
    def share(self) -> float:
        """The least time that memory and tensor cores allow, over the predicted one."""
        memory = self.case.bytes / (self.card.memory * MEMORY_SHARE)
        rate = 2 * self.card.tensor * self.card.processors * self.card.clock * TENSOR_SHARE
        return max(memory, self.case.flops / rate) / self.seconds


@cache
def predicted(case: Case, card: Card) -> Predicted | None:
    """None where nothing is known of the operation's launches."""
    found = launches(case, card)
    return Predicted(case, card, tuple(found), tuple(predict(launch, card) for launch in found)) if found else None


def seconds(case: Case, name: str, capability: tuple[int, int], processors: int) -> float | None:
    """The predicted time on a device at hand, None where the device or the operation is not known."""
    card = card_of(name, capability, processors)
    found = predicted(case, card) if card else None
    return found.seconds if found else None


def lines(operations: Sequence[str], cards: Sequence[Card]) -> Iterator[list[str]]:
    """A line of the table for each case of these operations."""
    for benchmark in BENCHMARKS:
        if benchmark.operation not in operations:
            continue
        for case in benchmark.cases("full", "cuda", DTYPE):
            cells = [cell for card in cards for cell in _cells(predicted(case, card))]
            yield [case.operation, case.name.removesuffix(f" {DTYPE}"), case.direction, *cells]


def _cells(found: Predicted | None) -> list[str]:
    return [f"{1e6 * found.seconds:.1f}", f"{100 * found.share:.0f} %"] if found else ["–", ""]


def part_lines(cases: Iterable[Case], card: Card) -> Iterator[list[str]]:
    """A line for each launch of these cases."""
    for case in cases:
        found = predicted(case, card)
        for launch, part in zip(found.launches, found.parts, strict=True) if found else ():
            size = f"{case.operation}, M {case.m}" if case.k else f"{case.operation}, C {case.c}"
            times = [part.parts[name] for name in ("memory", "instructions", "tensor cores")]
            yield [
                size, part.kernel, str(launch.programs), str(part.resident), str(launch.registers),
                f"{launch.shared_memory / 1024:.0f}", f"{1e6 * part.seconds:.1f}", part.bound,
                *(f"{1e6 * time:.1f}" for time in times),
            ]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [benchmark.operation for benchmark in BENCHMARKS if described(benchmark.operation)]
    parser.add_argument("--op", default=",".join(known), help="operations, separated by commas")
    parser.add_argument("--card", default=",".join(card.name for card in CARDS), help="cards, separated by commas")
    arguments = parser.parse_args()
    wanted, names = arguments.op.split(","), {card.name: card for card in CARDS}
    for word in wanted:
        if word not in known:
            raise unknown("operation", word, known)
    for word in arguments.card.split(","):
        if word not in names:
            raise unknown("card", word, names)
    cards = [names[word] for word in arguments.card.split(",")]
    header = [*HEADER[:3], *(name for card in cards for name in (f"{card.name}, µs", "of the floor"))]
    print(f"Predicted, not measured; {DTYPE}.\n")
    print(markdown(header, lines(wanted, cards)))
    for card in cards if len(cards) == 1 else [names["H100"]]:
        cases = [
            case
            for benchmark in BENCHMARKS
            if benchmark.operation in wanted
            for case in benchmark.cases("full", "cuda", DTYPE)
            if case.d in (0, 256) and (case.direction == BOTH or "distance" not in case.operation)
        ]
        print(f"\n{card.name}, launch by launch:\n")
        print(markdown(PARTS_HEADER, part_lines(cases, card)))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
