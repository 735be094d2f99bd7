"""Inputs for the operations, one table of the operations, and the comparison with the float64 truth."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from mpamatch import ops

IGNORE = 255
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# By the dtype of the output, relative to its size. Half inputs accumulate in float32, so only gradients that
# come back in half precision get the wide tolerances.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}


class Pixels(NamedTuple):
    embedding: Tensor  # (N, D)
    prototypes: Tensor  # (C, K, D), float64 beside a float64 embedding, else float32
    label: Tensor  # (N,) u8
    assignment: Tensor  # (N,) i32, of the label's class
    weight: Tensor  # (N,), some 0


class Maps(NamedTuple):
    logits: Tensor  # (B, C, H, W)
    label: Tensor  # (B, H, W) u8
    weight: Tensor  # (B, H, W), some 0


def pixels(
    n: int = 61,
    d: int = 17,
    c: int = 3,
    k: int = 4,
    *,
    dtype: torch.dtype = torch.float32,
    ignored: float = 0.2,
    absent: bool = False,  # the last class has no pixel
    seed: int = 0,
) -> Pixels:
    generator = torch.Generator().manual_seed(seed)
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    label = _label((n,), c, ignored, absent, generator)
    prototype = torch.randint(0, k, (n,), generator=generator, dtype=torch.int32)
    assignment = torch.where(label == IGNORE, -1, label.int() * k + prototype).int()
    return Pixels(
        _vectors((n, d), generator).to(dtype),
        _vectors((c, k, d), generator).to(accumulate),
        label,
        assignment,
        _weight((n,), generator).to(accumulate),
    )


def maps(
    b: int = 2,
    c: int = 3,
    h: int = 5,
    w: int = 7,
    *,
    dtype: torch.dtype = torch.float32,
    ignored: float = 0.2,
    absent: bool = False,
    seed: int = 0,
) -> Maps:
    generator = torch.Generator().manual_seed(seed)
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    logits = 2 * torch.randn((b, c, h, w), generator=generator, dtype=torch.float64)
    label = _label((b, h, w), c, ignored, absent, generator)
    return Maps(logits.to(dtype), label, _weight((b, h, w), generator).to(accumulate))


def _vectors(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Random directions with lengths in [0.5, 2]: never a zero vector by chance, not even at D = 1."""
    direction = torch.randn(shape, generator=generator, dtype=torch.float64)
    length = 0.5 + 1.5 * torch.rand((*shape[:-1], 1), generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(direction, dim=-1) * length


def _label(shape: tuple[int, ...], classes: int, ignored: float, absent: bool, generator: torch.Generator) -> Tensor:
    present = max(1, classes - 1) if absent else classes
    label = torch.randint(0, present, shape, generator=generator, dtype=torch.uint8)
    return torch.where(torch.rand(shape, generator=generator) < ignored, IGNORE, label).to(torch.uint8)


def _weight(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    weight = 0.2 + torch.rand(shape, generator=generator, dtype=torch.float64)
    return torch.where(torch.rand(shape, generator=generator) < 0.2, 0.0, weight)


# Several partial sums, more than 200 prototypes, a class without pixels; as an example beside the drawn ones.
MANY = pixels(2053, 24, 19, 11, absent=True, seed=1)
MANY_MAPS = maps(2, 20, 47, 53, absent=True, seed=1)

SHARES = st.sampled_from([0.0, 0.3, 1.0])
SEEDS = st.integers(0, 2**16)
PIXELS = st.builds(
    pixels,
    n=st.sampled_from([0, 1, 2, 7, 31, 97]),
    d=st.sampled_from([1, 3, 17, 64, 768]),
    c=st.integers(1, 4),
    k=st.integers(1, 5),
    dtype=st.sampled_from(DTYPES),
    ignored=SHARES,
    absent=st.booleans(),
    seed=SEEDS,
)
MAPS = st.builds(
    maps,
    b=st.integers(0, 2),
    c=st.integers(1, 5),
    h=st.sampled_from([1, 3, 7]),
    w=st.sampled_from([1, 4, 11]),
    dtype=st.sampled_from(DTYPES),
    ignored=SHARES,
    absent=st.booleans(),
    seed=SEEDS,
)


def array(tensor: Tensor) -> NDArray[Any]:
    """float64 or int64 numpy, exactly the values of the tensor."""
    return tensor.detach().to(torch.float64 if tensor.is_floating_point() else torch.int64).numpy()


def assert_near(ours: Tensor, truth: Any, *, size: float = 0.0) -> None:
    """Finite, of the same shape, and within the tolerance of its dtype times max |truth|, or size if larger.

    size is that of the terms of an output that may cancel: the number of pixels for a loss.
    """
    truth = np.asarray(truth)
    assert ours.shape == truth.shape
    scale = max(float(np.abs(truth).max(initial=0.0)), size)
    np.testing.assert_allclose(array(ours), truth, rtol=0, atol=TOLERANCE[ours.dtype] * scale)


class Operation(NamedTuple):
    """One operation as a function of its tensors, returning all it computes, also what it writes in place."""

    name: str
    call: Callable[..., tuple[Tensor, ...]]
    inputs: Callable[..., dict[str, Tensor]]  # by argument name; takes seed, dtype, n, side (of maps), ignored
    differentiable: tuple[str, ...]  # arguments

    @property
    def of_numbers(self) -> bool:
        """Not of labels alone, whatever the dtype that was asked for."""
        return self.name != "signed_distance"

    def __repr__(self) -> str:
        return self.name


def _update(
    prototypes: Tensor, updates: Tensor, embedding: Tensor, assignment: Tensor, weight: Tensor
) -> tuple[Tensor, ...]:
    prototypes, updates = prototypes.clone(), updates.clone()
    ops.prototype_update_(prototypes, updates, embedding, assignment, weight=weight)
    return prototypes, updates


def _assign(embedding: Tensor, prototypes: Tensor, label: Tensor) -> tuple[Tensor, ...]:
    return (ops.sinkhorn_assign(embedding, prototypes, label),)


def _distance(label: Tensor) -> tuple[Tensor, ...]:
    return (ops.signed_distance(label, 4),)  # one class more than there is


def _contrast_without_own_class(
    embedding: Tensor, prototypes: Tensor, assignment: Tensor, weight: Tensor
) -> tuple[Tensor, ...]:
    return ops.prototype_contrast(embedding, prototypes, assignment, weight=weight, same_class_negatives=False)


def _inputs(*names: str) -> Callable[..., dict[str, Tensor]]:
    def take(
        seed: int = 0, dtype: torch.dtype = torch.float32, n: int = 61, side: int = 6, ignored: float = 0.2
    ) -> dict[str, Tensor]:
        of_pixels = pixels(n, seed=seed, dtype=dtype, ignored=ignored)._asdict() | {"updates": torch.full((3, 4), 7)}
        of_maps = maps(h=side - 1, w=side + 1, seed=seed, dtype=dtype, ignored=ignored)._asdict()
        source = of_maps if "logits" in names or names == ("label",) else of_pixels
        return {name: source[name] for name in names}

    return take


CONTRAST = _inputs("embedding", "prototypes", "assignment", "weight")
BOTH = ("embedding", "prototypes")
OPERATIONS = (
    Operation("prototype_distance", ops.prototype_distance, _inputs(*BOTH), BOTH),
    Operation("sinkhorn_assign", _assign, _inputs(*BOTH, "label"), ()),
    Operation(
        "prototype_update_",
        _update,
        _inputs("prototypes", "updates", "embedding", "assignment", "weight"),
        (),
    ),
    Operation("prototype_contrast", ops.prototype_contrast, CONTRAST, BOTH),
    Operation("prototype_contrast_without_own_class", _contrast_without_own_class, CONTRAST, BOTH),
    Operation("segmentation_loss", ops.segmentation_loss, _inputs("logits", "label", "weight"), ("logits",)),
    Operation("pseudo_label", ops.pseudo_label, _inputs("logits"), ()),
    Operation("signed_distance", _distance, _inputs("label"), ()),
)


def forward_backward(
    operation: Operation, inputs: dict[str, Tensor], wanted: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """Every output by its place, and the gradient in each wanted argument (None: all there are) by its name.

    The elements of an output are weighted by 1, 2, 3, … in their order, so that no two gradients look alike.
    """
    wanted = operation.differentiable if wanted is None else wanted
    inputs = {name: value.detach().requires_grad_(name in wanted) for name, value in inputs.items()}
    outputs = operation.call(**inputs)
    terms = [(output * _ramp(output)).sum() for output in outputs if output.requires_grad]
    if terms:
        torch.stack(terms).sum().backward()
    result = {str(place): output.detach() for place, output in enumerate(outputs)}
    for name in wanted:
        gradient = inputs[name].grad
        assert gradient is not None, f"no gradient came back to {name}"
        result[name] = gradient
    return result


def _ramp(output: Tensor) -> Tensor:
    return torch.arange(1, output.numel() + 1, dtype=output.dtype).reshape(output.shape) / max(1, output.numel())
