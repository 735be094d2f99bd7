"""A few hundred calls of the operations: `python -m tests.reliability.operators` has a hundred thousand."""

from random import Random
from unittest import mock

import pytest
import torch

from mpamatch.ops import native
from mpamatch.ops.operation import operations
from tests.reliability import operators

COUNT = 400


def test_every_operation_is_called():
    assert operators.OPERATIONS.keys() == operations().keys()
    for name, record in operations().items():
        assert operators.OPERATIONS[name].gradients == record.differentiable


def test_calls_are_right_or_refused():
    ends = [operators.do_call(number) for number in range(COUNT)]
    assert ends.count("equal") > COUNT // 3
    assert ends.count("refused") > COUNT // 10
    assert native.missing("cpu") or ends.count("kernel refused") > COUNT // 50


def test_a_wrong_result_is_seen():
    """If the kernels of the CPU gave what is a thousandth off."""
    call = next(call for call in drawn() if call.name == "prototype_distance" and call.backend == "eager")
    right = operators.OPERATIONS[call.name].call

    def off(**given):
        distance, nearest = right(**given)
        return (distance if given["embedding"].dtype == torch.float64 else distance * 1.001), nearest

    with mock.patch.dict(
        operators.OPERATIONS, prototype_distance=operators.Operation(off, ("embedding", "prototypes"))
    ):
        with pytest.raises(operators.WrongError, match="is off by"):
            operators.check_good(call)


def test_what_is_not_refused_is_seen():
    call = next(call for call in drawn() if call.name == "pseudo_label")
    lenient = operators.Operation(lambda logits: (logits,), ("logits",), of_maps=True)
    with mock.patch.dict(operators.OPERATIONS, pseudo_label=lenient):
        with pytest.raises(operators.WrongError, match="not refused"):
            operators.check_bad(Random(0), call)


def drawn():
    """Good calls of float32, each with a pixel at least."""
    for call in (operators.draw(Random(number)) for number in range(10_000)):
        dtypes = {value.dtype for value in call.inputs.values() if value.is_floating_point()}
        if dtypes == {torch.float32} and all(value.numel() for value in call.inputs.values()):
            yield call


def test_a_call_that_crashes_is_named_and_the_others_go_on(tmp_path):
    def crash(number):
        if number == 5:
            __import__("os").abort()
        return "equal"

    with mock.patch.object(operators, "do_call", crash):
        ends, faults = operators.do_calls(range(9), tmp_path)
    assert ends == {"equal": 8}
    assert faults == [(5, "ended by SIGABRT")]
