"""Bad input at the public door and at the operations of torch.ops.mpamatch: an exception that names the argument, or
what the contract says; never a crash, never a wrong number."""

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mpamatch import ops
from tests.ops.cases import maps, pixels
from tests.ops.form import Form, forward_backward
from tests.ops.forms import FORMS, KERNELS, arguments, needs_extension

every_form = pytest.mark.parametrize("form", FORMS, ids=repr)
INDICES = ("label", "assignment")


def _longer(value: Tensor) -> Tensor:
    return torch.cat([value, value[:1]]) if value.dim() else torch.stack([value, value])


# What makes a good tensor bad, whichever argument it is.
SPOILERS: dict[str, Callable[[Tensor], Tensor]] = {
    "complex": lambda value: value.to(torch.complex64),
    "bool": lambda value: value.bool(),
    "float8": lambda value: value.to(torch.float8_e4m3fn),
    "one axis more": lambda value: value[..., None],
    "one axis less": lambda value: value[0] if value.dim() else value[None],
    "longer": _longer,
}


@pytest.mark.usefixtures("backend")
class TestPublic:
    @every_form
    @pytest.mark.parametrize("spoil", SPOILERS)
    def test_a_spoilt_tensor_is_refused_by_name(self, form: Form, spoil: str) -> None:
        for name, value in form.inputs().items():
            if spoil == "longer" and name in form.free:
                continue
            given = form.inputs() | {name: SPOILERS[spoil](value)}
            with pytest.raises((TypeError, ValueError)) as caught:
                form.call(**given)
            assert re.match(rf"({'|'.join(given)}): expected ", str(caught.value)), (name, str(caught.value))

    @every_form
    def test_a_tensor_on_another_device_is_refused_by_name(self, form: Form) -> None:
        for name, value in form.inputs().items():
            given = form.inputs() | {name: value.to("meta")}
            if len(given) == 1:
                continue
            with pytest.raises(ValueError, match=rf"({'|'.join(given)}): expected on (cpu|meta)"):
                form.call(**given)

    @every_form
    def test_a_sparse_tensor_is_refused(self, form: Form) -> None:
        given = form.inputs()
        with pytest.raises((TypeError, ValueError, RuntimeError)):
            form.call(**given | {form.main: given[form.main].to_sparse()})

    @every_form
    def test_no_pixels_are_no_mistake(self, form: Form) -> None:
        for n, side in ((0, 1), (1, 2)):
            result = forward_backward(form, form.inputs(n=n, side=side))
            assert all(value.isfinite().all() for value in result.values())

    @pytest.mark.parametrize("shape", [(4, 0), (0, 0)])
    def test_an_embedding_without_channels_is_refused(self, shape: tuple[int, int]) -> None:
        embedding, prototypes = torch.zeros(shape), torch.zeros(3, 4, 0)
        with pytest.raises(ValueError, match="prototypes: expected at least one"):
            ops.prototype_distance(embedding, prototypes)
        with pytest.raises(ValueError, match="prototypes: expected at least one"):
            ops.sinkhorn_assign(embedding, prototypes, torch.zeros(len(embedding), dtype=torch.uint8))

    @pytest.mark.parametrize("value", [0.0, -0.1, math.nan, math.inf])
    def test_a_temperature_that_is_not_above_0(self, value: float) -> None:
        case = pixels()
        with pytest.raises(ValueError, match="temperature"):
            ops.prototype_contrast(case.embedding, case.prototypes, case.assignment, temperature=value)

    @pytest.mark.parametrize("value", [0.0, -0.1, math.nan, math.inf])
    def test_an_epsilon_that_is_not_above_0(self, value: float) -> None:
        case = pixels()
        with pytest.raises(ValueError, match="epsilon"):
            ops.sinkhorn_assign(case.embedding, case.prototypes, case.label, epsilon=value)

    @pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
    def test_a_momentum_outside_0_and_1(self, value: float) -> None:
        case = pixels()
        before = case.prototypes.clone()
        updates = torch.zeros(3, 4, dtype=torch.int64)
        with pytest.raises(ValueError, match="momentum"):
            ops.prototype_update_(case.prototypes, updates, case.embedding, case.assignment, momentum=value)
        assert torch.equal(case.prototypes, before)

    @pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
    def test_an_assignment_outside_the_prototypes_is_ignored(self, dtype: torch.dtype) -> None:
        """12 prototypes; in int64 also numbers that are inside when cut to 32 bits."""
        beyond = [-1, -7, 12, 13, 2**31 - 1, -(2**31)]
        if dtype == torch.int64:
            beyond += [2**32, 2**32 + 5, 2**40 + 1, -(2**63), 2**63 - 1, -(2**32) + 3]
        case = pixels(7 + len(beyond), ignored=0.0, seed=4)
        wrong, ignored = (case.assignment.to(dtype).clone() for _ in range(2))
        wrong[7:], ignored[7:] = torch.tensor(beyond, dtype=dtype), -1
        for form in FORMS:
            inputs = form.inputs(n=7 + len(beyond), ignored=0.0, seed=4)
            if "assignment" not in inputs:
                continue
            ours = forward_backward(form, inputs | {"assignment": wrong})
            expected = forward_backward(form, inputs | {"assignment": ignored})
            assert all(torch.equal(ours[name], value) for name, value in expected.items())

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
    def test_a_label_outside_the_classes_is_ignored(self, dtype: torch.dtype) -> None:
        limits = torch.iinfo(dtype)
        beyond = [3, limits.max, limits.min if limits.min < 0 else 4, 100]
        beyond += [2**32, 2**32 + 1, -(2**32)] if dtype == torch.int64 else []
        n = 8 + len(beyond)
        case, plane = pixels(n, ignored=0.0, seed=6), maps(1, 3, 1, n, ignored=0.0, seed=6)
        for good, call in (
            (case.label, lambda label: [ops.sinkhorn_assign(case.embedding, case.prototypes, label)]),
            (plane.label.flatten(), lambda label: ops.segmentation_loss(plane.logits, label.reshape(1, 1, n))),
        ):
            wrong, ignored = good.to(dtype).clone(), good.to(torch.int64).clone()
            wrong[8:], ignored[8:] = torch.tensor(beyond, dtype=dtype), 255
            for ours, expected in zip(call(wrong), call(ignored), strict=True):
                assert torch.equal(ours, expected)


