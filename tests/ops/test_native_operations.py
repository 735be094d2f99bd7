"""The operations of torch.ops.mpamatch as torch sees them, and what their kernels leave unwritten, or to chance."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mpamatch.ops import dispatch
from tests.ops.form import Form, forward_backward
from tests.ops.forms import FORMS, KERNELS, arguments, needs_extension

pytestmark = needs_extension
every_kernel = pytest.mark.parametrize("name", KERNELS)
every_form = pytest.mark.parametrize("form", FORMS, ids=repr)
WORKING = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def cpp() -> Iterator[None]:
    with dispatch.using("cpp"):
        yield


@contextmanager
def _poisoned() -> Iterator[None]:
    """Every fresh tensor is NaN, or the largest integer."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _call(name: str, given: tuple) -> list[Tensor]:
    """All that a kernel writes, in place too."""
    given = tuple(value.clone() if isinstance(value, Tensor) else value for value in given)
    kernel = getattr(torch.ops.mpamatch, name)
    result = kernel(*given)
    places = zip(kernel.default._schema.arguments, given, strict=True)
    changed = [value for place, value in places if place.alias_info and place.alias_info.is_write]
    return changed + ([result] if isinstance(result, Tensor) else list(result or ()))


def _assert_same_bits(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


@every_kernel
@pytest.mark.parametrize(("dtype", "weighted"), [(torch.float32, True), (torch.bfloat16, False), (torch.float64, True)])
def test_opcheck(name: str, dtype: torch.dtype, weighted: bool) -> None:
    """Schema, fake, and tracing with dynamic shapes. Gradients come from autograd.Function in mpamatch.ops, so an
    operation has no autograd registration of its own to check."""
    torch.manual_seed(0)
    operation = getattr(torch.ops.mpamatch, name).default
    utilities = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(operation, arguments(name, dtype, weighted), test_utils=utilities)


@every_kernel
@pytest.mark.parametrize("dtype", WORKING, ids=str)
def test_every_number_of_a_result_is_written(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    given = arguments(name, dtype)
    expected = _call(name, given)
    with _poisoned():
        ours = _call(name, given)
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
    assert all(value.isfinite().all() for value in ours)


@every_form
@pytest.mark.parametrize(("n", "side", "ignored"), [(0, 1, 0.0), (1, 2, 0.0), (67, 17, 0.3), (67, 17, 1.0)])
def test_fresh_memory_does_not_matter(form: Form, n: int, side: int, ignored: float) -> None:
    inputs = form.inputs(seed=2, n=n, side=side, ignored=ignored)
    expected = forward_backward(form, inputs)
    with _poisoned():
        _assert_same_bits(forward_backward(form, inputs), expected)


@every_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_two_threads_give_the_bits_of_one(form: Form, dtype: torch.dtype) -> None:
    inputs = form.inputs(seed=3, dtype=dtype, n=9007, side=101)
    with _threads(1):
        expected = forward_backward(form, inputs)
    with _threads(2):
        for _ in range(2):
            _assert_same_bits(forward_backward(form, inputs), expected)


@pytest.mark.parametrize("name", ["prototype_distance_backward", "prototype_contrast_backward"])
@pytest.mark.parametrize("wanted", [(True, False), (False, True), (False, False)])
def test_a_gradient_that_nobody_needs_is_empty(name: str, wanted: tuple[bool, bool]) -> None:
    torch.manual_seed(4)
    given = arguments(name)
    both = _call(name, given)
    ours = _call(name, (*given[:-2], *wanted))
    for gradient, expected, needed in zip(ours, both, wanted, strict=True):
        assert torch.equal(gradient, expected if needed else torch.zeros(0))


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_gradient_larger_than_the_caches_has_the_bits_of_its_parts(dtype: torch.dtype, aligned: bool) -> None:
    """It is written around the caches from 16 MB on, if its rows are whole vectors."""
    torch.manual_seed(5)
    half, width = 64 * 160, 256 if aligned else 250  # 21 MB of float
    embedding, prototypes = torch.randn(2 * half, width, dtype=dtype), torch.randn(3, 4, width, dtype=dtype)
    assignment = torch.randint(-1, 12, (2 * half,)).int()
    one = torch.ones((), dtype=dtype)

    def gradient(rows: slice) -> Tensor:
        given = embedding[rows], prototypes, assignment[rows], None
        *_, lse = torch.ops.mpamatch.prototype_contrast(*given, 0.1, True)
        return torch.ops.mpamatch.prototype_contrast_backward(one, one, *given, lse, 0.1, True, True, False)[0]

    parts = gradient(slice(0, half)), gradient(slice(half, None))
    assert torch.equal(gradient(slice(None)), torch.cat(parts))


def test_a_large_result_is_asked_for_in_large_pages() -> None:
    """Of its mapping Linux reports the flag hg: small pages cost more to touch than the gradient to compute."""
    if not Path("/sys/kernel/mm/transparent_hugepage/enabled").is_file():
        pytest.skip("this system has no transparent huge pages")
    label = torch.randint(0, 8, (4, 512, 512), dtype=torch.uint8)
    distance = torch.ops.mpamatch.signed_distance(label, 8)  # 34 MB
    inside, within, flags = distance.data_ptr() + (4 << 20), False, ""
    for line in Path("/proc/self/smaps").read_text("utf-8").splitlines():
        found = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if found:
            within = int(found[1], 16) <= inside < int(found[2], 16)
        elif within and line.startswith("VmFlags:"):
            flags = line
    assert " hg" in flags


CHECK = """
from mpamatch.ops import dispatch, native
print(native.build_information().get("instruction_set"), *sorted(set(dispatch.prepare("cpu").values())))
print(native.missing("cpu"))
"""


def _in_a_process(**environment: str) -> subprocess.CompletedProcess[str]:
    with_ours = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run([sys.executable, "-c", CHECK], env=with_ours, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_the_oldest_processor_is_served() -> None:
    """Every operation passes its comparison with eager on the instructions that each x86-64 has."""
    done = _in_a_process(MPAMATCH_CPU="baseline", MPAMATCH_BACKEND="cpp")
    assert done.stdout.split("\n")[0] == "baseline cpp", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sse", "amx"])
def test_an_instruction_set_that_is_not_there_leaves_eager_and_a_reason(name: str) -> None:
    if name == "amx" and "amx_bf16" in Path("/proc/cpuinfo").read_text("utf-8").split():
        pytest.skip("this processor has AMX")
    done = _in_a_process(MPAMATCH_CPU=name)
    assert done.stdout.split("\n")[0] == "None eager", done.stderr
    assert f"MPAMATCH_CPU: expected baseline, avx2, avx512 or amx as this processor has, got {name}." in done.stdout
