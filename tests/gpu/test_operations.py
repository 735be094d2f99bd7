"""Every operation on the GPU, by every backend and dtype, forward and backward, against float64."""

import numpy as np
import pytest
import torch

from mpamatch.ops import dispatch
from tests.gpu.cases import (
    DIFFERENTIABLE,
    DTYPES,
    EVERY,
    array,
    assert_as_good_as_eager,
    gradients,
    inputs_of,
    run,
    shapes,
)
from tests.ops.form import Form, assert_same_index

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def needs(form: Form, backend: str, dtype: torch.dtype) -> None:
    """float64 is not for Triton: the dispatcher gives it to eager. Any other reason is a failure."""
    if backend == "triton" and dtype == torch.float64:
        pytest.skip("Triton kernels take no float64")
    assert dispatch.available(form.operation, "cuda")[backend] is None


@dtypes
@pytest.mark.parametrize(("form", "backend"), EVERY, ids=str)
def test_values(form: Form, backend: str, dtype: torch.dtype) -> None:
    needs(form, backend, dtype)
    for shape in shapes(form):
        inputs = inputs_of(form, shape, dtype)
        arrays = {name: array(value) for name, value in inputs.items()}
        found = zip(run(form, backend, inputs), run(form, "eager", inputs), form.truth(**arrays), strict=True)
        for ours, eager, exact in found:
            if ours.is_floating_point():
                assert_as_good_as_eager(ours, eager, exact, dtype, size=len(next(iter(arrays.values()))))
            else:
                assert ours.dtype == eager.dtype
                assert_same_index(form, array(ours), np.asarray(exact), arrays, dtype)


@dtypes
@pytest.mark.parametrize(("form", "backend"), DIFFERENTIABLE, ids=str)
def test_gradients(form: Form, backend: str, dtype: torch.dtype) -> None:
    needs(form, backend, dtype)
    assert form.gradient is not None
    for shape in shapes(form):
        inputs = inputs_of(form, shape, dtype)
        arrays = {name: array(value) for name, value in inputs.items()}
        ours, incoming = gradients(form, backend, inputs)
        eager, _ = gradients(form, "eager", inputs)
        exact = form.gradient(**arrays, grad=[array(gradient) for gradient in incoming])
        # of a single channel the gradient in a unit vector is 0, the difference of two terms of about 1
        size = 1.0 if not form.of_maps and shape.d == 1 else 0.0
        for one, other, true in zip(ours, eager, exact, strict=True):
            assert_as_good_as_eager(one, other, true, dtype, size=size)


@pytest.mark.parametrize(("form", "backend"), DIFFERENTIABLE, ids=str)
def test_each_gradient_alone_is_the_one_of_all(form: Form, backend: str) -> None:
    inputs = inputs_of(form, shapes(form)[3], torch.float32)
    together, _ = gradients(form, backend, inputs)
    for name, expected in zip(form.differentiable, together, strict=True):
        alone, _ = gradients(form, backend, inputs, [name])
        assert torch.equal(alone[0], expected)


@pytest.mark.parametrize(("form", "backend"), EVERY, ids=str)
def test_rows_of_a_wider_table(form: Form, backend: str) -> None:
    inputs = inputs_of(form, shapes(form)[3], torch.float32)
    name = form.main
    filler = float("nan") if inputs[name].is_floating_point() else 99
    wide = torch.nn.functional.pad(inputs[name], (2, 3), value=filler)
    strided = run(form, backend, inputs | {name: wide[..., 2:-3]})
    for one, other in zip(strided, run(form, backend, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
