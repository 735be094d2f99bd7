"""What a training step on a GPU needs of every operation: the same bits again, graphs, one compilation, no sync."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from mpamatch.ops import dispatch
from tests.gpu.cases import DIFFERENTIABLE, EVERY, Operation, Sizes, gradients, run

every = pytest.mark.parametrize(("operation", "backend"), EVERY, ids=str)
differentiable = pytest.mark.parametrize(("operation", "backend"), DIFFERENTIABLE, ids=str)
LARGE = {False: (65_537, 64, 5, 10), True: (2, 5, 257, 255)}


def large_inputs(operation: Operation, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    shape = LARGE[operation.of_maps]
    return operation.inputs(shape if operation.of_maps else Sizes(*shape), dtype)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fresh tensors hold NaN (integers their largest value), so that an element nobody wrote shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@every
def test_a_second_run_gives_the_same_bits(operation: Operation, backend: str, poisoned) -> None:
    inputs = large_inputs(operation)
    first = run(operation, backend, inputs)
    for _ in range(5):
        for one, other in zip(run(operation, backend, inputs), first, strict=True):
            assert torch.equal(one, other)
    assert all(bool(value.isfinite().all()) for value in first)


@differentiable
def test_a_second_backward_gives_the_same_bits(operation: Operation, backend: str, poisoned) -> None:
    inputs = large_inputs(operation)
    first, _ = gradients(operation, backend, inputs)
    for _ in range(5):
        for one, other in zip(gradients(operation, backend, inputs)[0], first, strict=True):
            assert torch.equal(one, other)
    assert all(bool(value.isfinite().all()) for value in first)


@every
def test_a_captured_graph_replays_on_new_inputs(operation: Operation, backend: str) -> None:
    def everything(inputs: dict[str, Tensor]) -> list[Tensor]:
        outputs = list(run(operation, backend, inputs))
        return outputs + (gradients(operation, backend, inputs)[0] if operation.gradient else [])

    static, other = (
        operation.inputs(operation.shapes()[3], torch.float32),
        operation.inputs(operation.shapes()[3], torch.float32, seed=1),
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
def test_one_compiled_graph_and_no_second_one(operation: Operation, backend: str) -> None:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    compiled = operation._replace(call=torch.compile(operation.call, fullgraph=True))
    for seed in (0, 1):
        inputs = operation.inputs(operation.shapes()[3], torch.float32, seed)
        for one, expected in zip(run(compiled, backend, inputs), run(operation, backend, inputs), strict=True):
            torch.testing.assert_close(one, expected, rtol=1e-5, atol=1e-5)
        if operation.gradient:
            found = zip(gradients(compiled, backend, inputs)[0], gradients(operation, backend, inputs)[0], strict=True)
            for one, expected in found:
                torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-5)
        if seed == 0:
            graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


@every
def test_no_host_sync(operation: Operation, backend: str) -> None:
    inputs = operation.inputs(operation.shapes()[3], torch.float32)
    run(operation, backend, inputs)
    if operation.gradient:
        gradients(operation, backend, inputs)  # compiled and self-checked before the watch begins
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(operation, backend, inputs)
        if operation.gradient:
            gradients(operation, backend, inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@every
def test_autocast_changes_nothing(operation: Operation, backend: str) -> None:
    inputs = operation.inputs(operation.shapes()[3], torch.float32)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        under = run(operation, backend, inputs)
    for one, expected in zip(under, run(operation, backend, inputs), strict=True):
        assert torch.equal(one, expected)


def test_every_fused_backend_passed_its_self_check() -> None:
    for operation in dispatch.BACKENDS:
        reasons = {name: why for name, why in dispatch.available(operation, "cuda").items() if name != "cpp"}
        assert set(reasons.values()) == {None}, (operation, reasons)
