"""prototype_contrast against float64 numpy, value and gradients, and what must not matter."""

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn.functional import cross_entropy, normalize

from mpamatch import ops
from tests.ops import truth
from tests.ops.cases import MANY, Pixels, array, assert_near, pixels
from tests.ops.strategies import PIXELS

pytestmark = pytest.mark.usefixtures("backend")


def _gradients(case: Pixels, grad: tuple[float, float] = (1.0, 1.0), **options: object) -> tuple[Tensor, Tensor]:
    embedding, prototypes = case.embedding.clone().requires_grad_(), case.prototypes.clone().requires_grad_()
    contrast, alignment = ops.prototype_contrast(embedding, prototypes, case.assignment, **options)
    return torch.autograd.grad(grad[0] * contrast + grad[1] * alignment, (embedding, prototypes))


def _true_inputs(case: Pixels) -> tuple:
    return tuple(map(array, (case.embedding, case.prototypes, case.assignment)))


@given(PIXELS, st.booleans(), st.booleans(), st.sampled_from([0.05, 0.1, 1.0]))
@example(MANY, True, False, 0.1)
def test_value(case: Pixels, weighted: bool, same_class_negatives: bool, temperature: float) -> None:
    options = {"temperature": temperature, "same_class_negatives": same_class_negatives}
    weight = case.weight if weighted else None
    ours = ops.prototype_contrast(case.embedding, case.prototypes, case.assignment, weight=weight, **options)
    expected = truth.prototype_contrast(
        *_true_inputs(case), weight=None if weight is None else array(weight), **options
    )
    assert_near(ours[0], expected[0], size=len(case.weight))
    assert_near(ours[1], expected[1], size=len(case.weight))


