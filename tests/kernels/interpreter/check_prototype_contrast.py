"""InfoNCE and alignment by Triton, against float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mpamatch.kernels import prototype_contrast, tiles
from tests.kernels.interpreter.compare import HALVES, assert_as_good, assert_it_goes_around, padded
from tests.ops import cases, truth
from tests.ops.strategies import INTERPRETED_PIXELS

FORWARD = {"BLOCK_N": 32, "BLOCK_M": 16, "BLOCK_D": 16, "programs": 2, "num_warps": 4, "num_stages": 2, "resident": 2}
BACKWARD = FORWARD | {"BLOCK_N": 16, "programs": 8}  # two slots for 2 tiles of D and 2 of prototypes
AROUND = {"n": 70, "d": 20, "c": 2, "k": 10}  # 3 or 5 blocks of pixels, 2 tiles of D and 2 of prototypes
GRAD = (0.7, -0.3)
TEMPERATURE = 0.1


def eager(case: cases.Pixels, weight: Tensor | None, same: bool, grad: tuple[float, float]) -> tuple[Tensor, ...]:
    """The specification, written out: torch operations in float32 with autograd."""
    embedding, prototypes = case.embedding.clone().requires_grad_(), case.prototypes.clone().requires_grad_()
    count = prototypes.shape[0] * prototypes.shape[1]
    z = torch.nn.functional.normalize(embedding.float(), dim=-1)
    cosine = z @ torch.nn.functional.normalize(prototypes, dim=-1).reshape(count, -1).T
    used = case.assignment >= 0
    own = torch.where(used, case.assignment, 0).long()
    w = torch.where(used, torch.ones(len(own)) if weight is None else weight, 0.0)
    index = torch.arange(count)
    per_class = prototypes.shape[1]
    sibling = (index // per_class == own[:, None] // per_class) & (index != own[:, None])
    logits = torch.where(sibling & (not same), -torch.inf, cosine / TEMPERATURE)
    own_cosine = cosine.gather(1, own[:, None]).squeeze(1)
    contrast = (w * (logits.logsumexp(1) - own_cosine / TEMPERATURE)).sum()
    alignment = (w * (1 - own_cosine).square()).sum()
    gradients = torch.autograd.grad(grad[0] * contrast + grad[1] * alignment, (embedding, prototypes))
    return contrast.detach(), alignment.detach(), *gradients


def run(
    case: cases.Pixels,
    weight: Tensor | None,
    same: bool,
    grad: tuple[float, float] = GRAD,
    needs: tuple[bool, bool] = (True, True),
) -> tuple[Tensor, ...]:
    inputs = (case.embedding, case.prototypes, case.assignment, weight)
    contrast, alignment, *kept = prototype_contrast.forward(*inputs, TEMPERATURE, same)
    assert all(value.isfinite().all() for value in kept)
    given = [torch.tensor(number) for number in grad]
    return contrast, alignment, *prototype_contrast.backward(*given, *inputs, *kept, TEMPERATURE, same, *needs)


def check(case: cases.Pixels, weighted: bool = True, same: bool = True, grad: tuple[float, float] = GRAD) -> None:
    dtype = case.embedding.dtype
    weight = case.weight if weighted else None
    ours, plain = run(case, weight, same, grad), eager(case, weight, same, grad)
    inputs = (cases.array(case.embedding), cases.array(case.prototypes), cases.array(case.assignment))
    options = {"weight": cases.array(weight) if weighted else None, "same_class_negatives": same}
    true = (
        *truth.prototype_contrast(*inputs, temperature=TEMPERATURE, **options),
        *truth.prototype_contrast_gradient(*inputs, grad, temperature=TEMPERATURE, **options),
    )
    largest = max(abs(grad[0]) / TEMPERATURE, 2 * abs(grad[1]))
    sizes = (len(inputs[0]), len(inputs[0]), largest, largest)
    for mine, theirs, value, size in zip(ours, plain, true, sizes, strict=True):
        assert_as_good(mine, theirs, value, dtype, size=size)


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize(
    ("d", "c", "k", "dtype"),
    [(37, 3, 5, torch.float32), (64, 2, 1, torch.float16), (130, 4, 10, torch.bfloat16)],
    ids=str,
)
def test_truth(d: int, c: int, k: int, dtype: torch.dtype, same: bool) -> None:
    check(cases.pixels(45, d, c, k, dtype=dtype), same=same)


@pytest.mark.parametrize(
    ("same", "dtype"), [(True, torch.float32), (False, torch.float16), (True, torch.bfloat16)], ids=str
)
def test_tiles_that_go_around_every_loop(same: bool, dtype: torch.dtype) -> None:
    """Several blocks a program, several tiles of prototypes and of channels."""
    case = cases.pixels(**AROUND, dtype=dtype)
    with (
        tiles.using("prototype_contrast.forward", FORWARD),
        tiles.using("prototype_contrast.in_embedding", BACKWARD),
        tiles.using("prototype_contrast.in_prototypes", BACKWARD),
    ):
        assert_it_goes_around("prototype_contrast", case)
        check(case, same=same)


@settings(max_examples=12)
@given(
    case=INTERPRETED_PIXELS,
    weighted=st.booleans(),
    same=st.booleans(),
)
def test_fuzz(case: cases.Pixels, weighted: bool, same: bool) -> None:
    check(case, weighted, same)


def test_assignment_of_any_value() -> None:
    """Outside [0, C·K) is ignored, also where the low 32 bits look like a prototype."""
    case = cases.pixels(40)
    strange, expected = case.assignment.long(), run(case, case.weight, False)
    for value in (-7, 12, 255, 2**32 + 1, -(2**32) + 1):
        strange[case.assignment < 0] = value
        found = run(case._replace(assignment=strange), case.weight, False)
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


def test_rows_with_a_stride_and_nan_between_them() -> None:
    case = cases.pixels(40, 17)
    wide = case._replace(embedding=padded(case.embedding))
    for mine, theirs in zip(run(wide, case.weight, True), run(case, case.weight, True), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("what", [float("nan"), float("inf")])
def test_a_pixel_that_does_not_count_may_hold_anything(what: float, dtype: torch.dtype) -> None:
    case = cases.pixels(40, 20, 2, 10, dtype=dtype)
    spoilt = case.embedding.clone()
    uncounted = (case.assignment < 0) | (case.weight == 0)
    spoilt[uncounted] = what
    ours, clean = run(case._replace(embedding=spoilt), case.weight, False), run(case, case.weight, False)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(ours, clean, strict=True))
    assert not ours[2][uncounted].any()


@pytest.mark.parametrize("same", [True, False])
def test_prototypes_that_stay_in_shared_memory_part_by_part(same: bool) -> None:
    """One tile of prototypes, several parts of channels, each loaded once before the loop; or loaded where used."""
    case = cases.pixels(70, 40, 2, 4, dtype=torch.bfloat16)
    results = []
    for resident in (4, 0):
        with (
            tiles.using("prototype_contrast.forward", FORWARD | {"resident": resident}),
            tiles.using("prototype_contrast.in_embedding", FORWARD | {"resident": resident}),
            tiles.using("prototype_contrast.in_prototypes", BACKWARD | {"resident": resident}),
        ):
            check(case, same=same)
            results.append(run(case, case.weight, same))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*results, strict=True))


@pytest.mark.parametrize("case", [cases.pixels(0), cases.pixels(30, ignored=1.0)], ids=["no pixel", "all ignored"])
def test_nothing_to_do(case: cases.Pixels) -> None:
    contrast, alignment, in_embedding, in_prototypes = run(case, None, False)
    assert contrast == alignment == 0
    assert torch.equal(in_embedding, torch.zeros_like(case.embedding))
    assert torch.equal(in_prototypes, torch.zeros_like(case.prototypes))


@pytest.mark.parametrize("tiny", [0.0, 1e-7], ids=str)
def test_zero_vectors(tiny: float) -> None:
    case = cases.pixels(40, 17, ignored=0.0)
    case.embedding[5] = tiny / 17**0.5
    case.prototypes[1] = 0
    contrast, alignment, in_embedding, in_prototypes = run(case, None, True)
    assert contrast.isfinite()
    assert alignment.isfinite()
    assert in_embedding.isfinite().all()
    assert in_prototypes.isfinite().all()
    assert not in_embedding[5].any()
    assert not in_prototypes[1].any()


def test_needs_and_repeats() -> None:
    """The same bits again, and each gradient alone has the bits it has beside the other."""
    case = cases.pixels(40, 20, 2, 10)
    with (
        tiles.using("prototype_contrast.in_embedding", BACKWARD),
        tiles.using("prototype_contrast.in_prototypes", BACKWARD),
    ):
        both, again = run(case, None, True), run(case, None, True)
        first = run(case, None, True, needs=(True, False))
        second = run(case, None, True, needs=(False, True))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(both, again, strict=True))
    assert torch.equal(first[2], both[2])
    assert torch.equal(second[3], both[3])
    assert first[3].shape == second[2].shape == (0,)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("grad", [(1e-7, 2e-7), (1e6, 0.0), (0.0, 1e-3)], ids=str)
def test_gradients_of_any_size(grad: tuple[float, float], dtype: torch.dtype) -> None:
    """Unscaled, entries of 1e-7 would be lost in float16, whose smallest number is 6e-8."""
    case = cases.pixels(40, 37, dtype=dtype)
    *_, ours = run(case, case.weight, True, grad, (False, True))
    *_, true = truth.prototype_contrast_gradient(
        cases.array(case.embedding),
        cases.array(case.prototypes),
        cases.array(case.assignment),
        grad,
        weight=cases.array(case.weight),
    )
    limit = {torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype] * abs(true).max()
    assert abs(ours.numpy() - true).max() <= limit


def test_a_gradient_that_is_not_finite_shows() -> None:
    """A loss scaler looks for it."""
    case = cases.pixels(20, ignored=0.0)
    *_, in_embedding, in_prototypes = run(case, None, True, (float("inf"), 0.0))
    assert not in_embedding.isfinite().any()
    assert not in_prototypes.isfinite().any()
