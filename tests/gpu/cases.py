"""Inputs on the GPU, the operations with their float64 truth, and the rule by which an error is judged."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpamatch import ops
from mpamatch.ops import dispatch
from tests.ops import truth

DEVICE = "cuda"
IGNORE = 255
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
Array = NDArray[Any]
Inputs = dict[str, Tensor]


class Sizes(NamedTuple):
    n: int
    d: int
    c: int
    k: int


SIZES = [
    Sizes(0, 16, 3, 4),
    Sizes(1, 1, 1, 1),
    Sizes(97, 17, 3, 4),
    Sizes(1031, 64, 5, 10),
    Sizes(2053, 256, 19, 10),
    Sizes(515, 768, 2, 1),
]
MAPS = [(0, 3, 4, 4), (1, 1, 1, 1), (2, 5, 7, 11), (2, 20, 33, 64), (3, 2, 65, 31)]  # B, C, H, W


def pixels(sizes: Sizes, dtype: torch.dtype, seed: int = 0) -> Inputs:
    """A fifth of the pixels ignored, a fifth of weight 0; the last class absent where there are several; one zero
    vector."""
    n, d, c, k = sizes
    generator = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    label = torch.randint(0, max(1, c - 1), (n,), generator=generator)
    label = torch.where(torch.rand(n, generator=generator) < 0.2, IGNORE, label)
    own = torch.randint(0, k, (n,), generator=generator)
    embedding = torch.randn(n, d, generator=generator, dtype=torch.float64)
    if n > 1:
        embedding[n // 2] = 0
    weight = torch.rand(n, generator=generator, dtype=torch.float64)
    found = {
        "embedding": embedding.to(dtype),
        "prototypes": torch.randn(c, k, d, generator=generator, dtype=torch.float64).to(wide),
        "label": label.to(torch.uint8),
        "assignment": torch.where(label == IGNORE, -1, label * k + own).int(),
        "weight": torch.where(weight < 0.2, 0.0, weight).to(wide),
        "updates": torch.randint(0, 40, (c, k), generator=generator),
    }
    return {name: value.to(DEVICE) for name, value in found.items()}


def maps(shape: tuple[int, int, int, int], dtype: torch.dtype, seed: int = 0) -> Inputs:
    batch, classes, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    area = (batch, height, width)
    label = torch.randint(0, max(1, classes - 1), area, generator=generator)
    weight = torch.rand(area, generator=generator, dtype=torch.float64)
    found = {
        "logits": (2 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype),
        "label": torch.where(torch.rand(area, generator=generator) < 0.2, IGNORE, label).to(torch.uint8),
        "weight": weight.to(torch.float64 if dtype == torch.float64 else torch.float32),
    }
    return {name: value.to(DEVICE) for name, value in found.items()}


class Operation(NamedTuple):
    """An operation of its tensors, its truth of the same arrays, and the gradient given those of its outputs."""

    name: str
    test: str
    arguments: tuple[str, ...]
    call: Callable[..., tuple[Tensor, ...]]
    truth: Callable[..., tuple[Any, ...]]
    gradient: Callable[..., tuple[Array, ...]] | None = None
    wanted: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return self.test

    @property
    def of_maps(self) -> bool:
        return "logits" in self.arguments or self.arguments == ("label",)

    @property
    def backends(self) -> list[str]:
        return [name for name in dispatch.BACKENDS[self.name] if name != "cpp"]

    def shapes(self) -> list[Any]:
        return MAPS if self.of_maps else SIZES

    def inputs(self, shape: Any, dtype: torch.dtype, seed: int = 0) -> Inputs:
        everything = maps(shape, dtype, seed) if self.of_maps else pixels(shape, dtype, seed)
        return {name: everything[name] for name in self.arguments}


def _update(prototypes: Tensor, updates: Tensor, embedding: Tensor, assignment: Tensor, weight: Tensor):
    prototypes, updates = prototypes.clone(), updates.clone()
    ops.prototype_update_(prototypes, updates, embedding, assignment, weight=weight)
    return prototypes, updates


def _contrast(same_class_negatives: bool, weighted: bool) -> Operation:
    def call(embedding: Tensor, prototypes: Tensor, assignment: Tensor, **weight: Tensor):
        return ops.prototype_contrast(
            embedding, prototypes, assignment, **weight, same_class_negatives=same_class_negatives
        )

    def exact(embedding, prototypes, assignment, **weight):
        return truth.prototype_contrast(
            embedding, prototypes, assignment, **weight, same_class_negatives=same_class_negatives
        )

    def gradient(embedding, prototypes, assignment, grad, **weight):
        return truth.prototype_contrast_gradient(
            embedding, prototypes, assignment, grad, **weight, same_class_negatives=same_class_negatives
        )

    name = f"prototype_contrast{'' if same_class_negatives else '_others'}{'_weighted' if weighted else ''}"
    arguments = ("embedding", "prototypes", "assignment", *(["weight"] if weighted else []))
    return Operation("prototype_contrast", name, arguments, call, exact, gradient, ("embedding", "prototypes"))


OPERATIONS = [
    Operation(
        "prototype_distance",
        "prototype_distance",
        ("embedding", "prototypes"),
        ops.prototype_distance,
        truth.prototype_distance,
        lambda embedding, prototypes, grad: truth.prototype_distance_gradient(embedding, prototypes, grad[0]),
        ("embedding", "prototypes"),
    ),
    Operation(
        "sinkhorn_assign",
        "sinkhorn_assign",
        ("embedding", "prototypes", "label"),
        lambda **inputs: (ops.sinkhorn_assign(**inputs),),
        lambda **inputs: (truth.sinkhorn_assign(**inputs),),
    ),
    Operation(
        "prototype_update_",
        "prototype_update_",
        ("prototypes", "updates", "embedding", "assignment", "weight"),
        _update,
        lambda **inputs: truth.prototype_update(**inputs)[:2],
    ),
    _contrast(True, True),
    _contrast(True, False),
    _contrast(False, True),
    Operation(
        "segmentation_loss",
        "segmentation_loss",
        ("logits", "label", "weight"),
        ops.segmentation_loss,
        truth.segmentation_loss,
        lambda logits, label, weight, grad: (truth.segmentation_loss_gradient(logits, label, grad, weight=weight),),
        ("logits",),
    ),
    Operation("pseudo_label", "pseudo_label", ("logits",), ops.pseudo_label, truth.pseudo_label),
    Operation(
        "signed_distance",
        "signed_distance",
        ("label",),
        lambda label: (ops.signed_distance(label, 4),),
        lambda label: (truth.signed_distance(label, 4),),
    ),
]
EVERY = [(operation, backend) for operation in OPERATIONS for backend in operation.backends]
DIFFERENTIABLE = [(operation, backend) for operation, backend in EVERY if operation.gradient]


def array(tensor: Tensor) -> Array:
    """float64 or int64, exactly the values of the tensor."""
    return tensor.detach().to(torch.float64 if tensor.is_floating_point() else torch.int64).cpu().numpy()


def run(operation: Operation, backend: str, inputs: Inputs) -> tuple[Tensor, ...]:
    with dispatch.using(backend):
        return operation.call(**inputs)


def gradients(operation: Operation, backend: str, inputs: Inputs) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients in what is wanted, and those of the outputs that they came from: 1, 2, 3, … over their number."""
    leaves = {name: value.detach().requires_grad_(name in operation.wanted) for name, value in inputs.items()}
    with dispatch.using(backend):
        outputs = [output for output in operation.call(**leaves) if output.requires_grad]
        incoming = [ramp(output) for output in outputs]
        found = torch.autograd.grad(outputs, [leaves[name] for name in operation.wanted], incoming)
    return list(found), incoming


def ramp(output: Tensor) -> Tensor:
    count = torch.arange(1, output.numel() + 1, dtype=output.dtype, device=output.device)
    return count.reshape(output.shape) / max(1, output.numel())


def assert_as_good_as_eager(ours: Tensor, eager: Tensor, exact: Any, dtype: torch.dtype, *, size: float = 0.0) -> None:
    """|ours − truth| ≤ |eager − truth| + tolerance·scale for every element. The tolerance is that of the input's dtype,
    in which tensor cores multiply; the scale is the largest |truth|, or `size`, that of terms which may cancel."""
    exact = np.asarray(exact, dtype=np.float64)
    assert ours.shape == exact.shape
    assert ours.dtype == eager.dtype
    scale = max(float(np.abs(exact).max(initial=0.0)), size)
    excess = np.abs(array(ours) - exact) - np.abs(array(eager) - exact)
    assert np.isfinite(array(ours)).all()
    assert excess.max(initial=0.0) <= TOLERANCE[dtype] * scale