def _tensors(name: str, given: tuple) -> dict[int, str]:
    """Place and name of the tensor arguments."""
    schema = getattr(torch.ops.mpamatch, name).default._schema
    return {
        place: argument.name
        for place, (argument, value) in enumerate(zip(schema.arguments, given, strict=True))
        if isinstance(value, Tensor)
    }


def _refused(name: str, given: tuple, *names: str) -> None:
    with pytest.raises(RuntimeError) as caught:
        getattr(torch.ops.mpamatch, name)(*given)
    assert re.search(rf"\b({'|'.join(names)}): (expected|wrong|too many) ", str(caught.value)), str(caught.value)


@needs_extension
@pytest.mark.parametrize("name", KERNELS)
class TestNative:
    """Called directly, past the checks of mpamatch.ops."""

    @pytest.mark.parametrize("spoil", SPOILERS)
    def test_a_spoilt_tensor_is_refused_by_name(self, name: str, spoil: str) -> None:
        given = arguments(name)
        tensors = _tensors(name, given)
        for place, argument in tensors.items():
            if spoil == "longer" and argument in KERNELS[name].free:
                continue
            if spoil == "one axis more" and argument in INDICES:
                continue  # as many indices as pixels
            spoilt = list(given)
            spoilt[place] = SPOILERS[spoil](given[place])
            _refused(name, tuple(spoilt), *tensors.values())

    def test_working_dtypes_do_not_mix(self, name: str) -> None:
        given = arguments(name)
        tensors = _tensors(name, given)
        floats = {place: argument for place, argument in tensors.items() if given[place].is_floating_point()}
        for place in floats if len(floats) > 1 else ():
            for dtype in (torch.float64, torch.bfloat16):
                spoilt = list(given)
                spoilt[place] = given[place].to(dtype)
                if dtype == torch.bfloat16 and tensors[place] in ("embedding", "logits"):
                    continue
                _refused(name, tuple(spoilt), *tensors.values())

    def test_gaps_in_memory_are_refused_or_read_right(self, name: str) -> None:
        torch.manual_seed(0)
        given = arguments(name)
        for place, argument in _tensors(name, given).items():
            value = given[place]
            if value.dim() == 0:
                continue
            spoilt = list(given)
            spoilt[place] = torch.stack([value, value], -1)[..., 0]
            assert not spoilt[place].is_contiguous()
            _refused(name, tuple(spoilt), argument)

    def test_a_tensor_of_another_device_gives_no_numbers(self, name: str) -> None:
        """torch sends a call with a meta tensor to the fake, which has shapes and no numbers; or it raises."""
        given = arguments(name)
        for place in _tensors(name, given):
            spoilt = list(given)
            spoilt[place] = given[place].to("meta")
            try:
                result = getattr(torch.ops.mpamatch, name)(*spoilt)
            except (RuntimeError, NotImplementedError):
                continue
            assert all(
                value.is_meta for value in (result if isinstance(result, tuple) else [result]) if value is not None
            )


BAD_NUMBERS = [
    (name, argument, bad)
    for name, kernel in KERNELS.items()
    for argument, values in kernel.refused.items()
    for bad in values
]


@needs_extension
@pytest.mark.parametrize(("name", "argument", "bad"), BAD_NUMBERS)
def test_a_number_out_of_range_is_refused_by_name(name: str, argument: str, bad: Any) -> None:
    given = list(arguments(name))
    place = [a.name for a in getattr(torch.ops.mpamatch, name).default._schema.arguments].index(argument)
    given[place] = bad
    _refused(name, tuple(given), argument)


@needs_extension
def test_more_than_255_classes_have_no_uint8_label() -> None:
    with pytest.raises(RuntimeError, match="logits: expected 1 to 255 classes"):
        torch.ops.mpamatch.pseudo_label(torch.zeros(1, 256, 1, 1))
