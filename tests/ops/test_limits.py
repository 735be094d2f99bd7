"""Shapes beyond what the CUDA kernels take: eager runs instead, unless cuda was asked for by name. Without a GPU."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from mpamatch import ops
from mpamatch.ops import checks, dispatch
from tests.ops.forms import needs_extension
from tests.tools.nosync import assert_no_sync

MOST = checks.MOST_PROTOTYPES


def _assign(embedding: Tensor, prototypes: Tensor) -> Tensor:
    """To the nearest: among thousands of prototypes a balance would hang on rounding."""
    label = embedding.new_zeros(len(embedding), dtype=torch.uint8)
    return ops.sinkhorn_assign(embedding, prototypes, label, iterations=0)


def _update(embedding: Tensor, prototypes: Tensor) -> Tensor:
    moved = prototypes.clone()
    counts = torch.full_like(prototypes[..., 0], 3, dtype=torch.int64)
    ops.prototype_update_(moved, counts, embedding, torch.arange(len(embedding), device=embedding.device))
    return moved


pytestmark = [
    needs_extension,
    pytest.mark.usefixtures("cuda_here"),
    pytest.mark.parametrize(("call", "name"), [(_assign, "sinkhorn_assign"), (_update, "prototype_update_")]),
]


@pytest.fixture
def cuda_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU is taken for a GPU that runs cuda alone: on these tensors its schemas run the kernels of the CPU."""
    monkeypatch.setattr(dispatch, "missing", lambda _, name, *__: None if name in ("cuda", "eager") else "not here")
    monkeypatch.setattr(dispatch, "failed", lambda *_: None)


class _Calls(TorchDispatchMode):
    """Whether one of our kernels was called."""

    kernels = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.kernels |= func.namespace == "mpamatch"
        return func(*args, **(kwargs or {}))


def _given(count: int) -> tuple[Tensor, Tensor]:
    """Pixels, and so many prototypes of one class."""
    generator = torch.Generator().manual_seed(count)
    return torch.randn(5, 3, generator=generator), torch.randn(1, count, 3, generator=generator)


@pytest.mark.parametrize(("count", "kernels"), [(MOST, True), (MOST + 1, False)])
def test_more_prototypes_than_a_gpu_holds(call: Callable[..., Any], name: str, count: int, kernels: bool) -> None:
    with _Calls() as calls:
        ours = call(*_given(count))
    assert calls.kernels == kernels
    with dispatch.using("eager"):
        torch.testing.assert_close(ours, call(*_given(count)))


def test_asked_for_by_name_it_raises(call: Callable[..., Any], name: str) -> None:
    with dispatch.using("cuda"):
        call(*_given(MOST))
        with pytest.raises(RuntimeError, match=rf"{name} on cpu: .*cuda: it takes at most {MOST:,} prototypes"):
            call(*_given(MOST + 1))


def test_the_limit_is_read_from_shapes_alone(call: Callable[..., Any], name: str) -> None:
    """A graph for each side of it, though sizes are symbols there; and tensors without values pass."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend=counter)
    for count in (MOST - 7, MOST + 9):
        torch.testing.assert_close(compiled(*_given(count)), call(*_given(count)))
    found = [any(str(node.target).startswith("mpamatch.") for node in graph.graph.nodes) for graph in counter.graphs]
    assert found == [True, False]
    for count in (MOST, MOST + 1):
        assert_no_sync(call, *_given(count))


def test_wider_channels_than_the_kernels_count(call: Callable[..., Any], name: str) -> None:
    for shape, taken in [((2, 4, 1 << 24), False), ((2, 4, (1 << 24) - 1), True), ((2, 1000, 1 << 21), False)]:
        assert (checks.beyond_cuda(torch.empty(shape, device="meta")) is None) == taken


def test_rows_far_apart_are_brought_together(call: Callable[..., Any], name: str) -> None:
    """2²⁴ elements from row to row; between the two rows lies memory that nobody touches."""
    embedding, prototypes = _given(4)
    far = torch.empty((1 << 24) + 3).as_strided((2, 3), (1 << 24, 1))
    far.copy_(embedding[:2])
    assert checks.rows(far).stride() == (3, 1)
    torch.testing.assert_close(call(far, prototypes), call(embedding[:2], prototypes))
