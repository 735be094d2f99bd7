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


EARLY: dict[str, Any] = {"start": 1, "ramp": 4, "second_opinion": "agree"}
MANY: dict[str, Any] = {"align_classes": True, "unlabelled_start": 1, "unlabelled_ramp": 4}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, EARLY | {"text": True} if name == "mpamatch" else {}) for name in METHODS},
    "fixmatch, student and mirror": (
        "fixmatch",
        {
            **MANY,
            "threshold": "corrmatch",
            "teacher": True,
            "second_opinion": "agree",
            "opinion_of": ["student", "mirror"],
        },
    ),
    "unimatch, borders": ("unimatch", {"model": {"boundary": True}}),
    "unimatch_v2, mirror": ("unimatch_v2", {**MANY, "threshold": "adaptive", "second_opinion": "average"}),
    "mpamatch, heads": (
        "mpamatch",
        {
            **EARLY,
            **MANY,
            "text": True,
            "threshold": "adaptive",
            "teacher": True,
            "weight_head": 0.5,
            "second_opinion": "average",
            "opinion_of": ["image", "text", "dropped"],
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_one_graph_no_recompile_and_the_same_numbers(case: str) -> None:
    name, settings = CASES[case]
    eager, ours = (method(name, dtype=torch.float32, **settings) for _ in range(2))
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        found = _steps(ours, compiled, (0, 3, 150))
    assert_same_numbers(found, _steps(eager, eager, (0, 3, 150)), 1e-4)
