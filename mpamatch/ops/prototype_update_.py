"""Online clustering: moves each prototype towards the mean of its pixels."""

import torch
import torch.distributed as dist
from torch import Tensor

from mpamatch.ops import checks, dispatch
from mpamatch.ops.operation import Operation, working_dtype
from mpamatch.ops.selfcheck import Sample
from mpamatch.ops.unit import ZERO_NORM, blank, sum_over_ranks, unit, without_autocast, working


@without_autocast
@torch.no_grad()
def prototype_update_(
    prototypes: Tensor,  # (C, K, D) f32 or f64, changed in place
    updates: Tensor,  # (C, K) i64, changed in place: how often each prototype was updated
    embedding: Tensor,  # (N, D) any floating dtype
    assignment: Tensor,  # (N,) i32 or i64: c·K + k, −1 = ignored
    *,
    weight: Tensor | None = None,  # (N,) >= 0, default 1
    momentum: float = 0.999,
    process_group: dist.ProcessGroup | None = None,
) -> None:
    """Moves each prototype towards the mean of its pixels, in place: p ← L2(m·p + (1−m)·L2(Σ w z)), n ← n + 1.

    m = min(1 − 1/(n+1), momentum), so the first update sets the mean direction itself. A prototype without pixels of
    weight > 0 (or whose pixels cancel to a zero vector) keeps its bits and its n. C·K·D numbers are reduced over the
    ranks. Source: ProtoSeg (CVPR 2022), eq. 12; the ramp of m is ours: a fixed .999 from a random start leaves 74 % of
    the noise after 300 steps.

    Args:
        prototypes: p, unit vectors, K for each of C classes.
        updates: n of each prototype.
        embedding: pixel embeddings; they are normalised here.
        assignment: the prototype of each pixel.
        weight: of each pixel.
        momentum: largest share of the old prototype, in [0, 1].
        process_group: the ranks whose pixels are summed; None: this process alone.

    Raises:
        TypeError: an argument of another dtype.
        ValueError: an argument of another shape, device or range.
    """
    pixels, classes, per_class, _ = checks.pixels_and_prototypes(embedding, prototypes)
    checks.has_dtype("updates", updates, torch.int64)
    checks.has_shape("updates", updates, classes, per_class)
    checks.has_dtype("assignment", assignment, torch.int32, torch.int64)
    checks.has_shape("assignment", assignment, pixels)
    checks.same_device(embedding=embedding, updates=updates, assignment=assignment)
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum: expected in [0, 1], got {momentum}.")

    if weight is not None:
        weight = checks.pixel_weight(weight, prototypes, pixels)
    backend = dispatch.choose("prototype_update_", prototypes, beyond=checks.beyond_cuda(prototypes))
    if backend == "eager":
        reference(prototypes, updates, embedding, assignment, weight, momentum, process_group)
    else:
        _fused(prototypes, updates, embedding, assignment, weight, momentum, process_group, backend)


def reference(
    prototypes: Tensor,
    updates: Tensor,
    embedding: Tensor,
    assignment: Tensor,
    weight: Tensor | None,
    momentum: float,
    process_group: dist.ProcessGroup | None,
) -> None:
    """Computes the operation in eager PyTorch: its specification."""
    pixels, (classes, per_class, width) = len(embedding), prototypes.shape
    w = checks.pixel_weight(weight, prototypes, pixels)
    chosen = assignment.long()
    used = (chosen >= 0) & (chosen < classes * per_class) & (w != 0)
    z = unit(blank(working(embedding).to(prototypes.dtype), used))
    member = chosen[:, None] == torch.arange(classes * per_class, device=chosen.device)
    share = torch.where(member & used[:, None], w[:, None], 0.0)  # (N, C·K)
    total = sum_over_ranks(share.T @ z, process_group).reshape(classes, per_class, width)

    moved = total.norm(dim=-1) >= ZERO_NORM
    ramp = 1 - 1 / (updates + 1).to(prototypes.dtype)
    m = ramp.clamp(max=momentum)[..., None]
    new = unit(m * prototypes + (1 - m) * unit(total))
    prototypes.copy_(torch.where(moved[..., None], new, prototypes))
    updates.add_(moved.to(torch.int64))


def _fused(
    prototypes: Tensor,
    updates: Tensor,
    embedding: Tensor,
    assignment: Tensor,
    weight: Tensor | None,
    momentum: float,
    process_group: dist.ProcessGroup | None,
    backend: str,
) -> None:
    move_ = dispatch.kernel("prototype_move_", backend)
    if torch.float64 in (embedding.dtype, prototypes.dtype):
        embedding = embedding.to(prototypes.dtype)
    weight = None if weight is None else weight.contiguous()
    total = dispatch.kernel("prototype_sum", backend)(
        checks.rows(embedding), assignment.contiguous(), weight, updates.numel()
    )
    total = sum_over_ranks(total, process_group)
    if prototypes.is_contiguous() and updates.is_contiguous():
        move_(prototypes, updates, total, momentum)
        torch.autograd.graph.increment_version((prototypes, updates))  # a pending backward must notice the change
    else:
        moved, counted = (x.clone(memory_format=torch.contiguous_format) for x in (prototypes, updates))
        move_(moved, counted, total, momentum)
        prototypes.copy_(moved)
        updates.copy_(counted)


def _fake_sum(embedding: Tensor, assignment: Tensor, weight: Tensor | None, prototypes: int) -> Tensor:
    return embedding.new_empty((prototypes, embedding.shape[1]), dtype=working_dtype(embedding))


def _fake_move_(prototypes: Tensor, updates: Tensor, total: Tensor, momentum: float) -> None:
    return None


def _self_check(sample: Sample) -> list[Tensor]:
    prototypes = sample.prototypes
    updates = torch.arange(prototypes[..., 0].numel(), device=prototypes.device).reshape(prototypes.shape[:2])
    prototype_update_(prototypes, updates, sample.embedding, sample.assignment, weight=sample.weight)
    return [prototypes, updates]


OPERATION = Operation(
    name="prototype_update_",
    backends=("cpp", "cuda"),
    kernels={"prototype_sum": _fake_sum, "prototype_move_": _fake_move_},
    self_check=_self_check,
)
