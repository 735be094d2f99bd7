"""prototype_update_ against the loop over classes and index_add."""

import torch
from torch import Tensor
from torch.nn import functional

from mpamatch import ops
from mpamatch.benchmarks import cases, inputs, loops
from mpamatch.benchmarks.cases import Case
from mpamatch.benchmarks.suite import Benchmark, Competitor, Inputs

MOMENTUM = 0.999


def updates(case: Case, device: str) -> Tensor:  # (C, K) i64, past the first fill
    return torch.full((case.c, case.k), 20, dtype=torch.int64, device=device)


def make(case: Case, device: str) -> Inputs:
    return {
        "prototypes": inputs.prototypes(case, device),
        "updates": updates(case, device),
        "embedding": inputs.embedding(case, device),
        "assignment": inputs.assignment(case, device),
    }


def update(prototypes: Tensor, updates: Tensor, embedding: Tensor, assignment: Tensor) -> tuple[Tensor, Tensor]:
    ops.prototype_update_(prototypes, updates, embedding, assignment, momentum=MOMENTUM)
    return prototypes, updates


def loop(prototypes: Tensor, updates: Tensor, embedding: Tensor, assignment: Tensor) -> tuple[Tensor, Tensor]:
    loops.update_(prototypes, updates, embedding, assignment, MOMENTUM)
    return prototypes, updates


@torch.no_grad()
def index_add(prototypes: Tensor, updates: Tensor, embedding: Tensor, assignment: Tensor) -> tuple[Tensor, Tensor]:
    """Sums and counts into a row of their own for ignored pixels; on a GPU its order, and so its result, varies."""
    classes, per_class, width = prototypes.shape
    row = torch.where(assignment < 0, classes * per_class, assignment).long()
    z = functional.normalize(embedding.float(), dim=-1)
    total = z.new_zeros(classes * per_class + 1, width).index_add_(0, row, z)[:-1].reshape(prototypes.shape)
    moved = total.norm(dim=-1) > 0
    m = (1 - 1 / (updates + 1).float()).clamp(max=MOMENTUM)[..., None]
    new = functional.normalize(m * prototypes + (1 - m) * functional.normalize(total, dim=-1), dim=-1)
    prototypes.copy_(torch.where(moved[..., None], new, prototypes))
    updates.add_(moved.long())
    return prototypes, updates


BENCHMARK = Benchmark(
    "prototype_update_",
    cases.prototype_update_,
    make,
    update,
    {"loop": Competitor(loop), "index_add": Competitor(index_add)},
    state=("prototypes", "updates"),
)
