"""Cross entropy and overlaps by Triton, against float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mpamatch.kernels import segmentation_loss, tiles
from tests.kernels.interpreter.compare import DTYPES, assert_as_good
from tests.ops import cases, truth
from tests.ops.strategies import INTERPRETED_MAPS

SMALL = {"BLOCK_P": 16, "programs": 3, "num_warps": 4, "num_stages": 2}


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


@pytest.mark.parametrize(
    ("c", "dtype"),
    [(1, torch.float32), (2, torch.float16), (5, torch.bfloat16), (20, torch.float32), (150, torch.bfloat16)],
    ids=str,
)
def test_truth(c: int, dtype: torch.dtype) -> None:
    check(cases.maps(2, c, 5, 9, dtype=dtype))


@pytest.mark.parametrize("what", [float("nan"), float("inf")])
def test_a_pixel_that_does_not_count_may_hold_anything(what: float) -> None:
    case = cases.maps(2, 5, 5, 7)
    spoilt = case.logits.clone()
    spoilt.movedim(1, -1)[(case.label == cases.IGNORE) | (case.weight == 0)] = what
    ours, clean = run(case._replace(logits=spoilt), case.weight, grads(5)), run(case, case.weight, grads(5))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(ours, clean, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tiles_that_go_around_every_loop(dtype: torch.dtype) -> None:
    with tiles.using("segmentation_loss.forward", SMALL), tiles.using("segmentation_loss.backward", SMALL):
        check(cases.maps(2, 5, 5, 7, dtype=dtype))


@settings(max_examples=15)
@given(case=INTERPRETED_MAPS, weighted=st.booleans())
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
    case = cases.maps(2, 5, 9, 11)
    with tiles.using("segmentation_loss.forward", SMALL):
        first, second = run(case, None, grads(5)), run(case, None, grads(5))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(first, second, strict=True))


def test_logits_far_apart() -> None:
    """exp(200) is beyond float32."""
    case = cases.maps()
    check(case._replace(logits=case.logits * 200))
