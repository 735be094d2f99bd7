"""pseudo_label against softmax and max, as FixMatch-style code writes it."""

import torch
from torch import Tensor

from mpamatch import ops
from mpamatch.benchmarks import cases, inputs
from mpamatch.benchmarks.cases import Case
from mpamatch.benchmarks.suite import Benchmark, Competitor, Inputs


def make(case: Case, device: str) -> Inputs:
    return {"logits": inputs.logits(case, device)}


@torch.no_grad()
def softmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    confidence, label = logits.float().softmax(1).max(1)
    return label.to(torch.uint8), confidence


BENCHMARK = Benchmark("pseudo_label", cases.pseudo_label, make, ops.pseudo_label, {"softmax": Competitor(softmax)})
