"""sinkhorn_assign against the loop over classes; and with prototype_update_ after it, as a training step runs both."""

from torch import Tensor

from mpamatch import ops
from mpamatch.benchmarks import bench_prototype_update_, cases, inputs, loops
from mpamatch.benchmarks.cases import Case
from mpamatch.benchmarks.suite import Benchmark, Competitor, Inputs


def make(case: Case, device: str) -> Inputs:
    return {
        "embedding": inputs.embedding(case, device),
        "prototypes": inputs.prototypes(case, device),
        "label": inputs.label(case, device, case.n),
    }


def assign(embedding: Tensor, prototypes: Tensor, label: Tensor) -> tuple[Tensor]:
    return (ops.sinkhorn_assign(embedding, prototypes, label),)


def loop(embedding: Tensor, prototypes: Tensor, label: Tensor) -> tuple[Tensor]:
    return (loops.assign(embedding, prototypes, label),)


def make_both(case: Case, device: str) -> Inputs:
    return make(case, device) | {"updates": bench_prototype_update_.updates(case, device)}


def assign_and_update(embedding: Tensor, prototypes: Tensor, label: Tensor, updates: Tensor) -> tuple[Tensor, ...]:
    assignment = ops.sinkhorn_assign(embedding, prototypes, label)
    ops.prototype_update_(prototypes, updates, embedding, assignment)
    return assignment, prototypes, updates


def loop_of_both(embedding: Tensor, prototypes: Tensor, label: Tensor, updates: Tensor) -> tuple[Tensor, ...]:
    assignment = loops.assign(embedding, prototypes, label)
    loops.update_(prototypes, updates, embedding, assignment)
    return assignment, prototypes, updates


BENCHMARK = Benchmark("sinkhorn_assign", cases.sinkhorn_assign, make, assign, {"loop": Competitor(loop)})
WITH_UPDATE = Benchmark(
    cases.SINKHORN_AND_UPDATE,
    cases.sinkhorn_and_update,
    make_both,
    assign_and_update,
    {"loop": Competitor(loop_of_both)},
    state=("prototypes", "updates"),
)
