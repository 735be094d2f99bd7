"""Balanced assignment of pixels to the prototypes of their own class."""

import math

import torch
import torch.distributed as dist
from torch import Tensor

from mpamatch.ops import checks, dispatch
from mpamatch.ops.operation import Operation
from mpamatch.ops.selfcheck import Sample
from mpamatch.ops.unit import blank, maximum_over_ranks, sum_over_ranks, unit, without_autocast, working

SAFE_EPSILON = 0.025  # from here on exp(cos/ε − 1/ε) is a normal float32: no maximum has to be reduced


@without_autocast
@torch.no_grad()
def sinkhorn_assign(
    embedding: Tensor,  # (N, D) any floating dtype
    prototypes: Tensor,  # (C, K, D) f32 or f64
    label: Tensor,  # (N,) any integer dtype; outside [0, C), 255 among it: ignored
    *,
    epsilon: float = 0.05,
    iterations: int = 3,
    process_group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Assigns each pixel to a prototype of its class, balanced within the class by Sinkhorn, without gradient.

    With s = cos/ε the transport plan of a class is exp(s + log_u) up to a factor per pixel, so one K-vector log_u per
    class holds it all: log_u = −LSE_n(s), then per further iteration log_u −= log mean_n softmax_k(s + log_u), and
    k = argmax_k(s + log_u), the lowest k among equals. This equals ProtoSeg's loop of row and column normalisations
    (CVPR 2022, section 3; 7e-16 apart in float64).

    Args:
        embedding: pixel embeddings; they and the prototypes are normalised here.
        prototypes: K for each of C classes, at most 255.
        label: class of each pixel.
        epsilon: weight of the entropy, above 0; the lower, the nearer to the plain optimal transport.
        iterations: of Sinkhorn, at least 0; 0: each pixel goes to the nearest prototype of its class.
        process_group: the ranks whose pixels are balanced together, at C·K numbers reduced per iteration; None: this
            process alone.

    Returns:
        The flat assignment c·K + k of each pixel, −1 for ignored ones: (N,) i32.

    Raises:
        TypeError: an argument of another dtype.
        ValueError: an argument of another shape, device or range.
    """
    pixels, classes, *_ = checks.pixels_and_prototypes(embedding, prototypes)
    checks.is_integer("label", label)
    checks.has_shape("label", label, pixels)
    checks.same_device(embedding=embedding, label=label)
    if classes > checks.IGNORE:
        raise ValueError(f"prototypes: expected at most 255 classes, as label 255 means ignore, got {classes}.")
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon: expected > 0 and finite, got {epsilon}.")
    if iterations < 0:
        raise ValueError(f"iterations: expected >= 0, got {iterations}.")

    backend = dispatch.choose("sinkhorn_assign", embedding, prototypes, beyond=checks.beyond_cuda(prototypes))
    if backend == "eager":
        return reference(embedding, prototypes, label, epsilon, iterations, process_group)
    embedding, prototypes = checks.for_kernels(embedding, prototypes)
    return _fused(embedding, prototypes, checks.index(label), epsilon, iterations, process_group, backend)


def reference(
    embedding: Tensor,
    prototypes: Tensor,
    label: Tensor,
    epsilon: float,
    iterations: int,
    process_group: dist.ProcessGroup | None,
) -> Tensor:
    """Computes the operation in eager PyTorch: its specification."""
    pixels, (classes, per_class, width) = len(embedding), prototypes.shape
    label = label.long()
    used = (label >= 0) & (label < classes)
    own = torch.where(used, label, 0)
    member = torch.nn.functional.one_hot(own, classes).bool() & used[:, None]  # (N, C)
    dtype = torch.promote_types(working(embedding).dtype, prototypes.dtype)
    z = unit(blank(embedding.to(dtype), used))
    score = z @ unit(prototypes.to(dtype)).reshape(-1, width).T / epsilon
    score = score.reshape(pixels, classes, per_class)[torch.arange(pixels, device=label.device), own]  # (N, K)

    log_u = score.new_zeros(classes, per_class)
    for iteration in range(iterations):
        if iteration == 0:
            log_u = -_class_logsumexp(score, member, epsilon, process_group)
        else:
            share = torch.softmax(score + log_u[own], -1)
            total = sum_over_ranks(member.to(score.dtype).T @ share, process_group)
            # a sum for the mean: dividing by n shifts all K of a class alike, which no argmax sees
            log_u = log_u - torch.where(total > 0, total.clamp(min=torch.finfo(total.dtype).tiny).log(), 0.0)
    nearest = (score + log_u[own]).max(-1).indices
    return torch.where(used, own * per_class + nearest, -1).to(torch.int32)


def _class_logsumexp(
    score: Tensor,  # (N, K)
    member: Tensor,  # (N, C) bool
    epsilon: float,
    process_group: dist.ProcessGroup | None,
) -> Tensor:
    """Computes log Σ exp(score) over the pixels of each class and all ranks: (C, K); 0 for a class without pixels."""
    per_class = score.shape[1]
    lowest = torch.finfo(score.dtype).min
    masked = torch.where(member[:, :, None], score[:, None, :], lowest)  # (N, C, K)
    peak = score.new_full((member.shape[1], per_class), 1 / epsilon)
    if epsilon < SAFE_EPSILON:
        peak = maximum_over_ranks(torch.cat([masked, -peak[None]]).amax(0), process_group)  # (C, K)
    total = sum_over_ranks(torch.where(member[:, :, None], (masked - peak).exp(), 0.0).sum(0), process_group)
    empty = total == 0
    return torch.where(empty, 0.0, peak + torch.where(empty, 1.0, total).log())


def _fused(
    embedding: Tensor,
    prototypes: Tensor,
    label: Tensor,
    epsilon: float,
    iterations: int,
    process_group: dist.ProcessGroup | None,
    backend: str,
) -> Tensor:
    """Runs the kernel of one process, or with ranks the passes that it is made of."""
    if process_group is None:
        whole = dispatch.kernel("sinkhorn_assign", backend)
        assignment: Tensor = whole(embedding, prototypes, label, epsilon, iterations, epsilon >= SAFE_EPSILON)
        return assignment
    return _by_passes(embedding, prototypes, label, epsilon, iterations, process_group, backend)


def _by_passes(
    embedding: Tensor,
    prototypes: Tensor,
    label: Tensor,
    epsilon: float,
    iterations: int,
    process_group: dist.ProcessGroup | None,
    backend: str,
) -> Tensor:
    """Runs a kernel for each pass over the pixels, with C·K numbers reduced over the ranks in between.

    A constant added to log_u of all K of a class changes nothing, so the shift by 1/ε is not taken back.
    """
    step, pick = dispatch.kernel("sinkhorn_step", backend), dispatch.kernel("sinkhorn_pick", backend)
    shifted = epsilon >= SAFE_EPSILON
    score, total = dispatch.kernel("sinkhorn_score", backend)(embedding, prototypes, label, epsilon, shifted)
    log_u = torch.zeros_like(total)
    if iterations == 0:
        total = torch.ones_like(total)
    else:
        if not shifted:
            log_u = -maximum_over_ranks(total, process_group)
            log_u, total = step(score, label, log_u, torch.ones_like(total), False)
        total = sum_over_ranks(total, process_group)
    for _ in range(iterations - 1):
        log_u, total = step(score, label, log_u, total, True)
        total = sum_over_ranks(total, process_group)
    assignment: Tensor = pick(score, label, log_u, total)
    return assignment


def _fake_assign(
    embedding: Tensor, prototypes: Tensor, label: Tensor, epsilon: float, iterations: int, shifted: bool
) -> Tensor:
    return embedding.new_empty(embedding.shape[:1], dtype=torch.int32)


def _fake_score(
    embedding: Tensor, prototypes: Tensor, label: Tensor, epsilon: float, shifted: bool
) -> tuple[Tensor, Tensor]:
    classes, per_class, _ = prototypes.shape
    return prototypes.new_empty((embedding.shape[0], per_class)), prototypes.new_empty((classes, per_class))


def _fake_step(score: Tensor, label: Tensor, log_u: Tensor, total: Tensor, rows: bool) -> tuple[Tensor, Tensor]:
    return log_u.new_empty(log_u.shape), log_u.new_empty(log_u.shape)


def _fake_pick(score: Tensor, label: Tensor, log_u: Tensor, total: Tensor) -> Tensor:
    return score.new_empty(score.shape[:1], dtype=torch.int32)


def _self_check(sample: Sample) -> list[Tensor]:
    """Of both forms: a run with ranks takes the passes."""
    embedding, prototypes = checks.for_kernels(sample.embedding, sample.prototypes)
    backend = dispatch.choose("sinkhorn_assign", embedding, prototypes)
    results = []
    for epsilon in (0.05, 0.01):
        whole = sinkhorn_assign(embedding, prototypes, sample.label, epsilon=epsilon)
        given = (embedding, prototypes, sample.label, epsilon, 3, None)
        results += [whole, whole if backend == "eager" else _by_passes(*given, backend)]
    return results


OPERATION = Operation(
    name="sinkhorn_assign",
    backends=("cpp", "cuda"),
    kernels={
        "sinkhorn_score": _fake_score,
        "sinkhorn_step": _fake_step,
        "sinkhorn_pick": _fake_pick,
        "sinkhorn_assign": _fake_assign,
    },
    self_check=_self_check,
)
