"""Two gloo ranks with a part of the pixels each give what one rank gives with all, for a fixed number of messages."""

from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import normalize

from mpamatch import ops
from mpamatch.ops import dispatch, native
from tests.ops.cases import TOLERANCE, Pixels, pixels
from tests.tools.ranks import run_ranks

pytestmark = pytest.mark.slow

GROUP = object()  # stands for a process group that is never asked
BACKENDS = ["eager", "cpp"] if native.missing("cpu") is None else ["eager"]
SMALL_EPSILON = 0.01  # a maximum is reduced too, where others need only sums


class Split(NamedTuple):
    case: Pixels
    at: int  # so many pixels go to the first rank, the others to the second
    options: dict[str, float]

    def of(self, rank: int | None) -> slice:
        """The pixels of a rank; None: all of them."""
        return slice(None) if rank is None else slice(self.at) if rank == 0 else slice(self.at, None)


def _apart() -> Pixels:
    """Sorted by class, so that each rank sees other classes."""
    case = pixels(80, dtype=torch.float64, ignored=0.0, seed=5)
    return case._replace(label=case.label.sort().values)


def _to_assign() -> list[Split]:
    options = [
        {"epsilon": epsilon, "iterations": iterations}
        for epsilon in (SMALL_EPSILON, 0.025, 1.0)
        for iterations in range(5)
    ]
    return [
        Split(pixels(200, dtype=torch.float64, seed=2), 100, {}),
        Split(pixels(200, dtype=torch.float32, seed=2), 100, {}),
        Split(pixels(90, 8, 2, 5, dtype=torch.float64, seed=3), 67, {}),
        Split(pixels(50, dtype=torch.float64, seed=4), 50, {}),
        Split(_apart(), 40, {}),
        Split(_apart(), 40, {"epsilon": SMALL_EPSILON}),
        *(Split(pixels(150, dtype=torch.float64, seed=6), 71, some) for some in options),
    ]


def _to_update() -> list[Split]:
    sizes = [(torch.float64, 30), (torch.float32, 30), (torch.bfloat16, 30), (torch.float64, 61), (torch.float64, 7)]
    cases = [(pixels(dtype=dtype, seed=at), at) for dtype, at in sizes]
    return [Split(case._replace(prototypes=normalize(case.prototypes, dim=-1)), at, {}) for case, at in cases]


def _counts() -> Tensor:
    return torch.arange(12).reshape(3, 4) * 37 % 5


def _assign(split: Split, rank: int | None) -> Tensor:
    mine, group = split.of(rank), None if rank is None else dist.group.WORLD
    embedding, prototypes, label, *_ = split.case
    return ops.sinkhorn_assign(embedding[mine], prototypes, label[mine], process_group=group, **split.options)


def _update(split: Split, rank: int | None) -> tuple[Tensor, Tensor]:
    mine, group = split.of(rank), None if rank is None else dist.group.WORLD
    embedding, prototypes, _, assignment, weight = split.case
    prototypes, updates = prototypes.clone(), _counts()
    ops.prototype_update_(
        prototypes, updates, embedding[mine], assignment[mine], weight=weight[mine], process_group=group
    )
    return prototypes, updates


def _all_of_a_rank(rank: int) -> dict[str, tuple[list[Tensor], list[tuple[Tensor, Tensor]]]]:
    found = {}
    for backend in BACKENDS:
        with dispatch.using(backend):
            found[backend] = [_assign(s, rank) for s in _to_assign()], [_update(s, rank) for s in _to_update()]
    return found


@pytest.fixture(scope="module")
def by_rank() -> list[dict[str, tuple[list[Tensor], list[tuple[Tensor, Tensor]]]]]:
    return run_ranks(_all_of_a_rank)


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_ranks_assign_as_one(by_rank, backend: str) -> None:
    splits = _to_assign()
    first, second = (results[backend][0] for results in by_rank)
    with dispatch.using(backend):
        for split, *parts in zip(splits, first, second, strict=True):
            assert torch.equal(torch.cat(parts), _assign(split, None)), split.options
        case, at, _ = splits[0]
        local = ops.sinkhorn_assign(case.embedding[:at], case.prototypes, case.label[:at])
    assert not torch.equal(first[0], local)  # the case is one where the other rank matters


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_ranks_update_as_one(by_rank, backend: str) -> None:
    with dispatch.using(backend):
        alone = [_update(split, None) for split in _to_update()]
    first, second = (results[backend][1] for results in by_rank)
    for expected, ours, theirs in zip(alone, first, second, strict=True):
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])
        torch.testing.assert_close(ours[0], expected[0], rtol=0, atol=TOLERANCE[ours[0].dtype])
        assert torch.equal(ours[1], expected[1])
        assert not torch.equal(ours[1], _counts())


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What is reduced over the ranks of a group of one: which reduction, of how many numbers."""
    seen: list[tuple[str, int]] = []

    def all_reduce(tensor: Tensor, op=dist.ReduceOp.SUM, group=None) -> None:
        assert group is GROUP
        seen.append(("sum" if op == dist.ReduceOp.SUM else "maximum", tensor.numel()))

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    return seen


@pytest.mark.parametrize("iterations", range(5))
@pytest.mark.parametrize("epsilon", [0.025, 0.05, 1.0, SMALL_EPSILON])
def test_an_iteration_reduces_one_number_per_prototype(
    backend: str, messages: list[tuple[str, int]], epsilon: float, iterations: int
) -> None:
    case = pixels()
    ours = ops.sinkhorn_assign(
        case.embedding, case.prototypes, case.label, epsilon=epsilon, iterations=iterations, process_group=GROUP
    )
    maximum = [("maximum", 12)] if epsilon == SMALL_EPSILON and iterations > 0 else []
    assert messages == maximum + [("sum", 12)] * iterations
    alone = ops.sinkhorn_assign(case.embedding, case.prototypes, case.label, epsilon=epsilon, iterations=iterations)
    assert torch.equal(ours, alone)


def test_an_update_reduces_the_sums_alone(backend: str, messages: list[tuple[str, int]]) -> None:
    case = pixels()
    ops.prototype_update_(case.prototypes, _counts(), case.embedding, case.assignment, process_group=GROUP)
    assert messages == [("sum", 12 * 17)]
