"""Class and confidence of every pixel."""

import torch
from torch import Tensor

from mpamatch.ops import checks, dispatch
from mpamatch.ops.operation import Operation, working_dtype
from mpamatch.ops.selfcheck import Sample
from mpamatch.ops.unit import without_autocast, working


@without_autocast
@torch.no_grad()
def pseudo_label(
    logits: Tensor,  # (B, C, H, W) any floating dtype
) -> tuple[Tensor, Tensor]:
    """Finds the most probable class of each pixel and its probability, without gradient.

    Source: FixMatch (NeurIPS 2020), section 2.2.

    Args:
        logits: of 1 to 255 classes, as label 255 means ignore.

    Returns:
        The label (B, H, W) u8, the lowest class among equals, and its softmax as confidence (B, H, W) f32 (f64 for f64
        logits), in [1/C, 1].

    Raises:
        TypeError: `logits` has no floating dtype.
        ValueError: `logits` has another shape or number of classes.
    """
    checks.is_floating("logits", logits)
    checks.has_shape("logits", logits, "B", "C", "H", "W")
    if not 1 <= logits.shape[1] <= checks.IGNORE:
        raise ValueError(f"logits: expected 1 to 255 classes, got {logits.shape[1]}.")
    backend = dispatch.choose("pseudo_label", logits)
    if backend == "eager":
        return reference(logits)
    label, confidence = dispatch.kernel("pseudo_label", backend)(logits.contiguous())
    return label, confidence


def reference(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Computes the operation in eager PyTorch: its specification."""
    x = working(logits)
    # max also gives the first index of equals, and is 15 times faster here than argmax on the CPU (torch 2.11)
    highest, label = x.max(1, keepdim=True)
    confidence = (highest - x.logsumexp(1, keepdim=True)).exp()
    return label.squeeze(1).to(torch.uint8), confidence.squeeze(1)


def _fake(logits: Tensor) -> tuple[Tensor, Tensor]:
    shape = (logits.shape[0], *logits.shape[2:])
    return logits.new_empty(shape, dtype=torch.uint8), logits.new_empty(shape, dtype=working_dtype(logits))


def _self_check(sample: Sample) -> list[Tensor]:
    return [*pseudo_label(sample.logits)]


OPERATION = Operation(
    name="pseudo_label",
    backends=("cpp", "triton"),
    kernels={"pseudo_label": _fake},
    self_check=_self_check,
    directions=("forward",),
)
