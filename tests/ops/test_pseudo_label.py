"""pseudo_label against float64 numpy: the most probable class and how probable it is."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from torch import Tensor

from mpamatch import ops
from tests.ops import truth
from tests.ops.cases import MANY_MAPS, TOLERANCE, Maps, array, assert_near, maps
from tests.ops.strategies import MAPS

pytestmark = pytest.mark.usefixtures("backend")


@given(MAPS)
@example(MANY_MAPS)
def test_label_and_confidence(case: Maps) -> None:
    label, confidence = ops.pseudo_label(case.logits)
    logits = array(case.logits)
    _, expected = truth.pseudo_label(logits)
    assert label.dtype == torch.uint8
    assert label.shape == case.label.shape
    assert_near(confidence, expected, size=1.0)
    chosen = np.take_along_axis(logits, array(label)[:, None], 1)
    assert (chosen == logits.max(1, keepdims=True, initial=-np.inf)).all()


def test_ties_go_to_the_lowest_index() -> None:
    logits = torch.tensor([[1.0, 5.0, 5.0, 5.0], [0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 2.0, 2.0]]).T[None, :, :, None]
    label, confidence = ops.pseudo_label(logits)
    assert label.flatten().tolist() == [1, 0, 2]
    torch.testing.assert_close(confidence[0, 1, 0], torch.tensor(0.25))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_logits_are_compared_with_a_threshold_in_float32(dtype: torch.dtype) -> None:
    """In bfloat16 the numbers around 0.95 are 0.004 apart: a threshold would see only those."""
    logits = torch.stack([torch.linspace(2.5, 3.5, 200), torch.zeros(200)])[None, :, None].to(dtype)
    _, confidence = ops.pseudo_label(logits)
    expected = truth.pseudo_label(array(logits))[1]
    np.testing.assert_allclose(array(confidence), expected, rtol=0, atol=TOLERANCE[torch.float32])


def test_huge_logits_are_finite() -> None:
    label, confidence = ops.pseudo_label(torch.tensor([3e38, -3e38, 0.0]).reshape(1, 3, 1, 1))
    assert label.item() == 0
    assert confidence.item() == 1


def test_one_class_is_certain() -> None:
    label, confidence = ops.pseudo_label(torch.randn(2, 1, 3, 4))
    assert not label.any()
    assert (confidence == 1).all()


def test_254_is_a_class_and_255_would_be_ignored() -> None:
    logits = torch.zeros(1, 255, 1, 1)
    logits[0, 254] = 1
    assert ops.pseudo_label(logits)[0].item() == 254
    with pytest.raises((TypeError, ValueError), match="logits"):
        ops.pseudo_label(torch.zeros(1, 256, 1, 1))


def test_a_constant_added_to_all_classes_does_not_matter() -> None:
    case = maps(dtype=torch.float64)
    label, confidence = ops.pseudo_label(case.logits)
    same, as_sure = ops.pseudo_label(case.logits + 9)
    assert torch.equal(same, label)
    torch.testing.assert_close(as_sure, confidence, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "value",
    [torch.zeros(2, 3, 4), torch.zeros(2, 0, 4, 5), torch.zeros(2, 3, 4, 5, dtype=torch.int64)],
)
def test_wrong_logits_are_refused(value: Tensor) -> None:
    with pytest.raises((TypeError, ValueError), match="logits"):
        ops.pseudo_label(value)
