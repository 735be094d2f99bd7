"""Every operation on the GPU, by every backend and dtype, forward and backward, against float64."""

import numpy as np
import pytest
import torch

from mpamatch.ops import dispatch
from tests.gpu.cases import (
    DIFFERENTIABLE,
    DTYPES,
    EVERY,
    TOLERANCE,
    Operation,
    array,
    assert_as_good_as_eager,
    gradients,
    run,
)
from tests.ops import truth

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def needs(operation: Operation, backend: str, dtype: torch.dtype) -> None:
    """float64 is not for Triton: the dispatcher gives it to eager. Any other reason is a failure."""
    if backend == "triton" and dtype == torch.float64:
        pytest.skip("Triton kernels take no float64")
    assert dispatch.available(operation.name, "cuda")[backend] is None


@dtypes
@pytest.mark.parametrize(("operation", "backend"), EVERY, ids=str)
def test_values(operation: Operation, backend: str, dtype: torch.dtype) -> None:
    needs(operation, backend, dtype)
    for shape in operation.shapes():
        inputs = operation.inputs(shape, dtype)
        arrays = {name: array(value) for name, value in inputs.items()}
        found = zip(
            run(operation, backend, inputs), run(operation, "eager", inputs), operation.truth(**arrays), strict=True
        )
        for place, (ours, eager, exact) in enumerate(found):
            if ours.is_floating_point():
                assert_as_good_as_eager(ours, eager, exact, dtype, size=len(next(iter(arrays.values()))))
            else:
                assert ours.dtype == eager.dtype
                assert_same_index(operation, place, array(ours), np.asarray(exact), arrays, dtype)


def assert_same_index(operation, place, ours, exact, arrays, dtype) -> None:
    """Indices are the truth's, but where the float64 scores of the two are closer than the tolerance."""
    assert ours.shape == exact.shape
    differ = np.nonzero(ours != exact)
    scores = index_scores(operation, arrays)
    if scores is None:
        assert len(differ[0]) == 0
        return
    for position in zip(*differ, strict=True):
        row = scores[position]
        assert 0 <= ours[position] < len(row)
        # two scores, each off by the tolerance; Sinkhorn's are cosines over ε = .05
        reach = 2 * TOLERANCE[dtype] * (20 if operation.name == "sinkhorn_assign" else 1)
        assert abs(row[ours[position]] - row[exact[position]]) <= reach


def index_scores(operation, arrays):
    """The scores whose argmax an index output is, its candidates last; None where it must agree exactly."""
    if operation.name == "sinkhorn_assign":
        return truth.sinkhorn_scores(**arrays)
    if operation.name == "pseudo_label":
        return np.moveaxis(arrays["logits"], 1, -1)
    if operation.name == "prototype_distance":
        classes, per_class, _ = arrays["prototypes"].shape
        return truth.cosines(**arrays).reshape(-1, classes, per_class)
    return None


@dtypes
@pytest.mark.parametrize(("operation", "backend"), DIFFERENTIABLE, ids=str)
def test_gradients(operation: Operation, backend: str, dtype: torch.dtype) -> None:
    needs(operation, backend, dtype)
    assert operation.gradient is not None
    for shape in operation.shapes():
        inputs = operation.inputs(shape, dtype)
        arrays = {name: array(value) for name, value in inputs.items()}
        ours, incoming = gradients(operation, backend, inputs)
        eager, _ = gradients(operation, "eager", inputs)
        exact = operation.gradient(**arrays, grad=[array(gradient) for gradient in incoming])
        # of a single channel the gradient in a unit vector is 0, the difference of two terms of about 1
        size = 1.0 if not operation.of_maps and shape.d == 1 else 0.0
        for one, other, true in zip(ours, eager, exact, strict=True):
            assert_as_good_as_eager(one, other, true, dtype, size=size)


@pytest.mark.parametrize(("operation", "backend"), DIFFERENTIABLE, ids=str)
def test_each_gradient_alone_is_the_one_of_all(operation: Operation, backend: str) -> None:
    inputs = operation.inputs(operation.shapes()[3], torch.float32)
    together, _ = gradients(operation, backend, inputs)
    for name, expected in zip(operation.wanted, together, strict=True):
        alone, _ = gradients(operation._replace(wanted=(name,)), backend, inputs)
        assert torch.equal(alone[0], expected)


@pytest.mark.parametrize(("operation", "backend"), EVERY, ids=str)
def test_rows_of_a_wider_table(operation: Operation, backend: str) -> None:
    inputs = operation.inputs(operation.shapes()[3], torch.float32)
    name = next(name for name in ("logits", "embedding", "label") if name in inputs)
    filler = float("nan") if inputs[name].is_floating_point() else 99
    wide = torch.nn.functional.pad(inputs[name], (2, 3), value=filler)
    strided = run(operation, backend, inputs | {name: wide[..., 2:-3]})
    for one, other in zip(strided, run(operation, backend, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
