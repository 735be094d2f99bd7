"""What a training step on a GPU needs of every operation: the same bits again, graphs, one compilation, no sync."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mpamatch.ops import dispatch
from mpamatch.ops.operation import operations
from tests.gpu.cases import DIFFERENTIABLE, EVERY, Sizes, gradients, inputs_of, run, shapes
from tests.ops.form import Form

every = pytest.mark.parametrize(("form", "backend"), EVERY, ids=str)
differentiable = pytest.mark.parametrize(("form", "backend"), DIFFERENTIABLE, ids=str)
LARGE = {False: (65_537, 64, 5, 10), True: (2, 5, 257, 255)}


def large_inputs(form: Form, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    shape = LARGE[form.of_maps]
    return inputs_of(form, shape if form.of_maps else Sizes(*shape), dtype)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fresh tensors hold NaN (integers their largest value), so that an element nobody wrote shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@every
def test_a_second_run_gives_the_same_bits(form: Form, backend: str, poisoned) -> None:
    inputs = large_inputs(form)
    first = run(form, backend, inputs)
    for _ in range(5):
        for one, other in zip(run(form, backend, inputs), first, strict=True):
            assert torch.equal(one, other)
    assert all(bool(value.isfinite().all()) for value in first)


@differentiable
def test_a_second_backward_gives_the_same_bits(form: Form, backend: str, poisoned) -> None:
    inputs = large_inputs(form)
    first, _ = gradients(form, backend, inputs)
    for _ in range(5):
        for one, other in zip(gradients(form, backend, inputs)[0], first, strict=True):
            assert torch.equal(one, other)
    assert all(bool(value.isfinite().all()) for value in first)


@every
def test_a_captured_graph_replays_on_new_inputs(form: Form, backend: str) -> None:
    def everything(inputs: dict[str, Tensor]) -> list[Tensor]:
        outputs = list(run(form, backend, inputs))
        return outputs + (gradients(form, backend, inputs)[0] if form.differentiable else [])

    static, other = (
        inputs_of(form, shapes(form)[3], torch.float32),
        inputs_of(form, shapes(form)[3], torch.float32, seed=1),
    )
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        everything(static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = everything(static)
    for name, value in other.items():
        static[name].copy_(value)
    graph.replay()
    for one, expected in zip(captured, everything(other), strict=True):
        assert torch.equal(one, expected)


@every
def test_one_compiled_graph_and_no_second_one(form: Form, backend: str) -> None:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    compiled = replace(form, call=torch.compile(form.call, fullgraph=True))
    for seed in (0, 1):
        inputs = inputs_of(form, shapes(form)[3], torch.float32, seed)
        for one, expected in zip(run(compiled, backend, inputs), run(form, backend, inputs), strict=True):
            torch.testing.assert_close(one, expected, rtol=1e-5, atol=1e-5)
        if form.differentiable:
            found = zip(gradients(compiled, backend, inputs)[0], gradients(form, backend, inputs)[0], strict=True)
            for one, expected in found:
                torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-5)
        if seed == 0:
            graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


@every
def test_no_host_sync(form: Form, backend: str) -> None:
    inputs = inputs_of(form, shapes(form)[3], torch.float32)
    run(form, backend, inputs)
    if form.differentiable:
        gradients(form, backend, inputs)  # compiled and self-checked before the watch begins
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(form, backend, inputs)
        if form.differentiable:
            gradients(form, backend, inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@every
def test_autocast_changes_nothing(form: Form, backend: str) -> None:
    inputs = inputs_of(form, shapes(form)[3], torch.float32)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        under = run(form, backend, inputs)
    for one, expected in zip(under, run(form, backend, inputs), strict=True):
        assert torch.equal(one, expected)


def test_every_fused_backend_passed_its_self_check() -> None:
    for operation in operations():
        reasons = {name: why for name, why in dispatch.available(operation, "cuda").items() if name != "cpp"}
        assert set(reasons.values()) == {None}, (operation, reasons)
