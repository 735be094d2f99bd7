"""What holds for every operation: true, repeatable, blind to layout and autocast, compilable, no host sync."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from tests.ops.cases import DTYPES, IGNORE, TOLERANCE, array, assert_near
from tests.ops.form import Form, assert_same_index, forward_backward, ramp
from tests.ops.forms import FORMS
from tests.tools.nosync import assert_no_sync

pytestmark = pytest.mark.usefixtures("backend")

every_form = pytest.mark.parametrize("form", FORMS, ids=repr)
differentiable = pytest.mark.parametrize("form", [form for form in FORMS if form.differentiable], ids=repr)


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


@every_form
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_and_gradients_are_the_truth(form: Form, dtype: torch.dtype) -> None:
    inputs = form.inputs(seed=9, dtype=dtype)
    arrays = {name: array(value) for name, value in inputs.items()}
    found = forward_backward(form, inputs)
    exact = dict(zip(map(str, range(len(found))), form.truth(**arrays), strict=False))
    for place, expected in exact.items():
        if found[place].is_floating_point():
            assert_near(found[place], expected)
        else:
            assert_same_index(form, array(found[place]), expected, arrays, dtype)
    if form.gradient is not None:
        incoming = [array(ramp(found[place])) for place in exact if found[place].is_floating_point()]
        for name, expected in zip(form.differentiable, form.gradient(**arrays, grad=incoming), strict=True):
            assert_near(found[name], expected)


@every_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_second_run_gives_the_same_bits(form: Form, dtype: torch.dtype) -> None:
    inputs = form.inputs(seed=3, dtype=dtype)
    _assert_same_bits(forward_backward(form, inputs), forward_backward(form, inputs))


@every_form
@pytest.mark.parametrize("layout", [_strided, _last_axis_first])
def test_the_layout_in_memory_does_not_matter(form: Form, layout) -> None:
    inputs = form.inputs(seed=4, dtype=torch.float64)
    views = {name: layout(value) for name, value in inputs.items()}
    assert any(not view.is_contiguous() for view in views.values())
    _assert_close(forward_backward(form, views), forward_backward(form, inputs))


def _uncounted(form: Form, inputs: dict[str, Tensor]) -> Tensor:
    """The pixels whose weight is 0 or that are ignored, in the shape of the label."""
    of_pixel = {name: inputs[name] for name in ("label", "assignment", "weight") if name in inputs}
    found = {"label": lambda x: x == IGNORE, "assignment": lambda x: x < 0, "weight": lambda x: x == 0}
    return torch.stack([found[name](value) for name, value in of_pixel.items()]).any(0)


@pytest.mark.parametrize("form", [form for form in FORMS if form.of_numbers and len(form.arguments) > 2], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("what", [float("nan"), float("inf"), -float("inf")])
def test_a_pixel_that_does_not_count_may_hold_anything(form: Form, dtype: torch.dtype, what: float) -> None:
    """Its weight is 0 or it is ignored: whatever its row holds, the results are the same to the bit."""
    inputs = form.inputs(seed=11, dtype=dtype)
    uncounted = _uncounted(form, inputs)
    assert 0 < uncounted.sum() < uncounted.numel()
    spoilt = inputs[form.main].clone()
    (spoilt.movedim(1, -1) if form.of_maps else spoilt)[uncounted] = what
    ours = forward_backward(form, inputs | {form.main: spoilt})
    _assert_same_bits(ours, forward_backward(form, inputs))
    assert all(bool(value.isfinite().all()) for value in ours.values())
    if form.main in ours:
        gradient = ours[form.main].movedim(1, -1) if form.of_maps else ours[form.main]
        assert not gradient[uncounted].any()


@every_form
def test_rows_of_a_wider_table(form: Form) -> None:
    inputs = form.inputs(seed=5, dtype=torch.float64)
    name = form.main
    filler = float("nan") if inputs[name].is_floating_point() else 99
    wide = torch.nn.functional.pad(inputs[name], (2, 3), value=filler)
    rows = inputs | {name: wide[..., 2:-3]}
    _assert_close(forward_backward(form, rows), forward_backward(form, inputs))


@every_form
def test_autocast_changes_nothing(form: Form) -> None:
    """Of the forward pass and what it saves; the backward pass runs outside autocast, as torch asks."""

    def under_autocast(**inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return form.call(**inputs)

    inputs = form.inputs(seed=6)
    autocast = forward_backward(replace(form, call=under_autocast), inputs)
    _assert_close(autocast, forward_backward(form, inputs))


@differentiable
def test_each_gradient_alone_is_the_one_of_all(form: Form) -> None:
    inputs = form.inputs(seed=7, dtype=torch.float64)
    together = forward_backward(form, inputs)
    for wanted in form.differentiable:
        alone = forward_backward(form, inputs, [wanted])
        _assert_close({wanted: alone[wanted]}, {wanted: together[wanted]})


@differentiable
def test_no_graph_where_no_gradient_is_wanted(form: Form) -> None:
    assert not any(output.requires_grad for output in form.call(**form.inputs()))


@pytest.mark.parametrize("form", [form for form in FORMS if form.of_numbers and not form.differentiable], ids=repr)
def test_operations_without_gradient_leave_no_graph(form: Form) -> None:
    inputs = form.inputs()
    learnt = [name for name in ("embedding", "logits") if name in inputs]
    for name in learnt:
        inputs[name].requires_grad_()
    outputs = form.call(**inputs)
    assert learnt
    assert all(output.grad_fn is None and not output.requires_grad for output in outputs)


@every_form
def test_inputs_are_left_as_they_are(form: Form) -> None:
    inputs = form.inputs(seed=8)
    before = {name: value.clone() for name, value in inputs.items()}
    forward_backward(form, inputs)
    _assert_same_bits(inputs, before)


@every_form
def test_dtypes_of_outputs(form: Form) -> None:
    outputs = {
        dtype: form.call(**form.inputs(dtype=dtype))
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    }
    for dtype, values in outputs.items():
        assert [value.dtype for value in values if not value.is_floating_point()] == [*form.indices]
        floats = {value.dtype for value in values if value.is_floating_point()}
        assert floats <= {torch.float64 if dtype == torch.float64 and form.of_numbers else torch.float32}


@differentiable
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_gradients_have_the_dtype_of_their_argument(form: Form, dtype: torch.dtype) -> None:
    inputs = form.inputs(dtype=dtype)
    result = forward_backward(form, inputs)
    for name in form.differentiable:
        assert result[name].dtype == inputs[name].dtype


@every_form
def test_no_host_sync_forward_and_backward(form: Form) -> None:
    assert_no_sync(forward_backward, form, form.inputs())


@every_form
def test_compiles_to_one_graph_and_a_second_batch_compiles_nothing(form: Form) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = replace(form, call=torch.compile(form.call, fullgraph=True, backend=counter))
    for seed in (1, 2):
        inputs = form.inputs(seed=seed)
        _assert_close(forward_backward(compiled, inputs), forward_backward(form, inputs))
        assert counter.frame_count == 1


@every_form
def test_the_record_names_what_gets_a_gradient(form: Form) -> None:
    """Of all arguments that could, and the form has the truth of it."""
    inputs = {name: value.requires_grad_(value.is_floating_point()) for name, value in form.inputs().items()}
    for output in form.call(**inputs):
        if output.requires_grad:
            output.sum().backward(retain_graph=True)
    assert tuple(name for name, value in inputs.items() if value.grad is not None) == form.differentiable
    assert (form.gradient is not None) == bool(form.differentiable)
