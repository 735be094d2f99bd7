"""Nearest prototypes by Triton, against float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from mpamatch.kernels import prototype_distance, tiles
from tests.kernels.interpreter.compare import DTYPES, TOLERANCE, assert_as_good, assert_it_goes_around, padded
from tests.ops import cases, truth
from tests.ops.strategies import INTERPRETED_PIXELS

FORWARD = {"BLOCK_N": 32, "BLOCK_M": 16, "BLOCK_D": 16, "programs": 2, "num_warps": 4, "num_stages": 2, "resident": 2}
BACKWARD = FORWARD | {"BLOCK_N": 16, "BLOCK_M": 32, "programs": 8}  # two slots for 2 tiles of D and 2 of prototypes
AROUND = {"n": 70, "d": 20, "c": 2, "k": 20}  # 3 or 5 blocks of pixels, 2 tiles of D, and 2 in each of 2 classes


def eager(case: cases.Pixels, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The specification, written out: torch operations in float32 with autograd."""
    embedding, prototypes = case.embedding.clone().requires_grad_(), case.prototypes.clone().requires_grad_()
    z = torch.nn.functional.normalize(embedding.float(), dim=-1)
    p = torch.nn.functional.normalize(prototypes, dim=-1)
    highest, nearest = torch.einsum("nd,ckd->nck", z, p).max(-1)
    in_embedding, in_prototypes = torch.autograd.grad(1 - highest, (embedding, prototypes), grad)
    return (1 - highest).detach(), nearest.int(), in_embedding, in_prototypes