@given(PIXELS, st.booleans(), st.booleans(), st.sampled_from([(1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (-0.5, 3.0)]))
@example(MANY, True, False, (-0.5, 3.0))
def test_gradient(case: Pixels, weighted: bool, same_class_negatives: bool, grad: tuple[float, float]) -> None:
    weight = case.weight if weighted else None
    ours = _gradients(case, grad, weight=weight, same_class_negatives=same_class_negatives)
    expected = truth.prototype_contrast_gradient(
        *_true_inputs(case),
        grad,
        weight=None if weight is None else array(weight),
        same_class_negatives=same_class_negatives,
    )
    assert ours[0].dtype == case.embedding.dtype
    assert ours[1].dtype == case.prototypes.dtype
    assert_near(ours[0], expected[0], size=10.0)  # 1/temperature
    assert_near(ours[1], expected[1], size=len(case.weight))


@pytest.mark.parametrize("same_class_negatives", [True, False])
@pytest.mark.parametrize(("c", "k", "d"), [(3, 2, 5), (1, 1, 3), (1, 3, 2), (3, 1, 4)])
def test_gradcheck(c: int, k: int, d: int, same_class_negatives: bool) -> None:
    case = pixels(7, d, c, k, dtype=torch.float64, seed=1)

    def contrast(embedding: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
        return ops.prototype_contrast(
            embedding,
            prototypes,
            case.assignment,
            weight=case.weight,
            same_class_negatives=same_class_negatives,
        )

    assert gradcheck(contrast, (case.embedding.requires_grad_(), case.prototypes.requires_grad_()))


def test_one_prototype_per_class_is_cross_entropy_of_the_cosines() -> None:
    """The text prototypes: an outside check, with torch's own loss."""
    case = pixels(c=5, k=1, dtype=torch.float64)
    assignment = ops.assignment_from_label(case.label)
    cosines = normalize(case.embedding, dim=-1) @ normalize(case.prototypes[:, 0], dim=-1).T
    label = case.label.long()
    expected = cross_entropy(cosines / 0.07, label, ignore_index=255, reduction="sum")
    kept = label != 255
    pull = (1 - cosines[kept, label[kept]]).square().sum()
    for same_class_negatives in (True, False):  # with one prototype per class there are no others of it
        ours = ops.prototype_contrast(
            case.embedding,
            case.prototypes,
            assignment,
            temperature=0.07,
            same_class_negatives=same_class_negatives,
        )
        torch.testing.assert_close(ours, (expected, pull))


def test_without_same_class_negatives_the_others_of_the_class_do_not_matter() -> None:
    case = pixels(dtype=torch.float64)
    assignment = torch.where(case.label == 2, 8, -1).int()  # prototype 0 of class 2
    changed = case.prototypes.clone()
    changed[2, 1:] = changed[2, 1:].flip(-1)
    for same_class_negatives in (True, False):
        before, after = (
            ops.prototype_contrast(case.embedding, prototypes, assignment, same_class_negatives=same_class_negatives)[0]
            for prototypes in (case.prototypes, changed)
        )
        assert torch.equal(before, after) is not same_class_negatives


def test_one_prototype_alone_has_nothing_to_contrast_with() -> None:
    case = pixels(c=1, k=1)
    contrast, alignment = ops.prototype_contrast(case.embedding, case.prototypes, case.assignment)
    assert contrast.item() == 0
    assert alignment.item() > 0
    in_embedding, _ = _gradients(case, (1.0, 0.0))
    assert not in_embedding.any()


def test_an_ignored_batch_costs_nothing() -> None:
    for case in (pixels(ignored=1.0), pixels(n=0)):
        contrast, alignment = ops.prototype_contrast(case.embedding, case.prototypes, case.assignment)
        assert contrast.item() == alignment.item() == 0
        for gradient in _gradients(case):
            assert gradient.isfinite().all()
            assert not gradient.any()


def test_ignored_pixels_and_weight_0_have_gradient_0() -> None:
    case = pixels()
    out = (case.assignment < 0) | (case.weight == 0)
    in_embedding, _ = _gradients(case, weight=case.weight)
    assert out.sum() > 10
    assert not in_embedding[out].any()
    assert in_embedding[~out].any(-1).all()


@pytest.mark.parametrize("filler", [math.nan, 1e30])
def test_the_embedding_of_an_ignored_pixel_does_not_matter(filler: float) -> None:
    case = pixels()
    out = (case.assignment < 0) | (case.weight == 0)
    spoilt = case._replace(embedding=torch.where(out[:, None], filler, case.embedding))
    for ours, expected in zip(
        _gradients(spoilt, weight=case.weight), _gradients(case, weight=case.weight), strict=True
    ):
        used = ~out if len(ours) == len(out) else slice(None)
        torch.testing.assert_close(ours[used], expected[used])


def test_weight_none_is_ones() -> None:
    case = pixels()
    ones = ops.prototype_contrast(case.embedding, case.prototypes, case.assignment, weight=torch.ones(61))
    none = ops.prototype_contrast(case.embedding, case.prototypes, case.assignment)
    assert all(torch.equal(a, b) for a, b in zip(ones, none, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tiny", [0.0, 1e-7])
def test_zero_vectors(dtype: torch.dtype, tiny: float) -> None:
    """A zero embedding has cosine 0 with all 12 prototypes: contrast log 12, alignment 1, gradient 0."""
    case = pixels(1, ignored=0.0, dtype=dtype)
    case.embedding.zero_()[0, 0] = tiny
    ours = ops.prototype_contrast(case.embedding, case.prototypes, case.assignment)
    torch.testing.assert_close(torch.stack(ours), torch.tensor([math.log(12), 1.0], dtype=ours[0].dtype))
    in_embedding, in_prototypes = _gradients(case)
    assert not in_embedding.any()
    assert in_prototypes.isfinite().all()
    assert in_prototypes.abs().max() < 1e-5
    case = pixels(dtype=dtype)
    case.prototypes[1] = 0
    case.prototypes[1, :, 0] = tiny
    in_embedding, in_prototypes = _gradients(case)
    assert in_embedding.isfinite().all()
    assert in_prototypes.isfinite().all()
    assert not in_prototypes[1].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_inputs_accumulate_in_float32(dtype: torch.dtype) -> None:
    """20,000 like pixels: a sum in half precision would stop growing at a few hundred terms."""
    case = pixels(1, ignored=0.0, dtype=dtype)
    many = case._replace(embedding=case.embedding.repeat(20_000, 1), assignment=case.assignment.repeat(20_000))
    expected = truth.prototype_contrast(*_true_inputs(case))
    ours = ops.prototype_contrast(many.embedding, many.prototypes, many.assignment)
    assert_near(ours[0], 20_000 * expected[0], size=20_000)
    assert_near(ours[1], 20_000 * expected[1], size=20_000)


def test_length_does_not_matter_and_divides_the_gradient() -> None:
    case = pixels(dtype=torch.float64)
    longer = case._replace(embedding=case.embedding * 37, prototypes=case.prototypes * 0.01)
    values = [ops.prototype_contrast(c.embedding, c.prototypes, c.assignment) for c in (case, longer)]
    torch.testing.assert_close(values[1], values[0], rtol=1e-12, atol=0)
    plain, scaled = _gradients(case), _gradients(longer)
    torch.testing.assert_close(scaled[0] * 37, plain[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(scaled[1] * 0.01, plain[1], rtol=0, atol=1e-12)


def test_gradients_stand_upright_on_their_vectors() -> None:
    case = pixels(dtype=torch.float64)
    in_embedding, in_prototypes = _gradients(case)
    assert in_embedding.abs().max() > 0.1
    assert (in_embedding * case.embedding).sum(-1).abs().max() < 1e-13
    assert (in_prototypes * case.prototypes).sum(-1).abs().max() < 1e-12


def test_pixels_do_not_know_their_place() -> None:
    case = pixels(dtype=torch.float64)
    order = torch.randperm(61, generator=torch.Generator().manual_seed(1))
    moved = case._replace(embedding=case.embedding[order], assignment=case.assignment[order])
    values = [ops.prototype_contrast(c.embedding, c.prototypes, c.assignment) for c in (case, moved)]
    torch.testing.assert_close(values[1], values[0], rtol=1e-13, atol=0)
    torch.testing.assert_close(_gradients(moved)[0], _gradients(case)[0][order], rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("embedding", torch.zeros(5)),
        ("embedding", torch.zeros(5, 17, dtype=torch.int64)),
        ("prototypes", torch.zeros(4, 17)),
        ("prototypes", torch.zeros(3, 4, 16)),
        ("prototypes", torch.zeros(3, 4, 17, dtype=torch.int32)),
        ("assignment", torch.zeros(4, dtype=torch.int32)),
        ("assignment", torch.zeros(5, 1, dtype=torch.int32)),
        ("assignment", torch.zeros(5)),
        ("assignment", torch.zeros(5, dtype=torch.uint8)),
        ("assignment", torch.zeros(5, dtype=torch.int32, device="meta")),
        ("weight", torch.zeros(4)),
        ("weight", torch.zeros(5, 1)),
        ("weight", torch.zeros(5, device="meta")),
        ("temperature", 0.0),
        ("temperature", -1.0),
    ],
)
def test_a_wrong_argument_is_refused_by_name(argument: str, value: object) -> None:
    given = {
        "embedding": torch.zeros(5, 17),
        "prototypes": torch.zeros(3, 4, 17),
        "assignment": torch.zeros(5, dtype=torch.int32),
    } | {argument: value}
    with pytest.raises((TypeError, ValueError), match=argument):
        ops.prototype_contrast(**given)
