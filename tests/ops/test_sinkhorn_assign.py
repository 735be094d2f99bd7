"""sinkhorn_assign against the plan-matrix loop in float64, and its balance."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from torch import Tensor

from mpamatch import ops
from tests.ops import truth
from tests.ops.cases import MANY, Pixels, array, pixels
from tests.ops.strategies import PIXELS

pytestmark = pytest.mark.usefixtures("backend")

# How much worse than the best a choice may be in the log of the plan: the rounding of cosine / epsilon.
NEAR_TIE = {torch.float64: 1e-10, torch.float32: 1e-4}


def _assert_right(case: Pixels, assignment: Tensor, **options: float) -> None:
    """Of the pixel's own class, and the best there but for ties within rounding."""
    per_class = case.prototypes.shape[1]
    assert assignment.dtype == torch.int32
    assert assignment.shape == case.label.shape
    ours, label = array(assignment), array(case.label)
    assert ((ours == -1) == (label == truth.IGNORE)).all()
    rows = np.flatnonzero(ours >= 0)
    assert (ours[rows] // per_class == label[rows]).all()
    scores = truth.sinkhorn_scores(array(case.embedding), array(case.prototypes), label, **options)
    worse = scores[rows].max(-1, initial=-np.inf) - scores[rows, ours[rows]]
    assert (worse <= NEAR_TIE[case.prototypes.dtype]).all()


@given(PIXELS)
@example(MANY)
def test_assignment(case: Pixels) -> None:
    _assert_right(case, ops.sinkhorn_assign(case.embedding, case.prototypes, case.label))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("iterations", [1, 2, 3, 10, 100])
@pytest.mark.parametrize("epsilon", [0.01, 0.05, 1.0])
def test_epsilon_and_iterations(dtype: torch.dtype, iterations: int, epsilon: float) -> None:
    case = pixels(301, 8, 3, 5, dtype=dtype, seed=iterations)
    ours = ops.sinkhorn_assign(case.embedding, case.prototypes, case.label, epsilon=epsilon, iterations=iterations)
    _assert_right(case, ours, epsilon=epsilon, iterations=iterations)


def test_no_iteration_is_the_nearest_prototype_of_the_class() -> None:
    case = pixels(dtype=torch.float64)
    _, nearest = ops.prototype_distance(case.embedding, case.prototypes)
    own = torch.where(case.label == 255, 0, case.label).long()
    expected = torch.where(case.label == 255, -1, 4 * own + nearest.gather(1, own[:, None])[:, 0]).int()
    assert torch.equal(ops.sinkhorn_assign(case.embedding, case.prototypes, case.label, iterations=0), expected)


def test_autocast_rounds_no_score() -> None:
    """3,000 pixels and 10 prototypes: rounded to bfloat16, some of the scores change places."""
    case = pixels(3000, 16, 2, 10)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assignment = ops.sinkhorn_assign(case.embedding, case.prototypes, case.label)
    _assert_right(case, assignment)


def _one_favourite() -> Pixels:
    """600 pixels of one class, nearly all nearest to its first prototype."""
    case = pixels(600, 8, 1, 4, dtype=torch.float64, ignored=0.0)
    favourite = torch.nn.functional.normalize(case.prototypes[0, 0], dim=0)
    return case._replace(embedding=favourite + 0.3 * torch.nn.functional.normalize(case.embedding, dim=-1))


def test_after_convergence_every_prototype_has_its_share() -> None:
    case = _one_favourite()
    _, nearest = ops.prototype_distance(case.embedding, case.prototypes)
    assert nearest[:, 0].bincount(minlength=4).max() > 560
    assignment = ops.sinkhorn_assign(case.embedding, case.prototypes, case.label, epsilon=0.01, iterations=300)
    shares = assignment.bincount(minlength=4) / 600
    assert shares.min() > 0.2
    assert shares.max() < 0.3


def test_the_truth_has_the_marginals_it_promises() -> None:
    case = _one_favourite()
    plan = truth.sinkhorn_plan(truth.cosines(array(case.embedding), array(case.prototypes)), 0.05, 300)
    np.testing.assert_allclose(plan.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(plan.sum(0), 150, rtol=1e-6)


def test_ties_go_to_the_lowest_index() -> None:
    axes = torch.eye(4)
    prototypes = torch.stack([axes[[1, 1, 1, 1]], axes[[2, 2, 3, 3]]])
    label = torch.tensor([0, 0, 1, 1], dtype=torch.uint8)
    assert ops.sinkhorn_assign(axes, prototypes, label).tolist() == [0, 0, 4, 6]


def test_zero_vectors_are_assigned() -> None:
    case = pixels()
    case.embedding[:9] = 0
    case.prototypes[1, 2] = 0
    _assert_right(case, ops.sinkhorn_assign(case.embedding, case.prototypes, case.label))
    all_zero = torch.zeros_like(case.embedding)
    expected = torch.where(case.label == 255, -1, case.label.int() * 4)
    assert torch.equal(ops.sinkhorn_assign(all_zero, case.prototypes, case.label), expected.int())


def test_one_prototype_per_class_is_the_label() -> None:
    case = pixels(k=1)
    expected = ops.assignment_from_label(case.label)
    assert torch.equal(ops.sinkhorn_assign(case.embedding, case.prototypes, case.label), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
def test_any_integer_label(dtype: torch.dtype) -> None:
    case = pixels()
    expected = ops.sinkhorn_assign(case.embedding, case.prototypes, case.label)
    assert torch.equal(ops.sinkhorn_assign(case.embedding, case.prototypes, case.label.to(dtype)), expected)


def test_an_ignored_batch_is_ignored() -> None:
    case = pixels(ignored=1.0)
    assert (ops.sinkhorn_assign(case.embedding, case.prototypes, case.label) == -1).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("epsilon", [0.01, 0.05])
@pytest.mark.parametrize("beyond", [float("nan"), float("inf")])
def test_what_an_ignored_pixel_holds_does_not_matter(dtype: torch.dtype, epsilon: float, beyond: float) -> None:
    case = pixels(200, dtype=dtype)
    ignored = (case.label == 255)[:, None]
    expected = ops.sinkhorn_assign(case.embedding, case.prototypes, case.label, epsilon=epsilon)
    spoilt = torch.where(ignored, beyond, case.embedding)
    assert ignored.any()
    assert torch.equal(ops.sinkhorn_assign(spoilt, case.prototypes, case.label, epsilon=epsilon), expected)


def test_a_label_that_is_no_class_is_ignored() -> None:
    case = pixels()
    beyond = torch.where(case.label == 2, 3, case.label)
    expected = ops.sinkhorn_assign(case.embedding, case.prototypes, torch.where(case.label == 2, 255, case.label))
    assert torch.equal(ops.sinkhorn_assign(case.embedding, case.prototypes, beyond), expected)


def test_classes_do_not_see_one_another() -> None:
    case = pixels(200, dtype=torch.float64)
    before = ops.sinkhorn_assign(case.embedding, case.prototypes, case.label)
    others = (case.label != 1)[:, None]
    changed = torch.where(others, case.embedding.flip(1), case.embedding)
    after = ops.sinkhorn_assign(changed, case.prototypes, torch.where(case.label == 2, 255, case.label))
    mine = case.label == 1
    assert torch.equal(after[mine], before[mine])
    assert not torch.equal(after[case.label == 0], before[case.label == 0])


def test_length_and_order_do_not_matter() -> None:
    case = pixels(200, dtype=torch.float64)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    expected = ops.sinkhorn_assign(case.embedding, case.prototypes, case.label)
    ours = ops.sinkhorn_assign(29 * case.embedding[order], case.prototypes / 7, case.label[order])
    assert torch.equal(ours, expected[order])


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("embedding", torch.zeros(5)),
        ("embedding", torch.zeros(5, 17, dtype=torch.int64)),
        ("prototypes", torch.zeros(4, 17)),
        ("prototypes", torch.zeros(3, 4, 16)),
        ("prototypes", torch.zeros(3, 4, 17, dtype=torch.int32)),
        ("prototypes", torch.zeros(256, 1, 17)),  # label 255 would be a class and ignored
        ("label", torch.zeros(4, dtype=torch.uint8)),
        ("label", torch.zeros(5, 1, dtype=torch.uint8)),
        ("label", torch.zeros(5)),
        ("label", torch.zeros(5, dtype=torch.uint8, device="meta")),
        ("epsilon", 0.0),
        ("iterations", -1),
    ],
)
def test_a_wrong_argument_is_refused_by_name(argument: str, value: object) -> None:
    given = {
        "embedding": torch.zeros(5, 17),
        "prototypes": torch.zeros(3, 4, 17),
        "label": torch.zeros(5, dtype=torch.uint8),
    } | {argument: value}
    with pytest.raises((TypeError, ValueError), match=argument):
        ops.sinkhorn_assign(**given)


def test_one_float64_argument_makes_all_of_it_float64() -> None:
    """Two prototypes whose cosines with the pixel differ by 1e-12, which float32 cannot tell apart."""
    turn = torch.tensor(1e-6, dtype=torch.float64)
    prototypes = torch.stack([torch.stack([turn.cos(), turn.sin()]), torch.tensor([1.0, 0.0], dtype=torch.float64)])
    embedding, label = torch.tensor([[1.0, 0.0]]), torch.zeros(1, dtype=torch.uint8)
    assert ops.sinkhorn_assign(embedding, prototypes[None], label, iterations=0).tolist() == [1]
