"""A kernel proves itself before it is used: it is compared with eager on a small fixed case, values and gradients."""

from collections.abc import Callable

import torch
from torch import Tensor

from mpamatch.ops import dispatch
from mpamatch.ops.prototype_contrast import prototype_contrast
from mpamatch.ops.prototype_distance import prototype_distance
from mpamatch.ops.prototype_update_ import prototype_update_
from mpamatch.ops.pseudo_label import pseudo_label
from mpamatch.ops.segmentation_loss import segmentation_loss
from mpamatch.ops.signed_distance import signed_distance
from mpamatch.ops.sinkhorn_assign import sinkhorn_assign

PIXELS, WIDTH, CLASSES, PER_CLASS = 77, 24, 3, 4
# Of the largest number of an output. Half precision takes other paths through a kernel, so it is checked too; what
# comes back in it is rounded to 8 bits.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


def run(operation: str, backend: str, device: str) -> str | None:
    """None where `backend` agrees with eager, else what differs, in half a sentence. Some milliseconds."""
    dispatch.wanted()  # a wrong wish is the user's error, not the kernel's
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device, enabled=False):
            results = [(dtype, *_both(operation, backend, device, dtype)) for dtype in TOLERANCE]
    except Exception as error:  # whatever a compiler or a driver raises: the reason is shown, eager runs
        return f"its self-check raised {type(error).__name__}: {error}"
    for dtype, ours, expected in results:
        for place, (mine, theirs) in enumerate(zip(ours, expected, strict=True)):
            if not _agree(mine, theirs, TOLERANCE[dtype]):
                return f"output {place} of its self-check differs from eager ({dtype})"
    return None


def _both(operation: str, backend: str, device: str, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    with dispatch.using(backend):
        ours = CASES[operation](device, dtype)
    with dispatch.using("eager"):
        return ours, CASES[operation](device, dtype)


def _agree(ours: Tensor, expected: Tensor, tolerance: float) -> bool:
    if ours.shape != expected.shape or ours.dtype != expected.dtype:
        return False
    if not expected.is_floating_point():
        return bool(torch.equal(ours, expected))
    return bool(((ours - expected).abs() <= tolerance * expected.abs().max()).all())


def _inputs(device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """embedding, prototypes, label, weight: no two cosines near each other by construction of the seed."""
    generator = torch.Generator().manual_seed(3)
    embedding = torch.randn((PIXELS, WIDTH), generator=generator)
    prototypes = torch.randn((CLASSES, PER_CLASS, WIDTH), generator=generator)
    label = torch.randint(0, CLASSES + 1, (PIXELS,), generator=generator).to(torch.uint8)
    label = torch.where(label == CLASSES, 255, label).to(torch.uint8)
    weight = torch.rand((PIXELS,), generator=generator)
    return embedding.to(device, dtype), prototypes.to(device), label.to(device), weight.to(device)


def _assignment(label: Tensor) -> Tensor:
    place = torch.arange(len(label), device=label.device, dtype=torch.int32) % PER_CLASS
    return torch.where(label == 255, -1, label.to(torch.int32) * PER_CLASS + place)


def _distance(device: str, dtype: torch.dtype) -> list[Tensor]:
    embedding, prototypes, _, weight = _inputs(device, dtype)
    embedding, prototypes = embedding.requires_grad_(), prototypes.requires_grad_()
    distance, nearest = prototype_distance(embedding, prototypes)
    gradients = torch.autograd.grad((distance * weight[:, None]).sum(), (embedding, prototypes))
    return [distance.detach(), nearest, *gradients]


def _contrast(device: str, dtype: torch.dtype) -> list[Tensor]:
    embedding, prototypes, label, weight = _inputs(device, dtype)
    embedding, prototypes = embedding.requires_grad_(), prototypes.requires_grad_()
    results: list[Tensor] = []
    for same_class_negatives in (True, False):
        sums = prototype_contrast(
            embedding, prototypes, _assignment(label), weight=weight, same_class_negatives=same_class_negatives
        )
        gradients = torch.autograd.grad(sums[0] + 2 * sums[1], (embedding, prototypes))
        results += [value.detach() for value in (*sums, *gradients)]
    return results


def _sinkhorn(device: str, dtype: torch.dtype) -> list[Tensor]:
    embedding, prototypes, label, _ = _inputs(device, dtype)
    return [sinkhorn_assign(embedding, prototypes, label, epsilon=epsilon) for epsilon in (0.05, 0.01)]


def _update(device: str, dtype: torch.dtype) -> list[Tensor]:
    embedding, prototypes, label, weight = _inputs(device, dtype)
    updates = torch.arange(CLASSES * PER_CLASS, device=device).reshape(CLASSES, PER_CLASS)
    prototype_update_(prototypes, updates, embedding, _assignment(label), weight=weight)
    return [prototypes, updates]


def _maps(device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    embedding, _, label, weight = _inputs(device, dtype)
    logits = embedding[:, :CLASSES].T.reshape(1, CLASSES, 7, 11).contiguous()
    return 2 * logits, label.reshape(1, 7, 11), weight.reshape(1, 7, 11)


def _segmentation(device: str, dtype: torch.dtype) -> list[Tensor]:
    logits, label, weight = _maps(device, dtype)
    logits = logits.requires_grad_()
    cross_entropy, overlap = segmentation_loss(logits, label, weight=weight)
    ramp = torch.arange(1, 1 + overlap.numel(), device=device).reshape(overlap.shape)
    (gradient,) = torch.autograd.grad(cross_entropy + (overlap * ramp).sum(), logits)
    return [cross_entropy.detach(), overlap.detach(), gradient]


def _pseudo(device: str, dtype: torch.dtype) -> list[Tensor]:
    return [*pseudo_label(_maps(device, dtype)[0])]


def _signed(device: str, dtype: torch.dtype) -> list[Tensor]:
    return [signed_distance(_maps(device, dtype)[1], CLASSES + 1)]  # one more, absent


CASES: dict[str, Callable[[str, torch.dtype], list[Tensor]]] = {
    "prototype_distance": _distance,
    "sinkhorn_assign": _sinkhorn,
    "prototype_update_": _update,
    "prototype_contrast": _contrast,
    "segmentation_loss": _segmentation,
    "pseudo_label": _pseudo,
    "signed_distance": _signed,
}
