"""Pseudo-labels by Triton, against float64."""

import pytest
import torch
from hypothesis import given, settings

from mpamatch.kernels import pseudo_label
from tests.kernels.interpreter.compare import assert_as_good
from tests.ops import cases, truth
from tests.ops.strategies import INTERPRETED_MAPS


@pytest.mark.parametrize(
    ("c", "dtype"),
    [(1, torch.float32), (2, torch.float16), (20, torch.bfloat16), (255, torch.float32), (255, torch.bfloat16)],
    ids=str,
)
def test_truth(c: int, dtype: torch.dtype) -> None:
    case = cases.maps(2, c, 5, 9, dtype=dtype)
    label, confidence = pseudo_label.forward(case.logits)
    true_label, true_confidence = truth.pseudo_label(cases.array(case.logits))
    assert label.dtype == torch.uint8
    assert (cases.array(label) == true_label).all()
    assert_as_good(confidence, case.logits.float().softmax(1).amax(1), true_confidence, torch.float32)


def test_of_equals_the_lowest() -> None:
    label, confidence = pseudo_label.forward(torch.zeros(1, 20, 3, 3))
    assert not label.any()
    torch.testing.assert_close(confidence, torch.full((1, 3, 3), 0.05))


@settings(max_examples=10)
@given(INTERPRETED_MAPS)
def test_fuzz(case: cases.Maps) -> None:
    label, confidence = pseudo_label.forward(case.logits)
    assert label.shape == confidence.shape == case.label.shape
    true_label, true_confidence = truth.pseudo_label(cases.array(case.logits))
    assert (cases.array(label) == true_label).all()
    assert_as_good(confidence, case.logits.float().softmax(1).amax(1), true_confidence, torch.float32)