def gradients_through(case: cases.Pixels, nearest: Tensor, grad: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """In float64, through the prototypes that were chosen: of two that are equally near, either will do."""
    e, p = cases.array(case.embedding), cases.array(case.prototypes)
    chosen = cases.array(nearest)[..., None] == np.arange(p.shape[1])
    in_cosines = np.where(chosen, -cases.array(grad)[..., None], 0.0).reshape(len(e), p.shape[0] * p.shape[1])
    return truth._through_cosines(e, p, in_cosines)


def check(case: cases.Pixels) -> None:
    dtype = case.embedding.dtype
    distance, nearest, *kept = prototype_distance.forward(case.embedding, case.prototypes)
    grad = torch.randn(distance.shape, generator=torch.Generator().manual_seed(1))
    in_embedding, in_prototypes = prototype_distance.backward(
        grad, case.embedding, case.prototypes, distance, nearest, *kept, True, True
    )
    plain = eager(case, grad)
    true_distance, true_nearest = truth.prototype_distance(cases.array(case.embedding), cases.array(case.prototypes))
    assert_as_good(distance, plain[0], true_distance, dtype, size=1)
    cosine = truth.cosines(cases.array(case.embedding), cases.array(case.prototypes))
    cosine = cosine.reshape(*distance.shape, case.prototypes.shape[1])
    assert nearest.dtype == torch.int32
    short = np.take_along_axis(cosine, true_nearest[..., None], -1) - np.take_along_axis(
        cosine, cases.array(nearest)[..., None], -1
    )
    assert short.max(initial=0) <= TOLERANCE[dtype]
    true = gradients_through(case, nearest, grad)
    assert_as_good(in_embedding, plain[2], true[0], dtype, size=float(grad.abs().max()) if grad.numel() else 0)
    assert_as_good(in_prototypes, plain[3], true[1], dtype, size=len(grad) ** 0.5)


@pytest.mark.parametrize(
    ("d", "c", "k", "dtype"),
    [
        (37, 3, 5, torch.float32),
        (64, 2, 1, torch.float16),
        (3, 1, 7, torch.float32),
        (130, 4, 10, torch.bfloat16),
        (130, 4, 10, torch.float16),
    ],
    ids=str,
)
def test_truth(d: int, c: int, k: int, dtype: torch.dtype) -> None:
    check(cases.pixels(45, d, c, k, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tiles_that_go_around_every_loop(dtype: torch.dtype) -> None:
    """Several blocks a program, several tiles of classes, of prototypes within a class and of channels."""
    case = cases.pixels(**AROUND, dtype=dtype)
    with (
        tiles.using("prototype_distance.forward", FORWARD),
        tiles.using("prototype_distance.in_embedding", BACKWARD),
        tiles.using("prototype_distance.in_prototypes", BACKWARD),
    ):
        assert_it_goes_around("prototype_distance", case)
        check(case)


@settings(max_examples=12)
@given(INTERPRETED_PIXELS)
def test_fuzz(case: cases.Pixels) -> None:
    check(case)


def test_rows_with_a_stride_and_nan_between_them() -> None:
    case = cases.pixels(40, 17)
    wide = padded(case.embedding)
    distance, nearest, *kept = prototype_distance.forward(case.embedding, case.prototypes)
    again = prototype_distance.forward(wide, case.prototypes)
    for mine, theirs in zip(again, (distance, nearest, *kept), strict=True):
        assert torch.equal(mine, theirs)
    saved = (case.prototypes, distance, nearest, *kept, True, True)
    plain = prototype_distance.backward(distance, case.embedding, *saved)
    for mine, theirs in zip(prototype_distance.backward(distance, wide, *saved), plain, strict=True):
        assert torch.equal(mine, theirs)


def test_no_pixel() -> None:
    case = cases.pixels(0)
    distance, nearest, *kept = prototype_distance.forward(case.embedding, case.prototypes)
    assert distance.shape == nearest.shape == (0, 3)
    gradients = prototype_distance.backward(
        distance, case.embedding, case.prototypes, distance, nearest, *kept, True, True
    )
    assert gradients[0].shape == (0, 17)
    assert torch.equal(gradients[1], torch.zeros_like(case.prototypes))


@pytest.mark.parametrize("tiny", [0.0, 1e-7], ids=str)
def test_zero_vectors(tiny: float) -> None:
    case = cases.pixels(40, 17)
    case.embedding[5] = tiny / 17**0.5
    case.prototypes[1] = 0
    distance, nearest, *kept = prototype_distance.forward(case.embedding, case.prototypes)
    assert torch.equal(distance[5], torch.ones(3))
    assert torch.equal(distance[:, 1], torch.ones(40))
    assert not nearest[5].any()
    assert not nearest[:, 1].any()
    in_embedding, in_prototypes = prototype_distance.backward(
        torch.ones_like(distance), case.embedding, case.prototypes, distance, nearest, *kept, True, True
    )
    assert in_embedding.isfinite().all()
    assert in_prototypes.isfinite().all()
    assert not in_embedding[5].any()
    assert not in_prototypes[1].any()


def test_needs_and_repeats() -> None:
    """The same bits again, and each gradient alone has the bits it has beside the other."""
    case = cases.pixels(40, 20, 2, 10)
    small = BACKWARD | {"BLOCK_M": 16}
    with tiles.using("prototype_distance.in_embedding", small), tiles.using("prototype_distance.in_prototypes", small):
        distance, nearest, *kept = prototype_distance.forward(case.embedding, case.prototypes)

        def run(*needs: bool) -> tuple[Tensor, Tensor]:
            return prototype_distance.backward(
                distance, case.embedding, case.prototypes, distance, nearest, *kept, *needs
            )

        both, again = run(True, True), run(True, True)
        first, none = run(True, False)
        nothing, second = run(False, True)
    assert torch.equal(both[0], again[0])
    assert torch.equal(both[1], again[1])
    assert torch.equal(first, both[0])
    assert torch.equal(second, both[1])
    assert none.shape == nothing.shape == (0,)
    assert nothing.dtype == case.embedding.dtype


@pytest.mark.parametrize("scale", [1e-6, 1e6], ids=str)
def test_float16_keeps_small_and_large_gradients(scale: float) -> None:
    """Unscaled, entries of 1e-7 would be lost in float16, whose smallest number is 6e-8."""
    case = cases.pixels(40, 37, dtype=torch.float16)
    distance, nearest, *kept = prototype_distance.forward(case.embedding, case.prototypes)
    grad = scale * torch.randn(distance.shape, generator=torch.Generator().manual_seed(1))
    grad[::2] *= 0.1
    _, ours = prototype_distance.backward(grad, case.embedding, case.prototypes, distance, nearest, *kept, False, True)
    expected = gradients_through(case, nearest, grad)[1]
    assert np.abs(ours.numpy() - expected).max() <= 1e-3 * np.abs(expected).max()
