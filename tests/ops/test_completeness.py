"""Every operation of the table has all its files, and the shared tests know how to call it."""

import importlib
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from mpamatch import ops
from mpamatch.ops.operation import Operation, operations
from tests.ops.forms import FORMS, KERNELS

ROOT = Path(__file__).parents[2]
FILES = {
    "": "mpamatch/ops/{0}.py benchmarks/bench_{0}.py tests/ops/forms/{0}.py",
    "cpp": "csrc/arguments/{0}.h csrc/core/{0}.h csrc/cpu/{0}.cpp csrc/bindings/{0}.cpp csrc/tests/core/test_{0}.cpp",
    "triton": "kernels/{0}.py tests/kernels/interpreter/check_{0}.py",
    "cuda": "csrc/cuda/{0}.cu csrc/cuda/{0}.h csrc/tests/cuda/test_{0}.cpp",
}
BACKENDS = {"cpp": "C++", "triton": "Triton", "cuda": "CUDA C++"}  # in docs/KERNELS.md


def lacking(record: Operation) -> Iterator[str]:
    """What an operation lacks, a sentence each."""
    name = record.name
    if name not in ops.__all__:
        yield f"mpamatch/ops/__init__.py does not export {name}."
    if record.backends[:1] != ("cpp",) or not set(record.backends) <= BACKENDS.keys():
        yield f"{name}: its backends are {record.backends}, expected cpp, then triton or cuda if it has one."
    for backend, files in FILES.items():
        if backend in ("", *record.backends):
            for file in files.format(name).split():
                if not (ROOT / file).is_file():
                    yield f"{file} is missing."
    line = f"operation({name} cpu{' cuda' if 'cuda' in record.backends else ''})"
    if line not in (ROOT / "csrc" / "operations.cmake").read_text(encoding="utf-8"):
        yield f"csrc/operations.cmake has no line {line}."
    if not any(form.operation == name for form in FORMS):
        yield f"tests/ops/forms/{name}.py: FORMS has no form of it, so no shared test calls it."
    for kernel in record.kernels.keys() - KERNELS.keys():
        yield f"tests/ops/forms/{name}.py: KERNELS has no arguments of {kernel}, so nothing holds it to its fake."
    yield from lacking_benchmarks(name)
    on_gpu = next((BACKENDS[backend] for backend in record.backends[1:]), "eager")
    if f"| `{name}` | C++ | {on_gpu} |" not in (ROOT / "docs" / "KERNELS.md").read_text(encoding="utf-8"):
        yield f"docs/KERNELS.md: the table has no row of {name} with C++ and {on_gpu}."


def lacking_benchmarks(name: str) -> Iterator[str]:
    if find_spec(f"mpamatch.benchmarks.bench_{name}") is None:
        return  # its file is missing, which was said
    found = importlib.import_module(f"mpamatch.benchmarks.bench_{name}").BENCHMARKS
    for benchmark in found:
        if not benchmark.least:
            yield f"benchmarks/bench_{name}.py: {benchmark.operation} has no `least`, so no test sees it fall behind."


@pytest.mark.parametrize("name", operations())
def test_an_operation_lacks_nothing(name: str) -> None:
    assert operations()[name].name == name
    assert list(lacking(operations()[name])) == []


def test_a_new_operation_is_told_what_it_lacks() -> None:
    """The check is able to fail."""
    record = replace(operations()["segmentation_loss"], name="scale", kernels={"scale": lambda x: x})
    assert list(lacking(record)) == [
        "mpamatch/ops/__init__.py does not export scale.",
        "mpamatch/ops/scale.py is missing.",
        "benchmarks/bench_scale.py is missing.",
        "tests/ops/forms/scale.py is missing.",
        "csrc/arguments/scale.h is missing.",
        "csrc/core/scale.h is missing.",
        "csrc/cpu/scale.cpp is missing.",
        "csrc/bindings/scale.cpp is missing.",
        "csrc/tests/core/test_scale.cpp is missing.",
        "kernels/scale.py is missing.",
        "tests/kernels/interpreter/check_scale.py is missing.",
        "csrc/operations.cmake has no line operation(scale cpu).",
        "tests/ops/forms/scale.py: FORMS has no form of it, so no shared test calls it.",
        "tests/ops/forms/scale.py: KERNELS has no arguments of scale, so nothing holds it to its fake.",
        "docs/KERNELS.md: the table has no row of scale with C++ and Triton.",
    ]
    wrong = replace(record, backends=("cuda",))
    assert "scale: its backends are ('cuda',), expected cpp, then triton or cuda if it has one." in lacking(wrong)
