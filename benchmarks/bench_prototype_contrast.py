"""prototype_contrast against cross entropy over the N×M logits, torch's and Liger's fused linear cross entropy, KeOps.

The two fused ones compute the contrast alone, of normalised rows, and are compared with that.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from mpamatch import ops
from mpamatch.benchmarks import inputs
from mpamatch.benchmarks.cases import BOTH, Case, of_pixels
from mpamatch.benchmarks.suite import Benchmark, Competitor, Inputs, needs

TEMPERATURE = 0.1
CONTRAST_ONLY = "contrast only, no alignment"


def cases(sizes: str, device: str, dtype: str) -> list[Case]:
    found = of_pixels("prototype_contrast", BOTH, sizes, dtype)
    return [*found, replace(found[1], d=64)] if sizes == "full" else found


def least_bytes(case: Case) -> int:
    row, prototypes = case.n * case.d * case.itemsize, case.m * case.d * 4
    # read embedding, prototypes, assignment N·4; write lse N·4
    forward = row + prototypes + 8 * case.n
    # read all of it again, write both gradients: with the forward pass 3·N·D·b, in half precision 6·N·D
    backward = 2 * row + 2 * prototypes + 8 * case.n
    return forward + backward


def least_flops(case: Case) -> int:
    # logits 2·N·M·D forward; again in backward, then 2·N·M·D into each of the two gradients
    return 8 * case.n * case.m * case.d


def make(case: Case, device: str) -> Inputs:
    return {
        "embedding": inputs.embedding(case, device),
        "prototypes": inputs.prototypes(case, device),
        "assignment": inputs.assignment(case, device),
        "grad_contrast": inputs.incoming(case, device),
        "grad_alignment": inputs.incoming(case, device),
    }


def contrast(embedding: Tensor, prototypes: Tensor, assignment: Tensor) -> tuple[Tensor, Tensor]:
    return ops.prototype_contrast(embedding, prototypes, assignment, temperature=TEMPERATURE)


def contrast_only(embedding: Tensor, prototypes: Tensor, assignment: Tensor) -> tuple[Tensor]:
    return contrast(embedding, prototypes, assignment)[:1]


def _rows(embedding: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """Unit pixels in their own dtype, unit prototypes over the temperature in the same one: a linear layer's input and
    weight."""
    flat = functional.normalize(prototypes, dim=-1).reshape(-1, prototypes.shape[-1]) / TEMPERATURE
    return functional.normalize(embedding, dim=-1), flat.to(embedding.dtype)


def cross_entropy(embedding: Tensor, prototypes: Tensor, assignment: Tensor) -> tuple[Tensor, Tensor]:
    z, p = _rows(embedding.float(), prototypes)
    logits, target = z @ p.T, assignment.long()
    own = TEMPERATURE * logits.gather(1, target.clamp(min=0)[:, None]).squeeze(1)
    alignment = ((1 - own).square() * (target >= 0)).sum()
    return functional.cross_entropy(logits, target, ignore_index=-1, reduction="sum"), alignment


def linear_cross_entropy(embedding: Tensor, prototypes: Tensor, assignment: Tensor) -> tuple[Tensor]:
    fused = functional.linear_cross_entropy  # type: ignore[attr-defined]
    loss = fused(*_rows(embedding, prototypes), assignment.long(), reduction="sum", ignore_index=-1)
    return (loss.float(),)


def _no_linear_cross_entropy(device: str) -> str | None:
    if hasattr(functional, "linear_cross_entropy"):
        return None
    return f"torch {torch.__version__} has no F.linear_cross_entropy"


def liger(embedding: Tensor, prototypes: Tensor, assignment: Tensor) -> tuple[Tensor]:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    z, p = _rows(embedding, prototypes)
    return (liger_fused_linear_cross_entropy(z, p, assignment.long(), ignore_index=-1, reduction="sum").float(),)


def keops(embedding: Tensor, prototypes: Tensor, assignment: Tensor) -> tuple[Tensor, Tensor]:
    from pykeops.torch import LazyTensor

    z, p = _rows(embedding.float(), prototypes)
    own = (z * p[assignment.clamp(min=0).long()]).sum(-1)
    lse = (LazyTensor(z[:, None, :].contiguous()) | LazyTensor(p[None, :, :].contiguous())).logsumexp(dim=1)
    used = assignment >= 0
    return ((lse.reshape(-1) - own) * used).sum(), ((1 - TEMPERATURE * own).square() * used).sum()


BENCHMARK = Benchmark(
    "prototype_contrast",
    cases,
    least_bytes,
    least_flops,
    make,
    contrast,
    {
        "cross_entropy": Competitor(cross_entropy),
        "linear_cross_entropy": Competitor(
            linear_cross_entropy, _no_linear_cross_entropy, contrast_only, CONTRAST_ONLY
        ),
        "liger": Competitor(liger, needs("liger_kernel", cuda=True), contrast_only, CONTRAST_ONLY),
        "keops": Competitor(keops, needs("pykeops")),
    },
    least={BOTH: 1.1},
    wanted=("embedding", "prototypes"),
    incoming=("grad_contrast", "grad_alignment"),
    constants={"weight": None, "temperature": TEMPERATURE, "same_class_negatives": True},
    results=("contrast", "alignment", "lse", "inverse", "packed"),
)
BENCHMARKS = (BENCHMARK,)
