"""prototype_update_ against the loop over classes and index_add; and after sinkhorn_assign, as in a training step."""

import torch
from torch import Tensor
from torch.nn import functional

from mpamatch import ops
from mpamatch.benchmarks import bench_sinkhorn_assign, inputs, loops
from mpamatch.benchmarks.cases import FORWARD, SINKHORN_AND_UPDATE, Case, of_pixels
from mpamatch.benchmarks.suite import Benchmark, Competitor, Inputs

MOMENTUM = 0.999


def cases(sizes: str, device: str, dtype: str) -> list[Case]:
    return of_pixels("prototype_update_", FORWARD, sizes, dtype)


def least_bytes(case: Case) -> int:
    # read embedding N·D·b and assignment N·4; read and write prototypes 2·M·D·4
    return case.n * case.d * case.itemsize + 4 * case.n + 8 * case.m * case.d


def least_flops(case: Case) -> int:
    # norms 2·N·D and sums 2·N·D
    return 4 * case.n * case.d


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


def cases_of_both(sizes: str, device: str, dtype: str) -> list[Case]:
    return of_pixels(SINKHORN_AND_UPDATE, FORWARD, sizes, dtype)


def make_both(case: Case, device: str) -> Inputs:
    return bench_sinkhorn_assign.make(case, device) | {"updates": updates(case, device)}


def assign_and_update(embedding: Tensor, prototypes: Tensor, label: Tensor, updates: Tensor) -> tuple[Tensor, ...]:
    assignment = ops.sinkhorn_assign(embedding, prototypes, label)
    ops.prototype_update_(prototypes, updates, embedding, assignment)
    return assignment, prototypes, updates


def loop_of_both(embedding: Tensor, prototypes: Tensor, label: Tensor, updates: Tensor) -> tuple[Tensor, ...]:
    assignment = loops.assign(embedding, prototypes, label)
    loops.update_(prototypes, updates, embedding, assignment)
    return assignment, prototypes, updates


BENCHMARK = Benchmark(
    "prototype_update_",
    cases,
    least_bytes,
    least_flops,
    make,
    update,
    {"loop": Competitor(loop), "index_add": Competitor(index_add)},
    least={FORWARD: 6.5},
    state=("prototypes", "updates"),
)
AFTER_SINKHORN = Benchmark(
    SINKHORN_AND_UPDATE,
    cases_of_both,
    lambda case: bench_sinkhorn_assign.least_bytes(case) + least_bytes(case),  # the embedding is read twice
    lambda case: bench_sinkhorn_assign.least_flops(case) + least_flops(case),
    make_both,
    assign_and_update,
    {"loop": Competitor(loop_of_both)},
    least={FORWARD: 5.0},
    state=("prototypes", "updates"),
)
BENCHMARKS = (BENCHMARK, AFTER_SINKHORN)
