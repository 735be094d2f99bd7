"""Inputs for the operations, and the comparison with the float64 truth."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
    shown = max(1, classes - 1) if absent else classes
    label = torch.randint(0, shown, shape, generator=generator, dtype=torch.uint8)
    return torch.where(torch.rand(shape, generator=generator) < ignored, IGNORE, label).to(torch.uint8)


def _weight(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    weight = 0.2 + torch.rand(shape, generator=generator, dtype=torch.float64)
    return torch.where(torch.rand(shape, generator=generator) < 0.2, 0.0, weight)


# Several partial sums, more than 200 prototypes, a class without pixels; as an example beside the drawn ones.
MANY = pixels(2053, 24, 19, 11, absent=True, seed=1)
MANY_MAPS = maps(2, 20, 47, 53, absent=True, seed=1)


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
