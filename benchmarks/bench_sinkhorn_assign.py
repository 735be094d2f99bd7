"""sinkhorn_assign against the loop over classes."""

from torch import Tensor

from mpamatch import ops
from mpamatch.benchmarks import inputs, loops
from mpamatch.benchmarks.cases import FORWARD, Case, of_pixels
from mpamatch.benchmarks.suite import Benchmark, Competitor, Inputs


def cases(sizes: str, device: str, dtype: str) -> list[Case]:
    return of_pixels("sinkhorn_assign", FORWARD, sizes, dtype)


def least_bytes(case: Case) -> int:
    # read embedding N·D·b, prototypes M·D·4, label N·1; write assignment N·4. The N·K scores stay in cache
    return case.n * case.d * case.itemsize + case.m * case.d * 4 + 5 * case.n


def least_flops(case: Case) -> int:
    # the K scores of the own class 2·N·K·D and norms 2·N·D; iterations O(N·K) are left out
    return 2 * case.n * case.k * case.d + 2 * case.n * case.d


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


BENCHMARK = Benchmark(
    "sinkhorn_assign",
    cases,
    least_bytes,
    least_flops,
    make,
    assign,
    {"loop": Competitor(loop)},
    least={FORWARD: 4.5},
)
BENCHMARKS = (BENCHMARK,)
