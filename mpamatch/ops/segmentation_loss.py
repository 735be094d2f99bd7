"""Cross-entropy and the sums that the Dice loss is made of, in one pass over the logits."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mpamatch.ops import checks, dispatch
from mpamatch.ops.operation import Operation, working_dtype
from mpamatch.ops.selfcheck import Sample
from mpamatch.ops.unit import blank, without_autocast, working


@without_autocast
def segmentation_loss(
    logits: Tensor,  # (B, C, H, W) any floating dtype
    label: Tensor,  # (B, H, W) any integer dtype; outside [0, C), 255 among it: ignored
    *,
    weight: Tensor | None = None,  # (B, H, W) >= 0, default 1
) -> tuple[Tensor, Tensor]:
    """Sums the cross-entropy, and what the Dice loss is made of, over the pixels.

    Gradients go to `logits` from both results, none to `weight`. The caller divides the sums (`methods.losses`).

    Args:
        logits: of 1 to 255 classes, as label 255 means ignore.
        label: class of each pixel.
        weight: w of each pixel.

    Returns:
        Σ w·CE, (), and the overlap (3, C): per class Σ w p y, Σ w p² and Σ w y with p = softmax and y = 1 for pixels of
        the class; both f32 (f64 for f64 logits).

    Raises:
        TypeError: an argument of another dtype.
        ValueError: an argument of another shape, device or number of classes.
    """
    checks.is_floating("logits", logits)
    checks.has_shape("logits", logits, "B", "C", "H", "W")
    batch, classes, height, width = logits.shape
    if not 1 <= classes <= checks.IGNORE:
        raise ValueError(f"logits: expected 1 to 255 classes, as label 255 means ignore, got {classes}.")
    checks.is_integer("label", label)
    checks.has_shape("label", label, batch, height, width)
    checks.same_device(logits=logits, label=label)
    if weight is not None:
        weight = checks.pixel_weight(weight.detach(), working(logits.new_empty(())), batch, height, width)

    backend = dispatch.choose("segmentation_loss", logits)
    if backend == "eager":
        return reference(logits, label, weight)
    weight = None if weight is None else weight.contiguous()
    return _Fused.apply(logits.contiguous(), checks.index(label), weight, backend)


def reference(logits: Tensor, label: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Computes the operation in eager PyTorch, its specification; `weight` in the working dtype."""
    batch, classes, height, width = logits.shape
    x, label = working(logits), label.long()
    w = checks.pixel_weight(weight, x, batch, height, width)
    used = (label >= 0) & (label < classes) & (w != 0)
    w, own = torch.where(used, w, 0.0), torch.where(used, label, 0)
    log_p = blank(x, used, 1).log_softmax(1)

    cross_entropy = -(w * log_p.gather(1, own[:, None]).squeeze(1)).sum()
    p = log_p.exp()
    y = torch.nn.functional.one_hot(own, classes).movedim(-1, 1).to(p.dtype)
    w = w[:, None]
    sums = [(w * p * y).sum((0, 2, 3)), (w * p * p).sum((0, 2, 3)), (w * y).sum((0, 2, 3))]
    return cross_entropy, torch.stack(sums)


class _Fused(torch.autograd.Function):
    """The fused kernels. Of the forward pass it keeps nothing but its inputs."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, label: Tensor, weight: Tensor | None, backend: str) -> tuple[Tensor, Tensor]:
        forward = dispatch.kernel("segmentation_loss", backend)
        ctx.save_for_backward(logits, label, weight)
        ctx.backend = backend
        cross_entropy, overlap = forward(logits, label, weight)
        return cross_entropy, overlap

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_cross_entropy: Tensor, grad_overlap: Tensor) -> tuple[Tensor | None, ...]:
        backward = dispatch.kernel("segmentation_loss_backward", ctx.backend)
        return backward(grad_cross_entropy, grad_overlap.contiguous(), *ctx.saved_tensors), None, None, None


def _fake(logits: Tensor, label: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    dtype = working_dtype(logits)
    return logits.new_empty((), dtype=dtype), logits.new_empty((3, logits.shape[1]), dtype=dtype)


def _fake_backward(
    grad_cross_entropy: Tensor, grad_overlap: Tensor, logits: Tensor, label: Tensor, weight: Tensor | None
) -> Tensor:
    return logits.new_empty(logits.shape)


def _self_check(sample: Sample) -> list[Tensor]:
    logits = sample.logits.requires_grad_()
    label, weight = sample.as_map(sample.label), sample.as_map(sample.weight)
    cross_entropy, overlap = segmentation_loss(logits, label, weight=weight)
    ramp = torch.arange(1, 1 + overlap.numel(), device=overlap.device).reshape(overlap.shape)
    (gradient,) = torch.autograd.grad(cross_entropy + (overlap * ramp).sum(), logits)
    return [cross_entropy.detach(), overlap.detach(), gradient]


OPERATION = Operation(
    name="segmentation_loss",
    backends=("cpp", "triton"),
    kernels={"segmentation_loss": _fake, "segmentation_loss_backward": _fake_backward},
    self_check=_self_check,
    differentiable=("logits",),
    directions=("forward", "backward"),
)
