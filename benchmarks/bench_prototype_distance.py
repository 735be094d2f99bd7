"""prototype_distance against a loop over classes, cdist + argmin, and KeOps."""

import torch
from torch import Tensor
from torch.nn import functional

from mpamatch import ops
from mpamatch.benchmarks import cases, inputs, loops
from mpamatch.benchmarks.cases import Case
from mpamatch.benchmarks.suite import Benchmark, Competitor, Inputs, needs


def make(case: Case, device: str) -> Inputs:
    found = {"embedding": inputs.embedding(case, device), "prototypes": inputs.prototypes(case, device)}
    if case.direction == cases.BOTH:
        found["grad_distance"] = inputs.incoming(case, device, case.n, case.c)
    return found


def cdist(
    embedding: Tensor,  # (N, D)
    prototypes: Tensor,  # (C, K, D)
) -> tuple[Tensor, Tensor]:
    """Of unit vectors ‖z − p‖² = 2 − 2·cos, so half the square of the least distance is 1 − cos."""
    classes, per_class, width = prototypes.shape
    z, p = functional.normalize(embedding.float(), dim=-1), functional.normalize(prototypes, dim=-1)
    euclidean = torch.cdist(z, p.reshape(-1, width)).reshape(-1, classes, per_class)
    nearest = euclidean.argmin(-1)
    return euclidean.gather(-1, nearest[..., None]).squeeze(-1).square() / 2, nearest.int()


def keops(
    embedding: Tensor,  # (N, D)
    prototypes: Tensor,  # (C, K, D)
) -> tuple[Tensor, Tensor]:
    """A reduction per class: KeOps reduces whole axes."""
    from pykeops.torch import LazyTensor

    z = functional.normalize(embedding.float(), dim=-1)
    rows = LazyTensor(z[:, None, :].contiguous())
    found = []
    for own in functional.normalize(prototypes, dim=-1):
        nearest = (rows | LazyTensor(own[None, :, :].contiguous())).argmax(dim=1).reshape(-1)
        found.append(((z * own[nearest]).sum(-1), nearest))
    return 1 - torch.stack([cosine for cosine, _ in found], 1), torch.stack([k for _, k in found], 1).int()


BENCHMARK = Benchmark(
    "prototype_distance",
    cases.prototype_distance,
    make,
    ops.prototype_distance,
    {
        "loop": Competitor(loops.distance),
        "cdist": Competitor(cdist),
        "keops": Competitor(keops, needs("pykeops")),
    },
    wanted=("embedding", "prototypes"),
    incoming=("grad_distance",),
)
