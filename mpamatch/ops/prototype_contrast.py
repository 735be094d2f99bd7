"""InfoNCE and alignment of pixels with their prototype."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mpamatch.ops import checks, dispatch
from mpamatch.ops.operation import Operation, gradients_like
from mpamatch.ops.selfcheck import Sample
from mpamatch.ops.unit import blank, unit, without_autocast, working


@without_autocast
def prototype_contrast(
    embedding: Tensor,  # (N, D) any floating dtype
    prototypes: Tensor,  # (C, K, D) f32 or f64
    assignment: Tensor,  # (N,) i32 or i64: c·K + k, −1 = ignored
    *,
    temperature: float = 0.1,
    weight: Tensor | None = None,  # (N,) >= 0, default 1
    same_class_negatives: bool = True,
) -> tuple[Tensor, Tensor]:
    """Contrasts and aligns pixels with their prototypes: Σ w·InfoNCE and Σ w·(1 − cos)² over the pixels.

    InfoNCE = −log(exp(cos_own/T) / Σ exp(cos/T)), the sum over all C·K prototypes. Gradients go to `embedding` and
    `prototypes`, none to `weight`. Source: MPAMatch (arXiv 2508.19574), PCL and PAL in the form of ProtoSeg
    (CVPR 2022), eqs. 9 and 10, with the temperature that ProtoSeg's paper states.

    Args:
        embedding: pixel embeddings; they and the prototypes are normalised here.
        prototypes: K for each of C classes.
        assignment: the prototype of each pixel.
        temperature: T, above 0.
        weight: of each pixel.
        same_class_negatives: whether a class's other prototypes are in the sum; if not, it is over the own prototype
            and those of other classes.

    Returns:
        The contrast and the alignment, both () f32 (f64 if an input is).

    Raises:
        TypeError: an argument of another dtype.
        ValueError: an argument of another shape, device or range.
    """
    pixels, *_ = checks.pixels_and_prototypes(embedding, prototypes)
    checks.has_dtype("assignment", assignment, torch.int32, torch.int64)
    checks.has_shape("assignment", assignment, pixels)
    checks.same_device(embedding=embedding, assignment=assignment)
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature: expected > 0 and finite, got {temperature}.")

    dtype = torch.promote_types(working(embedding).dtype, prototypes.dtype)
    if weight is not None:
        weight = checks.pixel_weight(weight.detach(), embedding.new_empty((), dtype=dtype), pixels)
    backend = dispatch.choose("prototype_contrast", embedding, prototypes)
    if backend == "eager":
        return reference(embedding, prototypes, assignment, weight, temperature, same_class_negatives)
    weight = None if weight is None else weight.contiguous()
    return _Fused.apply(
        *checks.for_kernels(embedding, prototypes),
        assignment.contiguous(),
        weight,
        float(temperature),
        same_class_negatives,
        backend,
    )


def reference(
    embedding: Tensor,
    prototypes: Tensor,
    assignment: Tensor,
    weight: Tensor | None,  # in the working dtype
    temperature: float,
    same_class_negatives: bool,
) -> tuple[Tensor, Tensor]:
    """Computes the operation in eager PyTorch: its specification."""
    pixels, (classes, per_class, width) = len(embedding), prototypes.shape
    dtype = torch.promote_types(working(embedding).dtype, prototypes.dtype)
    w = checks.pixel_weight(weight, prototypes.new_empty((), dtype=dtype), pixels)
    chosen = assignment.long()
    used = (chosen >= 0) & (chosen < classes * per_class) & (w != 0)
    w, chosen = torch.where(used, w, 0.0), torch.where(used, chosen, 0)
    z, p = unit(blank(working(embedding).to(dtype), used)), unit(prototypes.to(dtype))
    cosine = z @ p.reshape(-1, width).T  # (N, C·K)

    own = cosine.gather(1, chosen[:, None]).squeeze(1)
    logits = cosine / temperature
    if not same_class_negatives:
        index = torch.arange(classes * per_class, device=chosen.device)
        sibling = (index // per_class == chosen[:, None] // per_class) & (index != chosen[:, None])
        logits = torch.where(sibling, -torch.inf, logits)
    contrast = (w * (torch.logsumexp(logits, 1) - own / temperature)).sum()
    alignment = (w * (1 - own).square()).sum()
    return contrast, alignment


class _Fused(torch.autograd.Function):
    """The fused kernels. Of the forward pass it keeps one number per pixel, lse, and what a backend keeps beside it of
    the prototypes; backward recomputes the logits."""

    @staticmethod
    def forward(
        ctx: Any,
        embedding: Tensor,
        prototypes: Tensor,
        assignment: Tensor,
        weight: Tensor | None,
        temperature: float,
        same_class_negatives: bool,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        forward = dispatch.kernel("prototype_contrast", backend)
        contrast, alignment, *kept = forward(
            embedding, prototypes, assignment, weight, temperature, same_class_negatives
        )
        ctx.save_for_backward(embedding, prototypes, assignment, weight, *kept)
        ctx.settings = temperature, same_class_negatives
        ctx.backend = backend
        return contrast, alignment

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_contrast: Tensor, grad_alignment: Tensor) -> tuple[Tensor | None, ...]:
        backward = dispatch.kernel("prototype_contrast_backward", ctx.backend)
        need_embedding, need_prototypes = ctx.needs_input_grad[:2]
        gradients = backward(
            grad_contrast, grad_alignment, *ctx.saved_tensors, *ctx.settings, need_embedding, need_prototypes
        )
        in_embedding, in_prototypes = gradients
        return in_embedding if need_embedding else None, in_prototypes if need_prototypes else None, *(None,) * 5


def _fake(
    embedding: Tensor,
    prototypes: Tensor,
    assignment: Tensor,
    weight: Tensor | None,
    temperature: float,
    same_class_negatives: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return prototypes.new_empty(()), prototypes.new_empty(()), prototypes.new_empty(embedding.shape[:1])


def _fake_backward(
    grad_contrast: Tensor,
    grad_alignment: Tensor,
    embedding: Tensor,
    prototypes: Tensor,
    assignment: Tensor,
    weight: Tensor | None,
    lse: Tensor,
    temperature: float,
    same_class_negatives: bool,
    need_embedding: bool,
    need_prototypes: bool,
) -> tuple[Tensor, Tensor]:
    return gradients_like(embedding, prototypes, need_embedding, need_prototypes)


def _self_check(sample: Sample) -> list[Tensor]:
    embedding, prototypes = sample.embedding.requires_grad_(), sample.prototypes.requires_grad_()
    results: list[Tensor] = []
    for same_class_negatives in (True, False):
        sums = prototype_contrast(
            embedding,
            prototypes,
            sample.assignment,
            weight=sample.weight,
            same_class_negatives=same_class_negatives,
        )
        gradients = torch.autograd.grad(sums[0] + 2 * sums[1], (embedding, prototypes))
        results += [value.detach() for value in (*sums, *gradients)]
    return results


OPERATION = Operation(
    name="prototype_contrast",
    backends=("cpp", "triton"),
    kernels={"prototype_contrast": _fake, "prototype_contrast_backward": _fake_backward},
    self_check=_self_check,
    differentiable=("embedding", "prototypes"),
    directions=("forward", "in_embedding", "in_prototypes"),
)
