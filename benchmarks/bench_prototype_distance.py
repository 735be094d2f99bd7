"""prototype_distance against a loop over classes, cdist + argmin, and KeOps."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from mpamatch import ops
from mpamatch.benchmarks import inputs, loops
from mpamatch.benchmarks.cases import BOTH, FORWARD, Case, of_pixels
from mpamatch.benchmarks.suite import Benchmark, Competitor, Inputs, needs


def cases(sizes: str, device: str, dtype: str) -> list[Case]:
    """D 64, 256, 512 and M 20, 50, 190 at 65,536 pixels, and on a GPU at 262,144 too."""
    found = of_pixels("prototype_distance", FORWARD, sizes, dtype)
    middle = found[1] if len(found) > 1 else found[0]
    if sizes == "full":
        found += [replace(middle, d=width) for width in (64, 512)]
        if device == "cuda":
            found += [replace(middle, n=4 * middle.n, d=width) for width in (64, 256, 512)]
    return [*found, replace(middle, direction=BOTH)]


def least_bytes(case: Case) -> int:
    # read embedding N·D·b and prototypes M·D·4; write distance N·C·4 and nearest N·C·4
    forward = case.n * case.d * case.itemsize + case.m * case.d * 4 + 8 * case.n * case.c
    # read grad_distance, distance, nearest 3·N·C·4, embedding and prototypes; write both gradients
    backward = 12 * case.n * case.c + 2 * case.n * case.d * case.itemsize + 2 * case.m * case.d * 4
    return forward + (backward if case.direction == BOTH else 0)


def least_flops(case: Case) -> int:
    # products 2·N·M·D and norms 2·N·D
    forward = 2 * case.n * case.m * case.d + 2 * case.n * case.d
    # only the chosen prototype of each class: 2·N·C·D into each of the two gradients
    backward = 4 * case.n * case.c * case.d
    return forward + (backward if case.direction == BOTH else 0)


def make(case: Case, device: str) -> Inputs:
    found = {"embedding": inputs.embedding(case, device), "prototypes": inputs.prototypes(case, device)}
    if case.direction == BOTH:
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
    cases,
    least_bytes,
    least_flops,
    make,
    ops.prototype_distance,
    {
        "loop": Competitor(loops.distance),
        "cdist": Competitor(cdist),
        "keops": Competitor(keops, needs("pykeops")),
    },
    least={FORWARD: 1.5, BOTH: 1.6},
    wanted=("embedding", "prototypes"),
    incoming=("grad_distance",),
    results=("distance", "nearest", "inverse", "packed"),
)
BENCHMARKS = (BENCHMARK,)
