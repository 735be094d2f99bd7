"""Distance of every pixel to the nearest prototype of every class."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mpamatch.ops import checks, dispatch
from mpamatch.ops.operation import Operation, gradients_like
from mpamatch.ops.selfcheck import Sample
from mpamatch.ops.unit import unit, without_autocast, working


@without_autocast
def prototype_distance(
    embedding: Tensor,  # (N, D) any floating dtype
    prototypes: Tensor,  # (C, K, D) f32 or f64
) -> tuple[Tensor, Tensor]:
    """Computes the distance of each pixel to the nearest prototype of each class: 1 − max_k cos(z_i, p_ck).

    The gradient runs through the nearest prototype, to both inputs. Source: ProtoSeg (CVPR 2022), section 3.

    Args:
        embedding: pixel embeddings; they and the prototypes are normalised here. A zero vector has cosine 0 with all.
        prototypes: K for each of C classes.

    Returns:
        The distance (N, C) f32 (f64 if an input is), in [0, 2], and that k (N, C) i32, the lowest of equals.

    Raises:
        TypeError: an argument of another dtype.
        ValueError: an argument of another shape or device.
    """
    checks.pixels_and_prototypes(embedding, prototypes)
    backend = dispatch.choose("prototype_distance", embedding, prototypes)
    if backend == "eager":
        return reference(embedding, prototypes)
    return _Fused.apply(*checks.for_kernels(embedding, prototypes), backend)


def reference(embedding: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """Computes the operation in eager PyTorch: its specification."""
    pixels, (classes, per_class, width) = len(embedding), prototypes.shape
    dtype = torch.promote_types(working(embedding).dtype, prototypes.dtype)
    z, p = unit(embedding.to(dtype)), unit(prototypes.to(dtype)).reshape(-1, width)
    cosine = (z @ p.T).reshape(pixels, classes, per_class)
    highest, nearest = cosine.max(-1)  # the first index of equals
    return 1 - highest, nearest.to(torch.int32)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, embedding: Tensor, prototypes: Tensor, backend: str) -> tuple[Tensor, Tensor]:
        forward = dispatch.kernel("prototype_distance", backend)
        ctx.set_materialize_grads(False)  # else `nearest` would get a gradient of zeros, to be thrown away
        distance, nearest, *kept = forward(embedding, prototypes)
        ctx.save_for_backward(embedding, prototypes, distance, nearest, *kept)
        ctx.mark_non_differentiable(nearest)
        ctx.backend = backend
        return distance, nearest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_distance: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad_distance is None:
            return None, None, None
        backward = dispatch.kernel("prototype_distance_backward", ctx.backend)
        need_embedding, need_prototypes, _ = ctx.needs_input_grad
        gradients = backward(grad_distance.contiguous(), *ctx.saved_tensors, need_embedding, need_prototypes)
        return gradients[0] if need_embedding else None, gradients[1] if need_prototypes else None, None


def _fake(embedding: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    shape = (embedding.shape[0], prototypes.shape[0])
    return prototypes.new_empty(shape), prototypes.new_empty(shape, dtype=torch.int32)


def _fake_backward(
    grad_distance: Tensor,
    embedding: Tensor,
    prototypes: Tensor,
    distance: Tensor,
    nearest: Tensor,
    need_embedding: bool,
    need_prototypes: bool,
) -> tuple[Tensor, Tensor]:
    return gradients_like(embedding, prototypes, need_embedding, need_prototypes)


def _self_check(sample: Sample) -> list[Tensor]:
    embedding, prototypes = sample.embedding.requires_grad_(), sample.prototypes.requires_grad_()
    distance, nearest = prototype_distance(embedding, prototypes)
    gradients = torch.autograd.grad((distance * sample.weight[:, None]).sum(), (embedding, prototypes))
    return [distance.detach(), nearest, *gradients]


OPERATION = Operation(
    name="prototype_distance",
    backends=("cpp", "triton"),
    kernels={"prototype_distance": _fake, "prototype_distance_backward": _fake_backward},
    self_check=_self_check,
    differentiable=("embedding", "prototypes"),
    directions=("forward", "in_embedding", "in_prototypes"),
)
