"""Normalisation and Dice against plain float64 torch, and by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mpamatch.methods import losses
from tests.methods import truth
from tests.ops.cases import maps


def _leaf(logits: Tensor) -> Tensor:
    return logits.clone().requires_grad_()


def _assert_same(ours: Tensor, wanted: Tensor, at: Tensor, at_wanted: Tensor) -> None:
    """Value and gradient."""
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-12)
    ours.backward()
    wanted.backward()
    torch.testing.assert_close(at.grad, at_wanted.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["ce", "ce_dice"])
@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.parametrize("ignored", [0.0, 0.4, 1.0])
def test_labelled_loss(ignored: float, absent: bool, kind: Any) -> None:
    case = maps(dtype=torch.float64, ignored=ignored, absent=absent)
    a, b = _leaf(case.logits), _leaf(case.logits)
    _assert_same(losses.labelled_loss(a, case.label, kind), truth.labelled(b, case.label, kind), a, b)


@pytest.mark.parametrize("kind", ["ce", "dice", "both"])
@pytest.mark.parametrize("absent", [False, True])
def test_unlabelled_loss(kind: str, absent: bool) -> None:
    case = maps(dtype=torch.float64, ignored=0.0, absent=absent)
    weight, valid = (case.weight > 0.6).double(), case.weight > 0
    a, b = _leaf(case.logits), _leaf(case.logits)
    ours = losses.unlabelled_loss(a, case.label, weight, valid, kind)
    _assert_same(ours, truth.unlabelled(b, case.label, weight, valid, kind), a, b)


def test_labelled_loss_by_hand() -> None:
    """Two pixels at p = (¼, ¾), one of each class; a third is ignored. CE = (ln 4 + ln 4/3)/2, Dice by its formula."""
    p = torch.tensor([0.25, 0.75, 0.0], dtype=torch.float64)
    logits = torch.tensor([0.25, 0.75], dtype=torch.float64).log().expand(3, 2).T.reshape(1, 2, 1, 3)
    label = torch.tensor([[[0, 1, 255]]], dtype=torch.uint8)
    cross_entropy = (-p[0].log() - p[1].log()) / 2
    of_0 = 1 - (2 * 0.25 + 1e-5) / (2 * 0.25**2 + 1 + 1e-5)
    of_1 = 1 - (2 * 0.75 + 1e-5) / (2 * 0.75**2 + 1 + 1e-5)
    wanted = (cross_entropy + (of_0 + of_1) / 2) / 2
    torch.testing.assert_close(losses.labelled_loss(logits, label), wanted)
    torch.testing.assert_close(losses.labelled_loss(logits, label, "ce_dice"), wanted)
    torch.testing.assert_close(losses.labelled_loss(logits, label, "ce"), cross_entropy)


@pytest.mark.parametrize("ignored", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("absent", [False, True])
def test_border_loss_is_that_of_plain_numpy(ignored: float, absent: bool) -> None:
    rng = np.random.default_rng(2)
    logit, border = rng.normal(0, 3, (2, 5, 7)), rng.integers(0, 1 if absent else 2, (2, 5, 7)).astype(np.uint8)
    border[rng.random(border.shape) < ignored] = 255
    known, p = border != 255, 1 / (1 + np.exp(-logit))
    true = border == 1
    cross_entropy = -np.where(true, np.log(p), np.log1p(-p))[known].sum() / max(known.sum(), 1)
    overlap = 1 - (2 * p[true].sum() + 1e-5) / ((p[known] ** 2).sum() + true.sum() + 1e-5)
    wanted = (cross_entropy + overlap * true.any()) / 2
    x = torch.from_numpy(logit)[:, None].requires_grad_()
    ours = losses.border_loss(x, torch.from_numpy(border))
    ours.backward()
    assert float(ours.detach()) == pytest.approx(wanted, abs=1e-12)
    assert x.grad is not None
    assert (x.grad[:, 0].numpy()[~known] == 0).all()
    if ignored < 1:  # by differences of the loss itself
        at = tuple(np.argwhere(known)[0])
        ends = []
        for step in (1e-5, -1e-5):
            moved = torch.from_numpy(logit.copy())[:, None]
            moved[at[0], 0, at[1], at[2]] += step
            ends.append(float(losses.border_loss(moved, torch.from_numpy(border))))
        assert float(x.grad[at[0], 0, at[1], at[2]]) == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-8)


def test_dice_of_a_perfect_and_of_an_opposite_prediction() -> None:
    label = torch.tensor([[[0, 1], [1, 0]]], dtype=torch.uint8)
    logits = 100 * torch.nn.functional.one_hot(label.long(), 2).movedim(-1, 1).double()
    everywhere = torch.ones(1, 2, 2, dtype=torch.float64)
    perfect, opposite = (
        float(losses.unlabelled_loss(x, label, everywhere, everywhere > 0, "dice")) for x in (logits, -logits)
    )
    assert abs(perfect) < 1e-9
    assert abs(opposite - 1) < 1e-5  # the smoothing


def test_dice_leaves_out_an_absent_class_even_where_it_is_predicted() -> None:
    """Of class 0, 3 of 4 pixels are found, (Σpy, Σp², Σy) = (3, 3, 4); class 1 has no pixel; class 2 is perfect."""
    overlap = torch.tensor([[3.0, 0.0, 5.0], [3.0, 2.0, 5.0], [4.0, 0.0, 5.0]], dtype=torch.float64)
    wanted = ((1 - (6 + 1e-5) / (7 + 1e-5)) + 0) / 2
    assert float(losses.dice(overlap)) == pytest.approx(wanted, abs=1e-12)


def test_nothing_to_learn_from_costs_nothing() -> None:
    """All ignored, nothing confident, nothing valid: 0, and a gradient of 0 rather than NaN."""
    case = maps(dtype=torch.float64, ignored=1.0)
    logits, none = _leaf(case.logits), torch.zeros_like(case.weight)
    pseudo = torch.zeros_like(case.label)
    total = losses.labelled_loss(logits, case.label)
    for kind in ("ce", "dice", "both"):
        total = total + losses.unlabelled_loss(logits, pseudo, none, none > 0, kind)
    total.backward()
    assert float(total.detach()) == 0
    assert logits.grad is not None
    assert logits.grad.abs().max() == 0


def test_unimatch_divides_by_all_valid_pixels() -> None:
    """8 valid pixels of 12, 2 of them confident, each with CE = ln 2: 2·ln 2 / 8, not ln 2."""
    logits = torch.zeros(1, 2, 3, 4, dtype=torch.float64)
    label = torch.zeros(1, 3, 4, dtype=torch.uint8)
    weight, valid = torch.zeros(1, 3, 4, dtype=torch.float64), torch.zeros(1, 3, 4, dtype=torch.bool)
    valid[0, :2], weight[0, 0, :2] = True, 1
    ours = losses.unlabelled_loss(logits, label, weight, valid, "ce")
    assert float(ours) == pytest.approx(2 * torch.tensor(2.0, dtype=torch.float64).log().item() / 8, abs=1e-12)


@pytest.mark.parametrize(("total", "weight", "mean"), [(6.0, 4.0, 1.5), (0.3, 0.5, 0.3), (0.0, 0.0, 0.0)])
def test_a_weighted_mean_never_divides_by_less_than_one(total: float, weight: float, mean: float) -> None:
    ours = losses.weighted_mean(torch.tensor(total), torch.tensor(weight))
    assert float(ours) == pytest.approx(mean)


def test_the_share_carries_no_gradient() -> None:
    chosen = torch.tensor([1.0, 0.0, 1.0, 0.0]).requires_grad_()
    ours = losses.share(chosen, torch.tensor([True, True, True, True]))
    assert float(ours) == 0.5
    assert not ours.requires_grad
