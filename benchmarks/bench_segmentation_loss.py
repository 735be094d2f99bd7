"""segmentation_loss against F.cross_entropy and the sums of Dice beside it."""

import torch
from torch import Tensor
from torch.nn import functional

from mpamatch import ops
from mpamatch.benchmarks import inputs
from mpamatch.benchmarks.cases import BOTH, Case, of_maps
from mpamatch.benchmarks.suite import Benchmark, Competitor, Inputs


def cases(sizes: str, device: str, dtype: str) -> list[Case]:
    return of_maps("segmentation_loss", BOTH, sizes, dtype)


def least_bytes(case: Case) -> int:
    # read logits N·C·b and label N·1; in backward read both again and write N·C·b
    return 3 * case.n * case.c * case.itemsize + 2 * case.n


def least_flops(case: Case) -> int:
    # forward: shift, exp, sum, p, p², two sums: 7·N·C; backward: exp again, the dot product, three more: 8·N·C
    return 15 * case.n * case.c


def make(case: Case, device: str) -> Inputs:
    return {
        "logits": inputs.logits(case, device),
        "label": inputs.label(case, device, *case.shape),
        "grad_cross_entropy": inputs.incoming(case, device),
        "grad_overlap": inputs.incoming(case, device, 3, case.c),
    }


def cross_entropy(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    target, used = label.long(), (label != inputs.IGNORE)[:, None]
    loss = functional.cross_entropy(logits.float(), target, ignore_index=inputs.IGNORE, reduction="sum")
    p = logits.float().softmax(1) * used
    y = functional.one_hot(torch.where(used[:, 0], target, 0), logits.shape[1]).movedim(-1, 1) * used
    return loss, torch.stack([(p * y).sum((0, 2, 3)), (p * p).sum((0, 2, 3)), y.sum((0, 2, 3)).float()])


BENCHMARK = Benchmark(
    "segmentation_loss",
    cases,
    least_bytes,
    least_flops,
    make,
    ops.segmentation_loss,
    {"cross_entropy": Competitor(cross_entropy)},
    least={BOTH: 2.1},
    wanted=("logits",),
    incoming=("grad_cross_entropy", "grad_overlap"),
    constants={"weight": None},
)
BENCHMARKS = (BENCHMARK,)
