"""prototype_distance against float64 numpy, its gradient through the chosen prototype, zero vectors, ties."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from torch import Tensor
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from mpamatch import ops
from tests.ops import truth
from tests.ops.cases import MANY, TOLERANCE, Pixels, array, assert_near, pixels
from tests.ops.strategies import PIXELS

pytestmark = pytest.mark.usefixtures("backend")


def _gradients(case: Pixels, grad: Tensor) -> tuple[Tensor, Tensor]:
    embedding, prototypes = case.embedding.clone().requires_grad_(), case.prototypes.clone().requires_grad_()
    distance, _ = ops.prototype_distance(embedding, prototypes)
    return torch.autograd.grad(distance, (embedding, prototypes), grad)


@given(PIXELS)
@example(MANY)
def test_value_and_choice(case: Pixels) -> None:
    distance, nearest = ops.prototype_distance(case.embedding, case.prototypes)
    embedding, prototypes = array(case.embedding), array(case.prototypes)
    expected, _ = truth.prototype_distance(embedding, prototypes)
    assert_near(distance, expected, size=1.0)
    assert nearest.dtype == torch.int32
    assert nearest.shape == distance.shape
    score = truth.cosines(embedding, prototypes).reshape(len(embedding), *prototypes.shape[:2])
    chosen = np.take_along_axis(score, array(nearest)[..., None], -1)[..., 0]
    np.testing.assert_allclose(1 - chosen, expected, rtol=0, atol=TOLERANCE[distance.dtype])


@given(PIXELS)
@example(MANY)
def test_gradient(case: Pixels) -> None:
    embedding, prototypes = array(case.embedding), array(case.prototypes)
    score = truth.cosines(embedding, prototypes).reshape(len(embedding), *prototypes.shape[:2])
    score.sort(-1)
    clear = score[..., -1] - score[..., -2] > 1e-4 if score.shape[-1] > 1 else np.ones(score.shape[:2], dtype=bool)
    # where two prototypes are as near, either gradient is right: those distances are left out of the sum
    grad = torch.from_numpy(clear * np.linspace(-1, 2, clear.size).reshape(clear.shape)).to(case.prototypes.dtype)
    ours = _gradients(case, grad)
    expected = truth.prototype_distance_gradient(embedding, prototypes, array(grad))
    assert ours[0].dtype == case.embedding.dtype
    assert_near(ours[0], expected[0], size=len(prototypes))
    assert_near(ours[1], expected[1], size=len(embedding))


@pytest.mark.parametrize(("c", "k", "d"), [(3, 4, 5), (1, 1, 3), (2, 1, 1)])
def test_gradcheck(c: int, k: int, d: int) -> None:
    case = pixels(7, d, c, k, dtype=torch.float64)
    inputs = (case.embedding.requires_grad_(), case.prototypes.requires_grad_())
    assert gradcheck(lambda *given: ops.prototype_distance(*given)[0], inputs)


def test_an_embedding_on_a_prototype_is_at_0_and_its_opposite_at_2() -> None:
    prototypes = torch.tensor([[[0.0, 3.0]], [[0.0, -2.0]]])
    distance, nearest = ops.prototype_distance(torch.tensor([[0.0, 5.0]]), prototypes)
    torch.testing.assert_close(distance, torch.tensor([[0.0, 2.0]]))
    assert nearest.tolist() == [[0, 0]]


def test_ties_go_to_the_lowest_index() -> None:
    axes = torch.eye(4)
    prototypes = torch.stack([axes[[1, 0, 0, 2]], axes[[2, 3, 1, 3]]])
    _, nearest = ops.prototype_distance(axes, prototypes)
    assert nearest.tolist() == [[1, 0], [0, 2], [3, 0], [0, 1]]


def test_a_tie_sends_its_whole_gradient_to_the_lowest_index() -> None:
    axes = torch.eye(3, dtype=torch.float64)
    prototypes = axes[[0, 1, 1]][None].clone().requires_grad_()
    distance, _ = ops.prototype_distance(torch.tensor([[0.6, 0.8, 0.0]], dtype=torch.float64), prototypes)
    distance.sum().backward()
    torch.testing.assert_close(
        prototypes.grad, torch.tensor([[[0, 0, 0], [-0.6, 0, 0], [0, 0, 0]]], dtype=torch.float64)
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tiny", [0.0, 1e-7])
def test_a_zero_vector_is_at_distance_1_and_has_gradient_0(dtype: torch.dtype, tiny: float) -> None:
    case = pixels(dtype=dtype)
    case.embedding[5] = 0
    case.embedding[5, 0] = tiny
    case.prototypes[1] = 0
    case.prototypes[1, :, 0] = tiny
    distance, nearest = ops.prototype_distance(case.embedding, case.prototypes)
    assert distance[5].tolist() == [1.0] * 3
    assert nearest[5].tolist() == [0] * 3
    assert distance[:, 1].tolist() == [1.0] * len(distance)
    in_embedding, in_prototypes = _gradients(case, torch.ones_like(distance))
    assert in_embedding[5].tolist() == [0.0] * 17
    assert not in_prototypes[1].any()
    assert in_embedding.isfinite().all()
    assert in_prototypes.isfinite().all()


def test_a_short_vector_above_the_threshold_is_no_zero_vector() -> None:
    distance, _ = ops.prototype_distance(torch.tensor([[0.0, 1e-5]]), torch.tensor([[[0.0, 1.0]]]))
    torch.testing.assert_close(distance, torch.zeros(1, 1))


def test_length_does_not_matter() -> None:
    case = pixels(dtype=torch.float64)
    distance, nearest = ops.prototype_distance(case.embedding, case.prototypes)
    scaled, same = ops.prototype_distance(case.embedding * 37, case.prototypes * 0.01)
    torch.testing.assert_close(scaled, distance, rtol=0, atol=1e-14)
    assert torch.equal(same, nearest)


def test_gradients_stand_upright_on_their_vectors() -> None:
    case = pixels(dtype=torch.float64)
    in_embedding, in_prototypes = _gradients(case, torch.randn(61, 3, dtype=torch.float64))
    assert (in_embedding * case.embedding).sum(-1).abs().max() < 1e-14
    assert (in_prototypes * case.prototypes).sum(-1).abs().max() < 1e-13


def test_pixels_do_not_know_their_place() -> None:
    case = pixels(dtype=torch.float64)
    order = torch.randperm(61, generator=torch.Generator().manual_seed(1))
    distance, nearest = ops.prototype_distance(case.embedding, case.prototypes)
    permuted, same = ops.prototype_distance(case.embedding[order], case.prototypes)
    torch.testing.assert_close(permuted, distance[order], rtol=0, atol=1e-14)
    assert torch.equal(same, nearest[order])


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("embedding", torch.zeros(5)),
        ("embedding", torch.zeros(5, 17, 1)),
        ("embedding", torch.zeros(5, 17, dtype=torch.int64)),
        ("embedding", torch.zeros(5, 17, device="meta")),
        ("prototypes", torch.zeros(4, 17)),
        ("prototypes", torch.zeros(3, 4, 16)),
        ("prototypes", torch.zeros(3, 0, 17)),
        ("prototypes", torch.zeros(0, 4, 17)),
        ("prototypes", torch.zeros(3, 4, 17, dtype=torch.int32)),
    ],
)
def test_a_wrong_argument_is_refused_by_name(argument: str, value: Tensor) -> None:
    given = {"embedding": torch.zeros(5, 17), "prototypes": torch.zeros(3, 4, 17)} | {argument: value}
    with pytest.raises((TypeError, ValueError), match=argument):
        ops.prototype_distance(**given)


class _MadeInBackward(TorchDispatchMode):
    """Notes the shapes and dtypes of what torch's own operations make."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[torch.Size, torch.dtype]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.made.append((result.shape, result.dtype))
        return result


def test_the_choice_gets_no_gradient_of_zeros() -> None:
    """`nearest` is whole numbers: nothing (N, C) of its dtype is made for it, to be thrown away."""
    case = pixels()
    embedding = case.embedding.clone().requires_grad_()
    distance, nearest = ops.prototype_distance(embedding, case.prototypes)
    with _MadeInBackward() as mode:
        torch.autograd.grad(distance.sum(), embedding)
    assert (nearest.shape, torch.int32) not in mode.made
    assert mode.made  # it does note what is made


@pytest.mark.parametrize("double", ["embedding", "prototypes"])
def test_one_float64_argument_makes_all_of_it_float64(double: str) -> None:
    """The other argument is widened before it is normalised, not after."""
    case = pixels(dtype=torch.float32, seed=5)
    given = {name: getattr(case, name).to(torch.float64 if name == double else torch.float32)
             for name in ("embedding", "prototypes")}  # fmt: skip
    distance, _ = ops.prototype_distance(**given)
    exact, _ = truth.prototype_distance(array(given["embedding"]), array(given["prototypes"]))
    assert distance.dtype == torch.float64
    assert_near(distance, exact)
