"""Every method's forward is one graph, compiled once: no recompile at other steps and with other data.

The graph is traced by Dynamo and differentiated by AOTAutograd as it would be for Inductor, whose C++ compiler alone
would take minutes (92 s for supervised, 300 s for unimatch, on two busy cores).
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from mpamatch.methods import Method
from tests.methods.cases import METHODS, assert_same_numbers, at, batch, method, with_gradients

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _steps(ours: Method, call: Any, steps: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """All that comes out of forward and backward over the steps, and the state afterwards."""
    out: dict[str, torch.Tensor] = {}
    for step in steps:
        parts = call(batch(dtype=torch.float32, seed=step), at(step))
        _, gradients = with_gradients(ours, parts["loss"])
        out |= {f"{step} {name}": value.detach() for name, value in parts.items()}
        out |= {f"{step} {name}": value for name, value in gradients.items()}
        ours.after_step(at(step))
    return out | {name: value.clone() for name, value in ours.state_dict().items() if value.is_floating_point()}


@pytest.mark.parametrize("name", METHODS)
def test_one_graph_no_recompile_and_the_same_numbers(name: str) -> None:
    settings: dict[str, Any] = {"start": 1, "ramp": 4, "second_opinion": "agree"} if name == "mpamatch" else {}
    eager, ours = (method(name, dtype=torch.float32, text=name == "mpamatch", **settings) for _ in range(2))
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        found = _steps(ours, compiled, (0, 3, 150))
    assert_same_numbers(found, _steps(eager, eager, (0, 3, 150)), 1e-4)
