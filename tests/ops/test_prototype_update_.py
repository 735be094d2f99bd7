"""prototype_update_ against float64 numpy, and what it leaves alone bit for bit."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from mpamatch import ops
from tests.ops import truth
from tests.ops.cases import MANY, TOLERANCE, Pixels, array, pixels
from tests.ops.strategies import PIXELS

pytestmark = pytest.mark.usefixtures("backend")

# A sum of unit vectors shorter than this has cancelled: its direction is rounding.
CANCELLED = 1e-2


def _counts(case: Pixels, most: int = 3000) -> Tensor:
    """(C, K) i64: how many updates each prototype has had, 0 for the first."""
    counts = torch.arange(case.prototypes[..., 0].numel()) * 37 % most
    return counts.reshape(case.prototypes.shape[:2])


def _unit_prototypes(case: Pixels) -> Pixels:
    return case._replace(prototypes=normalize(case.prototypes, dim=-1))


def _updated(case: Pixels, updates: Tensor, **options: object) -> tuple[Tensor, Tensor]:
    prototypes, updates = case.prototypes.clone(), updates.clone()
    assert ops.prototype_update_(prototypes, updates, case.embedding, case.assignment, **options) is None
    return prototypes, updates


@given(PIXELS, st.booleans(), st.sampled_from([0.0, 0.5, 0.999, 1.0]))
@example(MANY, True, 0.999)
def test_value(case: Pixels, weighted: bool, momentum: float) -> None:
    case, weight = _unit_prototypes(case), case.weight if weighted else None
    prototypes, updates = _updated(case, _counts(case), weight=weight, momentum=momentum)
    expected = truth.prototype_update(
        *map(array, (case.prototypes, _counts(case), case.embedding, case.assignment)),
        weight=None if weight is None else array(weight),
        momentum=momentum,
    )
    assert prototypes.isfinite().all()
    assert prototypes.norm(dim=-1).max() < 1 + 1e-6
    clear = expected.length > CANCELLED
    certain = clear | (expected.length == 0)
    assert (array(updates)[certain] == expected.updates[certain]).all()
    error = np.abs(array(prototypes) - expected.prototypes).max(-1)
    assert (error[clear] <= TOLERANCE[prototypes.dtype] / np.minimum(1, expected.length[clear])).all()


@given(PIXELS)
@example(MANY)
def test_a_prototype_nobody_chose_stays_bit_for_bit(case: Pixels) -> None:
    """Not even normalised again: the prototypes here are of any length."""
    prototypes, updates = _updated(case, _counts(case), weight=case.weight)
    chosen = torch.zeros(case.prototypes[..., 0].numel(), dtype=torch.bool)
    chosen[case.assignment[(case.assignment >= 0) & (case.weight > 0)].long()] = True
    chosen = chosen.reshape(updates.shape)
    assert torch.equal(prototypes[~chosen], case.prototypes[~chosen])
    assert torch.equal(updates[~chosen], _counts(case)[~chosen])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_first_update_is_the_mean_itself(dtype: torch.dtype) -> None:
    case = pixels(dtype=dtype)
    prototypes, updates = _updated(case, torch.zeros(3, 4, dtype=torch.int64))
    members = normalize(case.embedding.double(), dim=-1)[case.assignment == 6]
    mean = normalize(members.mean(0), dim=0)
    assert len(members) > 2
    torch.testing.assert_close(prototypes[1, 2].double(), mean, rtol=0, atol=TOLERANCE[prototypes.dtype])
    assert updates[1, 2] == 1


@pytest.mark.parametrize(
    ("updates", "momentum", "kept"),
    [
        (1, 0.999, 0.5),
        (4, 0.999, 0.8),
        (998, 0.999, 998 / 999),
        (10**9, 0.999, 0.999),
        (4, 0.6, 0.6),
        (4, 0.0, 0.0),
    ],
)
def test_momentum_grows_with_the_number_of_updates(updates: int, momentum: float, kept: float) -> None:
    old = torch.tensor([[[1.0, 0.0]]], dtype=torch.float64)
    count = torch.tensor([[updates]])
    embedding = torch.tensor([[0.0, 9.0]], dtype=torch.float64)
    ops.prototype_update_(old, count, embedding, torch.zeros(1, dtype=torch.int32), momentum=momentum)
    expected = normalize(torch.tensor([kept, 1 - kept], dtype=torch.float64), dim=0)
    torch.testing.assert_close(old[0, 0], expected, rtol=0, atol=1e-14)
    assert count.item() == updates + 1


def test_weight_none_is_ones_and_weight_0_is_ignored() -> None:
    case = _unit_prototypes(pixels(dtype=torch.float64))
    ones = _updated(case, _counts(case), weight=torch.ones(61, dtype=torch.float64))
    for ours, expected in zip(_updated(case, _counts(case)), ones, strict=True):
        assert torch.equal(ours, expected)
    half = (torch.arange(61) % 2).double()
    weighted = _updated(case, _counts(case), weight=half)
    dropped = _updated(case._replace(assignment=torch.where(half > 0, case.assignment, -1)), _counts(case))
    for ours, expected in zip(weighted, dropped, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-15)


def test_a_pixel_of_weight_0_chooses_nothing() -> None:
    case = pixels()
    prototypes, updates = _updated(case, _counts(case), weight=torch.zeros(61))
    assert torch.equal(prototypes, case.prototypes)
    assert torch.equal(updates, _counts(case))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("beyond", [float("nan"), float("inf")])
@pytest.mark.parametrize("how", ["assignment", "weight"])
def test_what_an_ignored_pixel_holds_does_not_matter(dtype: torch.dtype, beyond: float, how: str) -> None:
    """Ignored by an assignment of -1, or by a weight of 0."""
    case = _unit_prototypes(pixels(200, dtype=dtype))
    ignored = case.assignment < 0 if how == "assignment" else case.weight == 0
    weight = case.weight if how == "weight" else None
    spoilt = case._replace(embedding=torch.where(ignored[:, None], beyond, case.embedding))
    expected = _updated(case, _counts(case), weight=weight)
    ours = _updated(spoilt, _counts(case), weight=weight)
    assert ignored.any()
    for mine, theirs in zip(ours, expected, strict=True):
        assert torch.equal(mine, theirs)


def test_an_ignored_batch_changes_nothing() -> None:
    case = pixels(ignored=1.0)
    prototypes, updates = _updated(case, _counts(case))
    assert torch.equal(prototypes, case.prototypes)
    assert torch.equal(updates, _counts(case))


def test_only_the_view_handed_over_is_written() -> None:
    case = _unit_prototypes(pixels())
    bank, counts = torch.full((3, 6, 20), 5.0), torch.full((3, 6), 5)
    view, count_view = bank[:, 1:5, 2:19], counts[:, 1:5]
    view.copy_(case.prototypes)
    ops.prototype_update_(view, count_view, case.embedding, case.assignment)
    expected, expected_counts = _updated(case, torch.full((3, 4), 5))
    torch.testing.assert_close(view, expected)
    assert torch.equal(count_view, expected_counts)
    assert (bank[:, [0, 5]] == 5).all()
    assert (bank[..., [0, 1, 19]] == 5).all()
    assert (counts[:, [0, 5]] == 5).all()


def test_a_zero_vector_adds_nothing_to_other_pixels() -> None:
    case = _unit_prototypes(pixels(dtype=torch.float64))
    beside = case._replace(
        embedding=torch.cat([case.embedding, torch.zeros(1, 17, dtype=torch.float64)]),
        assignment=torch.cat([case.assignment, torch.tensor([5], dtype=torch.int32)]),
    )
    ours, expected = (_updated(c, _counts(c))[0] for c in (beside, case))
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("pixel", [[0.0, 0.0], [1e-7, 0.0], [3.0, 0.0]])
@pytest.mark.parametrize("had", [0, 5])
def test_pixels_that_sum_to_nothing_leave_a_prototype_alone(pixel: list[float], had: int) -> None:
    """Zero vectors, or two opposite ones: there is no direction to move to, not even at the first update."""
    prototypes, updates = torch.tensor([[[0.6, 0.8]]]), torch.tensor([[had]])
    embedding = torch.tensor([pixel, [-x for x in pixel]])
    ops.prototype_update_(prototypes, updates, embedding, torch.zeros(2, dtype=torch.int32))
    assert torch.equal(prototypes, torch.tensor([[[0.6, 0.8]]]))
    assert updates.item() == had


def test_length_and_order_of_pixels_do_not_matter() -> None:
    case = _unit_prototypes(pixels(dtype=torch.float64))
    order = torch.randperm(61, generator=torch.Generator().manual_seed(1))
    moved = case._replace(embedding=31 * case.embedding[order], assignment=case.assignment[order])
    expected = _updated(case, _counts(case), weight=case.weight)
    ours = _updated(moved, _counts(case), weight=case.weight[order])
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_embeddings_accumulate_in_float32(dtype: torch.dtype) -> None:
    """8,192 pixels on one prototype: a sum stops growing at 2,048 in float16 and at 256 in bfloat16."""
    direction = torch.tensor([[1.0, 0.25]])
    embedding = torch.cat([direction.expand(4096, 2), torch.tensor([[0.0, 1.0]]).expand(4096, 2)]).to(dtype)
    prototypes, count = torch.zeros(1, 1, 2), torch.zeros(1, 1, dtype=torch.int64)
    ops.prototype_update_(prototypes, count, embedding, torch.zeros(8192, dtype=torch.int32))
    first = direction / direction.norm()
    expected = normalize(first + torch.tensor([[0.0, 1.0]]), dim=-1)
    torch.testing.assert_close(prototypes[0], expected, rtol=0, atol=1e-5)


def test_embeddings_with_a_graph_leave_none_in_the_prototypes() -> None:
    case = pixels()
    prototypes = case.prototypes.clone()
    ops.prototype_update_(prototypes, _counts(case), case.embedding.requires_grad_(), case.assignment)
    assert not prototypes.requires_grad
    assert prototypes.grad_fn is None


def _gradient_after_an_update(case: Pixels, operation: str, prototypes: Tensor, *, update: bool) -> Tensor | None:
    """In the embedding; None where backward refuses."""
    embedding = case.embedding.clone().requires_grad_()
    inputs = (embedding, prototypes, *([case.assignment] if operation == "prototype_contrast" else []))
    value = getattr(ops, operation)(*inputs)[0].sum()
    version = prototypes._version
    if update:
        ops.prototype_update_(prototypes, _counts(case), case.embedding, case.assignment)
        assert prototypes._version > version
    try:
        value.backward()
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        return None
    return embedding.grad


@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("learnt", [True, False])
@pytest.mark.parametrize("operation", ["prototype_distance", "prototype_contrast"])
def test_a_pending_backward_never_runs_on_changed_prototypes(operation: str, learnt: bool, contiguous: bool) -> None:
    """It raises, as after any in-place operation of torch, or it has kept what it needs."""
    case = pixels()
    bank = case.prototypes if contiguous else case.prototypes.transpose(0, 1).contiguous().transpose(0, 1)
    before, after = (
        _gradient_after_an_update(case, operation, bank.clone().requires_grad_(learnt), update=update)
        for update in (False, True)
    )
    assert before is not None
    assert after is None or torch.equal(before, after)
    if contiguous and learnt:
        assert after is None


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("prototypes", torch.zeros(4, 17)),
        ("prototypes", torch.zeros(3, 4, 16)),
        ("prototypes", torch.zeros(3, 4, 17, dtype=torch.bfloat16)),
        ("updates", torch.zeros(3, 5, dtype=torch.int64)),
        ("updates", torch.zeros(4, 4, dtype=torch.int64)),
        ("updates", torch.zeros(3, 4)),
        ("updates", torch.zeros(3, 4, dtype=torch.int64, device="meta")),
        ("embedding", torch.zeros(5)),
        ("embedding", torch.zeros(5, 17, dtype=torch.int64)),
        ("assignment", torch.zeros(4, dtype=torch.int32)),
        ("assignment", torch.zeros(5)),
        ("assignment", torch.zeros(5, dtype=torch.uint8)),
        ("weight", torch.zeros(4)),
        ("weight", torch.zeros(5, 1)),
        ("weight", torch.zeros(5, device="meta")),
        ("momentum", 1.5),
        ("momentum", -0.1),
    ],
)
def test_a_wrong_argument_is_refused_by_name(argument: str, value: object) -> None:
    given = {
        "prototypes": torch.zeros(3, 4, 17),
        "updates": torch.zeros(3, 4, dtype=torch.int64),
        "embedding": torch.zeros(5, 17),
        "assignment": torch.zeros(5, dtype=torch.int32),
    } | {argument: value}
    with pytest.raises((TypeError, ValueError), match=argument):
        ops.prototype_update_(**given)
