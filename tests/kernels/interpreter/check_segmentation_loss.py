"""Cross entropy, overlaps and pseudo-labels by Triton, against float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mpamatch.kernels import pseudo_label, segmentation_loss, tiles
from tests.kernels.interpreter.compare import DTYPES, assert_as_good
from tests.ops import cases, truth

SMALL = {"BLOCK_P": 16, "programs": 3, "num_warps": 4, "num_stages": 2}
FLOATS = cases.MAPS.filter(lambda case: case.logits.dtype != torch.float64)


def eager(case: cases.Maps, weight: Tensor | None, grad: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The specification, written out: torch operations in float32 with autograd."""
    logits = case.logits.clone().requires_grad_()
    classes = logits.shape[1]
    log_p = logits.float().log_softmax(1)
    used = case.label < classes
    own = torch.where(used, case.label, 0).long()
    w = torch.where(used, torch.ones(own.shape) if weight is None else weight, 0.0)
    cross_entropy = -(w * log_p.gather(1, own[:, None]).squeeze(1)).sum()
    p, y, w = log_p.exp(), torch.nn.functional.one_hot(own, classes).movedim(-1, 1).float(), w[:, None]
    overlap = torch.stack([(w * p * y).sum((0, 2, 3)), (w * p * p).sum((0, 2, 3)), (w * y).sum((0, 2, 3))])
    (in_logits,) = torch.autograd.grad(grad[0] * cross_entropy + (grad[1] * overlap).sum(), logits)
    return cross_entropy.detach(), overlap.detach(), in_logits


def run(case: cases.Maps, weight: Tensor | None, grad: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    inputs = (case.logits, case.label, weight)
    return *segmentation_loss.forward(*inputs), segmentation_loss.backward(*grad, *inputs)


def grads(classes: int) -> tuple[Tensor, Tensor]:
    return torch.tensor(0.3), torch.randn((3, classes), generator=torch.Generator().manual_seed(2))


def check(case: cases.Maps, weighted: bool = True) -> None:
    dtype = case.logits.dtype
    weight = case.weight if weighted else None
    grad = grads(case.logits.shape[1])
    logits, label = cases.array(case.logits), cases.array(case.label)
    true_weight = cases.array(weight) if weighted else None
    in_logits = truth.segmentation_loss_gradient(
        logits, label, (float(grad[0]), cases.array(grad[1])), weight=true_weight
    )
    true = (*truth.segmentation_loss(logits, label, weight=true_weight), in_logits)
    sizes = (label.size, label.size, 1)
    for mine, theirs, value, size in zip(run(case, weight, grad), eager(case, weight, grad), true, sizes, strict=True):
        assert_as_good(mine, theirs, value, dtype, size=size)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("c", [1, 2, 5, 20, 150])
def test_truth(c: int, dtype: torch.dtype) -> None:
    check(cases.maps(2, c, 9, 13, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tiles_that_go_around_every_loop(dtype: torch.dtype) -> None:
    with tiles.using("segmentation_loss.forward", SMALL), tiles.using("segmentation_loss.backward", SMALL):
        check(cases.maps(3, 5, 7, 11, dtype=dtype))


@settings(max_examples=15)
@given(case=FLOATS, weighted=st.booleans())
def test_fuzz(case: cases.Maps, weighted: bool) -> None:
    check(case, weighted)


@pytest.mark.parametrize("value", [-1, 3, 255, 2**32 + 1])
def test_labels_of_any_value(value: int) -> None:
    """Outside [0, C) is ignored, also where the low 32 bits look like a class."""
    case = cases.maps()
    strange = case.label.long()
    strange[case.label == cases.IGNORE] = value
    grad = grads(3)
    for mine, theirs in zip(
        run(case._replace(label=strange), case.weight, grad), run(case, case.weight, grad), strict=True
    ):
        assert torch.equal(mine, theirs)


def test_repeats() -> None:
    case = cases.maps(3, 5, 17, 19)
    with tiles.using("segmentation_loss.forward", SMALL):
        first, second = run(case, None, grads(5)), run(case, None, grads(5))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(first, second, strict=True))


def test_logits_far_apart() -> None:
    """exp(200) is beyond float32."""
    case = cases.maps()
    check(case._replace(logits=case.logits * 200))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("c", [1, 2, 20, 255])
def test_pseudo_labels(c: int, dtype: torch.dtype) -> None:
    case = cases.maps(2, c, 9, 13, dtype=dtype)
    label, confidence = pseudo_label.forward(case.logits)
    true_label, true_confidence = truth.pseudo_label(cases.array(case.logits))
    assert label.dtype == torch.uint8
    assert (cases.array(label) == true_label).all()
    assert_as_good(confidence, case.logits.float().softmax(1).amax(1), true_confidence, torch.float32)


def test_pseudo_label_of_equals_is_the_lowest() -> None:
    label, confidence = pseudo_label.forward(torch.zeros(1, 20, 3, 3))
    assert not label.any()
    torch.testing.assert_close(confidence, torch.full((1, 3, 3), 0.05))


@settings(max_examples=10)
@given(FLOATS)
def test_pseudo_label_fuzz(case: cases.Maps) -> None:
    label, confidence = pseudo_label.forward(case.logits)
    assert label.shape == confidence.shape == case.label.shape
    true_label, true_confidence = truth.pseudo_label(cases.array(case.logits))
    assert (cases.array(label) == true_label).all()
    assert_as_good(confidence, case.logits.float().softmax(1).amax(1), true_confidence, torch.float32)
