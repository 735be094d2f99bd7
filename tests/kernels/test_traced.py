"""torch.compile takes every direction as one graph, with the launches it is meant to make.

No GPU is needed to trace: the driver is one that only names a device, and the backend stops before anything runs.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
from triton.runtime.driver import driver

from mpamatch import ops
from mpamatch.kernels import compiled, prototype_contrast, prototype_distance, pseudo_label, segmentation_loss
from mpamatch.ops import dispatch
from tests.ops import cases

PIXELS = cases.pixels(100, 64, dtype=torch.bfloat16)
MAPS = cases.maps()
SCALAR, OF_CLASS, OF_PIXEL, PACKED = torch.ones(()), torch.ones(100, 3), torch.ones(100), torch.ones(2, 16, 64)
CONTRAST = (PIXELS.embedding, PIXELS.prototypes, PIXELS.assignment, PIXELS.weight)


class StoppedError(Exception):
    """Raised instead of running the graph."""


@pytest.fixture(autouse=True)
def a_device_in_name(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: True)
    monkeypatch.setattr(driver, "_active", compiled._Target((9, 0)))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("function", "arguments", "launches"),
    [
        (prototype_distance.forward, CONTRAST[:2], 2),
        (
            prototype_distance.backward,
            (OF_CLASS, *CONTRAST[:2], OF_CLASS, OF_CLASS.int(), OF_PIXEL, PACKED, True, True),
            3,
        ),
        (prototype_contrast.forward, (*CONTRAST, 0.1, True), 3),
        (
            prototype_contrast.backward,
            (SCALAR, SCALAR, *CONTRAST, OF_PIXEL, OF_PIXEL, PACKED, 0.1, True, True, True),
            3,
        ),
        (segmentation_loss.forward, tuple(MAPS), 2),
        (segmentation_loss.backward, (SCALAR, SCALAR.expand(3, 3).contiguous(), *MAPS), 1),
        (pseudo_label.forward, (MAPS.logits,), 1),
    ],
    ids=lambda value: f"{value.__module__.split('.')[-1]}.{value.__name__}" if callable(value) else "",
)
def test_one_graph(function: Callable[..., object], arguments: tuple[object, ...], launches: int) -> None:
    assert launches_in(function, *arguments) == launches


def launches_in(function: Callable[..., object], *arguments: object) -> int:
    """The Triton launches of the one graph that torch.compile makes of the call."""
    found: list[torch.fx.GraphModule] = []

    def stop(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> None:
        found.append(graph)
        raise StoppedError

    with pytest.raises(Exception, match="StoppedError"):
        torch.compile(function, fullgraph=True, backend=stop)(*arguments)
    graphs = [module.graph for module in found[0].modules() if isinstance(module, torch.fx.GraphModule)]
    return sum("triton_kernel_wrapper" in str(node.target) for graph in graphs for node in graph.nodes)


@pytest.fixture
def triton_chosen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Operations take the Triton kernels as on a GPU, whose loading is part of the choice."""
    monkeypatch.setattr(dispatch, "missing", lambda *given: None)
    monkeypatch.setattr(dispatch, "failed", lambda *given: None)
    monkeypatch.setattr(dispatch, "_modules", {})
    with dispatch.using("triton"):
        yield


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize(
    ("operation", "arguments", "forward", "backward"),
    [
        (ops.prototype_distance, CONTRAST[:2], 2, 3),
        (ops.prototype_contrast, CONTRAST[:3], 3, 3),
        (ops.segmentation_loss, tuple(MAPS)[:2], 2, 1),
        (ops.pseudo_label, (MAPS.logits,), 1, 0),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
@pytest.mark.usefixtures("triton_chosen")
def test_an_operation_is_in_one_graph(
    operation: Callable[..., object], arguments: tuple[torch.Tensor, ...], forward: int, backward: int, gradient: bool
) -> None:
    given = [x.detach().requires_grad_(gradient and x.is_floating_point()) for x in arguments]
    assert launches_in(operation, *given) == forward + (backward if gradient else 0)
