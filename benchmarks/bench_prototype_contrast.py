"""prototype_contrast against cross entropy over the N×M logits, torch's and Liger's fused linear cross entropy, KeOps.

The two fused ones compute the contrast alone, of normalised rows, and are compared with that.
"""

import torch
from torch import Tensor
from torch.nn import functional

from mpamatch import ops
from mpamatch.benchmarks import cases, inputs
from mpamatch.benchmarks.cases import Case
from mpamatch.benchmarks.suite import Benchmark, Competitor, Inputs, needs

TEMPERATURE = 0.1
CONTRAST_ONLY = "contrast only, no alignment"


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
    cases.prototype_contrast,
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
    wanted=("embedding", "prototypes"),
    incoming=("grad_contrast", "grad_alignment"),
)
