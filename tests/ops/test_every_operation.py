"""What holds for every operation: repeatable, blind to layout and autocast, compilable, no host sync."""

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from tests.ops.cases import BOTH, OPERATIONS, TOLERANCE, Operation, forward_backward
from tests.tools.nosync import assert_no_sync

pytestmark = pytest.mark.usefixtures("backend")

every_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=repr)
differentiable = pytest.mark.parametrize(
    "operation", [operation for operation in OPERATIONS if operation.differentiable], ids=repr
)


def _assert_same_bits(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype, name
        assert torch.equal(value, theirs[name]), name


def _assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        tolerance = TOLERANCE.get(value.dtype, 0.0) * float(value.abs().max())
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}")


def _strided(value: Tensor) -> Tensor:
    """The same values, each followed in memory by a NaN, or a 99 between integers."""
    filler = float("nan") if value.is_floating_point() else 99
    wide = value.new_full((*value.shape, 2), filler)
    wide[..., 0] = value
    return wide[..., 0]


def _last_axis_first(value: Tensor) -> Tensor:
    """The same values in memory where the last axis is outermost, as in (D, h, w) seen as (N, D)."""
    return value.movedim(-1, 0).contiguous().movedim(0, -1)


@every_operation
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_second_run_gives_the_same_bits(operation: Operation, dtype: torch.dtype) -> None:
    inputs = operation.inputs(seed=3, dtype=dtype)
    _assert_same_bits(forward_backward(operation, inputs), forward_backward(operation, inputs))


@every_operation
@pytest.mark.parametrize("layout", [_strided, _last_axis_first])
def test_the_layout_in_memory_does_not_matter(operation: Operation, layout) -> None:
    inputs = operation.inputs(seed=4, dtype=torch.float64)
    views = {name: layout(value) for name, value in inputs.items()}
    assert any(not view.is_contiguous() for view in views.values())
    _assert_close(forward_backward(operation, views), forward_backward(operation, inputs))


@every_operation
def test_rows_of_a_wider_table(operation: Operation) -> None:
    inputs = operation.inputs(seed=5, dtype=torch.float64)
    name = next(name for name in ("logits", "embedding", "label") if name in inputs)
    filler = float("nan") if inputs[name].is_floating_point() else 99
    wide = torch.nn.functional.pad(inputs[name], (2, 3), value=filler)
    rows = inputs | {name: wide[..., 2:-3]}
    _assert_close(forward_backward(operation, rows), forward_backward(operation, inputs))


@every_operation
def test_autocast_changes_nothing(operation: Operation) -> None:
    """Of the forward pass and what it saves; the backward pass runs outside autocast, as torch asks."""

    def under_autocast(**inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return operation.call(**inputs)

    inputs = operation.inputs(seed=6)
    autocast = forward_backward(operation._replace(call=under_autocast), inputs)
    _assert_close(autocast, forward_backward(operation, inputs))


@differentiable
def test_each_gradient_alone_is_the_one_of_all(operation: Operation) -> None:
    inputs = operation.inputs(seed=7, dtype=torch.float64)
    together = forward_backward(operation, inputs)
    for wanted in operation.differentiable:
        alone = forward_backward(operation, inputs, [wanted])
        _assert_close({wanted: alone[wanted]}, {wanted: together[wanted]})


@differentiable
def test_no_graph_where_no_gradient_is_wanted(operation: Operation) -> None:
    assert not any(output.requires_grad for output in operation.call(**operation.inputs()))


@pytest.mark.parametrize(
    "operation",
    [operation for operation in OPERATIONS if operation.of_numbers and not operation.differentiable],
    ids=repr,
)
def test_operations_without_gradient_leave_no_graph(operation: Operation) -> None:
    inputs = operation.inputs()
    learnt = [name for name in ("embedding", "logits") if name in inputs]
    for name in learnt:
        inputs[name].requires_grad_()
    outputs = operation.call(**inputs)
    assert learnt
    assert all(output.grad_fn is None and not output.requires_grad for output in outputs)


@every_operation
def test_inputs_are_left_as_they_are(operation: Operation) -> None:
    inputs = operation.inputs(seed=8)
    before = {name: value.clone() for name, value in inputs.items()}
    forward_backward(operation, inputs)
    _assert_same_bits(inputs, before)


@every_operation
def test_dtypes_of_outputs(operation: Operation) -> None:
    outputs = {
        dtype: operation.call(**operation.inputs(dtype=dtype))
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    }
    indices = {
        "prototype_distance": [torch.int32],
        "sinkhorn_assign": [torch.int32],
        "prototype_update_": [torch.int64],
        "pseudo_label": [torch.uint8],
    }.get(operation.name, [])
    for dtype, values in outputs.items():
        assert [value.dtype for value in values if not value.is_floating_point()] == indices
        floats = {value.dtype for value in values if value.is_floating_point()}
        assert floats <= {torch.float64 if dtype == torch.float64 and operation.of_numbers else torch.float32}


@differentiable
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_gradients_have_the_dtype_of_their_argument(operation: Operation, dtype: torch.dtype) -> None:
    inputs = operation.inputs(dtype=dtype)
    result = forward_backward(operation, inputs)
    for name in operation.differentiable:
        assert result[name].dtype == inputs[name].dtype


@every_operation
def test_no_host_sync_forward_and_backward(operation: Operation) -> None:
    assert_no_sync(forward_backward, operation, operation.inputs())


@every_operation
def test_compiles_to_one_graph_and_a_second_batch_compiles_nothing(operation: Operation) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = operation._replace(call=torch.compile(operation.call, fullgraph=True, backend=counter))
    for seed in (1, 2):
        inputs = operation.inputs(seed=seed)
        _assert_close(forward_backward(compiled, inputs), forward_backward(operation, inputs))
        assert counter.frame_count == 1


def test_the_table_names_what_is_differentiable() -> None:
    assert {operation.differentiable for operation in OPERATIONS} == {(), BOTH, ("logits",)}
