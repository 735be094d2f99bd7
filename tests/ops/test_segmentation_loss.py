"""segmentation_loss against float64 numpy and torch's cross entropy, values and gradients."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn.functional import cross_entropy, one_hot

from mpamatch import ops
from tests.ops import truth
from tests.ops.cases import MANY_MAPS, Maps, array, assert_near, maps
from tests.ops.strategies import MAPS

pytestmark = pytest.mark.usefixtures("backend")


def _gradient(case: Maps, grad: tuple[float, Tensor], weight: Tensor | None = None) -> Tensor:
    logits = case.logits.clone().requires_grad_()
    entropy, overlap = ops.segmentation_loss(logits, case.label, weight=weight)
    (gradient,) = torch.autograd.grad(grad[0] * entropy + (grad[1] * overlap).sum(), logits)
    return gradient


def _in_overlap(case: Maps) -> Tensor:
    """(3, C): a gradient in the overlap, no two numbers alike."""
    classes = case.logits.shape[1]
    return torch.arange(3.0 * classes, dtype=case.weight.dtype).reshape(3, classes) / classes - 1


@given(MAPS, st.booleans())
@example(MANY_MAPS, True)
def test_value(case: Maps, weighted: bool) -> None:
    weight = case.weight if weighted else None
    entropy, overlap = ops.segmentation_loss(case.logits, case.label, weight=weight)
    expected = truth.segmentation_loss(
        array(case.logits), array(case.label), weight=None if weight is None else array(weight)
    )
    assert_near(entropy, expected[0], size=1.0)
    assert_near(overlap, expected[1], size=1.0)


@given(MAPS, st.booleans(), st.sampled_from([0.0, 1.0, -2.5]), st.sampled_from([0.0, 1.0]))
@example(MANY_MAPS, True, -2.5, 1.0)
def test_gradient(case: Maps, weighted: bool, in_entropy: float, times_overlap: float) -> None:
    weight = case.weight if weighted else None
    grad = (in_entropy, times_overlap * _in_overlap(case))
    ours = _gradient(case, grad, weight)
    expected = truth.segmentation_loss_gradient(
        array(case.logits),
        array(case.label),
        (in_entropy, array(grad[1])),
        weight=None if weight is None else array(weight),
    )
    assert ours.dtype == case.logits.dtype
    assert_near(ours, expected, size=1.0)


@pytest.mark.parametrize("c", [1, 2, 4])
def test_gradcheck(c: int) -> None:
    case = maps(2, c, 2, 3, dtype=torch.float64, seed=2)

    def loss(logits: Tensor) -> tuple[Tensor, Tensor]:
        return ops.segmentation_loss(logits, case.label, weight=case.weight)

    assert gradcheck(loss, (case.logits.requires_grad_(),))


def test_cross_entropy_is_torchs() -> None:
    case = maps(dtype=torch.float64)
    entropy, _ = ops.segmentation_loss(case.logits, case.label)
    expected = cross_entropy(case.logits, case.label.long(), ignore_index=255, reduction="sum")
    torch.testing.assert_close(entropy, expected)


def test_a_sure_and_right_prediction_overlaps_with_the_label() -> None:
    case = maps(ignored=0.0, dtype=torch.float64)
    logits = 50 * one_hot(case.label.long(), 3).movedim(-1, 1).double()
    entropy, overlap = ops.segmentation_loss(logits, case.label)
    pixels_of_class = case.label.flatten().bincount(minlength=3).double()
    torch.testing.assert_close(overlap, pixels_of_class.expand(3, 3))
    assert entropy < 1e-15 * case.label.numel()


def test_an_absent_class_has_no_label_and_no_overlap() -> None:
    case = maps(absent=True)
    _, overlap = ops.segmentation_loss(case.logits, case.label)
    assert overlap[0, 2] == overlap[2, 2] == 0
    assert overlap[1, 2] > 0


def test_an_ignored_batch_costs_nothing() -> None:
    for case in (maps(ignored=1.0), maps(b=0)):
        entropy, overlap = ops.segmentation_loss(case.logits, case.label)
        assert entropy.item() == 0
        assert not overlap.any()
        gradient = _gradient(case, (1.0, _in_overlap(case)))
        assert gradient.isfinite().all()
        assert not gradient.any()


def test_ignored_pixels_and_weight_0_have_gradient_0() -> None:
    case = maps()
    out = (case.label == 255) | (case.weight == 0)
    by_class = _gradient(case, (1.0, _in_overlap(case)), case.weight).movedim(1, -1)
    assert out.sum() > 10
    assert not by_class[out].any()
    assert by_class[~out].any(-1).all()


def test_weight_none_is_ones() -> None:
    case = maps()
    ones = ops.segmentation_loss(case.logits, case.label, weight=torch.ones(case.label.shape))
    none = ops.segmentation_loss(case.logits, case.label)
    assert all(torch.equal(a, b) for a, b in zip(ones, none, strict=True))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
def test_any_integer_label(dtype: torch.dtype) -> None:
    case = maps()
    expected = ops.segmentation_loss(case.logits, case.label)
    ours = ops.segmentation_loss(case.logits, case.label.to(dtype))
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def test_a_label_that_is_no_class_is_ignored() -> None:
    case = maps()
    beyond = ops.segmentation_loss(case.logits, torch.where(case.label == 2, 3, case.label))
    ignored = ops.segmentation_loss(case.logits, torch.where(case.label == 2, 255, case.label))
    assert all(torch.equal(a, b) for a, b in zip(beyond, ignored, strict=True))


@pytest.mark.parametrize("size", [1e4, 3e38])
def test_huge_logits_are_finite(size: float) -> None:
    logits = torch.tensor([[0.0, size], [size, 0.0]]).reshape(1, 2, 2, 1)
    label = torch.zeros(1, 2, 1, dtype=torch.uint8)
    case = Maps(logits, label, torch.ones(1, 2, 1))
    entropy, overlap = ops.segmentation_loss(logits, label)
    torch.testing.assert_close(entropy, torch.tensor(size))
    torch.testing.assert_close(overlap, torch.ones(3, 2) * torch.tensor([[1.0, 0], [1, 1], [2, 0]]))
    assert _gradient(case, (1.0, torch.ones(3, 2))).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_logits_accumulate_in_float32(dtype: torch.dtype) -> None:
    """40,000 like pixels: a sum in half precision would stop growing at a few hundred or thousand terms."""
    case = maps(1, 3, 1, 2, dtype=dtype, ignored=0.0)
    many = Maps(case.logits.repeat(1, 1, 100, 200), case.label.repeat(1, 100, 200), case.weight)
    ours = ops.segmentation_loss(many.logits, many.label)
    expected = truth.segmentation_loss(array(case.logits), array(case.label))
    assert_near(ours[0], 20_000 * expected[0])
    assert_near(ours[1], 20_000 * expected[1])


def test_a_constant_added_to_all_classes_does_not_matter() -> None:
    case = maps(dtype=torch.float64)
    moved = case._replace(logits=case.logits + 11 * torch.randn(2, 1, 5, 7, dtype=torch.float64))
    for ours, expected in zip(
        ops.segmentation_loss(moved.logits, moved.label),
        ops.segmentation_loss(case.logits, case.label),
        strict=True,
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)
    gradient = _gradient(case, (1.0, _in_overlap(case)))
    assert gradient.abs().max() > 0.1
    assert gradient.sum(1).abs().max() < 1e-14


def test_pixels_do_not_know_their_place() -> None:
    case = maps(dtype=torch.float64)
    turned = Maps(*(value.flip(0).transpose(-1, -2) for value in case))
    for ours, expected in zip(
        ops.segmentation_loss(turned.logits, turned.label, weight=turned.weight),
        ops.segmentation_loss(case.logits, case.label, weight=case.weight),
        strict=True,
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("logits", torch.zeros(2, 3, 4)),
        ("logits", torch.zeros(2, 0, 4, 5)),
        ("logits", torch.zeros(2, 3, 4, 5, dtype=torch.int64)),
        ("logits", torch.zeros(2, 256, 4, 5)),  # 255 would be a class and ignored
        ("label", torch.zeros(2, 4, 6, dtype=torch.uint8)),
        ("label", torch.zeros(2, 1, 4, 5, dtype=torch.uint8)),
        ("label", torch.zeros(2, 4, 5)),
        ("label", torch.zeros(2, 4, 5, dtype=torch.uint8, device="meta")),
        ("weight", torch.zeros(2, 4)),
        ("weight", torch.zeros(2, 4, 5, device="meta")),
    ],
)
def test_a_wrong_argument_is_refused_by_name(argument: str, value: Tensor) -> None:
    given = {
        "logits": torch.zeros(2, 3, 4, 5),
        "label": torch.zeros(2, 4, 5, dtype=torch.uint8),
    } | {argument: value}
    with pytest.raises((TypeError, ValueError), match=argument):
        ops.segmentation_loss(**given)
