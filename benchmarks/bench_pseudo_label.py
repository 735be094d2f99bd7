"""pseudo_label against softmax and max, as FixMatch-style code writes it."""

import torch
from torch import Tensor

from mpamatch import ops
from mpamatch.benchmarks import inputs
from mpamatch.benchmarks.cases import FORWARD, Case, of_maps
from mpamatch.benchmarks.suite import Benchmark, Competitor, Inputs


def cases(sizes: str, device: str, dtype: str) -> list[Case]:
    return of_maps("pseudo_label", FORWARD, sizes, dtype)


def least_bytes(case: Case) -> int:
    # read logits N·C·b; write label N·1 and confidence N·4
    return case.n * case.c * case.itemsize + 5 * case.n


def least_flops(case: Case) -> int:
    # compare, shift, exp, sum
    return 4 * case.n * case.c


def make(case: Case, device: str) -> Inputs:
    return {"logits": inputs.logits(case, device)}


@torch.no_grad()
def softmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    confidence, label = logits.float().softmax(1).max(1)
    return label.to(torch.uint8), confidence


BENCHMARK = Benchmark(
    "pseudo_label",
    cases,
    least_bytes,
    least_flops,
    make,
    ops.pseudo_label,
    {"softmax": Competitor(softmax)},
    least={FORWARD: 2.3},
)
BENCHMARKS = (BENCHMARK,)
