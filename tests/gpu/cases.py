"""Inputs on the GPU, the forms of the operations that run there, and the rule by which an error is judged."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpamatch.ops import dispatch
from tests.ops.form import Form, ramp
from tests.ops.forms import FORMS

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


def shapes(form: Form) -> list[Any]:
    return MAPS if form.of_maps else SIZES


def inputs_of(form: Form, shape: Any, dtype: torch.dtype, seed: int = 0) -> Inputs:
    everything = maps(shape, dtype, seed) if form.of_maps else pixels(shape, dtype, seed)
    return {name: everything[name] for name in form.arguments}


EVERY = [(form, backend) for form in FORMS for backend in form.record.backends if backend != "cpp"]
DIFFERENTIABLE = [(form, backend) for form, backend in EVERY if form.differentiable]


def array(tensor: Tensor) -> Array:
    """float64 or int64, exactly the values of the tensor."""
    return tensor.detach().to(torch.float64 if tensor.is_floating_point() else torch.int64).cpu().numpy()


def run(form: Form, backend: str, inputs: Inputs) -> tuple[Tensor, ...]:
    with dispatch.using(backend):
        return form.call(**inputs)


def gradients(
    form: Form, backend: str, inputs: Inputs, wanted: Sequence[str] | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients in what is wanted (None: all there are), and those of the outputs that they came from: 1, 2, 3, …
    over their number."""
    wanted = form.differentiable if wanted is None else wanted
    leaves = {name: value.detach().requires_grad_(name in wanted) for name, value in inputs.items()}
    with dispatch.using(backend):
        outputs = [output for output in form.call(**leaves) if output.requires_grad]
        incoming = [ramp(output) for output in outputs]
        found = torch.autograd.grad(outputs, [leaves[name] for name in wanted], incoming)
    return list(found), incoming


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
