"""The CUDA kernels where there is no GPU: their own source runs on the processor, and nvcc compiles them."""

import os
import re
from functools import cache
from pathlib import Path

import pytest

import build_backend
from mpamatch.kernels import compiled
from tests.csrc import cmake
from tests.csrc.cmake import CSRC, NATIVE, ROOT, needs_cmake

CUDA = CSRC / "cuda"
OPERATIONS = cmake.operations("cuda")
ARCHITECTURES = ["80", "90"]
NVCC = build_backend.find_nvcc(os.environ)
needs_nvcc = pytest.mark.skipif(not NVCC, reason="needs nvcc")
SOURCES = ["csrc/arguments", "csrc/cuda", "csrc/operations.cmake", "tests/csrc/cmake.py", "build_backend.py"]
HOST = {"sources": [*SOURCES, "csrc/tests/cuda"], "tools": cmake.TOOLS}
NVCC_CHECKS = {
    "sources": [*SOURCES, "CMakeLists.txt", "setup.py", "kernels/compiled.py"],
    "tools": [*cmake.TOOLS, str(NVCC)],
    "packages": ["triton"],  # whose cuobjdump reads the machine code
}

REGISTERS = 65536  # of a multiprocessor, compute capability 8.0 and 9.0
STATIC_SHARED = 48 << 10  # bytes; beyond it a launch has to ask
# Four storage types in packs and alone, or the two working types.
INSTANTIATIONS = {"class Storage, int vector": 8, "class Real": 2, "": 1}


def kernels_of(operation: str) -> dict[str, int]:
    """The kernels in the header of an operation, and how many instantiations each of them has."""
    source = (CUDA / f"{operation}.h").read_text(encoding="utf-8")
    structs = re.findall(r"^(?:template <([^\n]*)>\n)?struct (\w+) \{$(.*?)^\};$", source, re.MULTILINE | re.DOTALL)
    return {name: INSTANTIATIONS[template] for template, name, body in structs if "blocks_per_processor =" in body}


@pytest.mark.native(**HOST)
@needs_cmake
@pytest.mark.parametrize("sanitizer", ["", "thread"])
def test_kernels_on_the_processor(sanitizer: str) -> None:
    folder = ROOT / "build" / f"cuda-tests{'-' + sanitizer if sanitizer else ''}"
    cmake.configure(folder, CSRC / "tests" / "cuda", MPAMATCH_SANITIZE=sanitizer)
    cmake.build(folder, "all")
    report = cmake.ctest(folder)
    # The sentence differs between versions of ctest.
    assert re.search(rf"^100% tests passed.* out of {len(OPERATIONS)}$", report, re.MULTILINE), report


def test_every_cuda_file_is_listed() -> None:
    assert {path.stem for path in CUDA.glob("*.cu")} == set(OPERATIONS)


@cache
def objects() -> Path:
    """The folder of the compiled kernels: those that `_cuda` is linked from if they are for our architectures."""
    folder = NATIVE
    if settings_of(NATIVE).get("CMAKE_CUDA_ARCHITECTURES") != build_backend.architectures(build_backend.ARCHITECTURES):
        folder = ROOT / "build" / "cuda-kernels"
        cmake.configure(folder, ROOT, MPAMATCH_TORCH="OFF", MPAMATCH_CUDA="ON", CMAKE_CUDA_COMPILER=str(NVCC))
    cmake.build(folder, "cuda_kernels")
    return folder / "CMakeFiles" / "cuda_kernels.dir" / "csrc" / "cuda"


def settings_of(folder: Path) -> dict[str, str]:
    """What CMake was configured with; nothing if it was not, or without CUDA."""
    file = folder / "CMakeCache.txt"
    settings = dict(re.findall(r"^(\w+):\w+=(.*)$", file.read_text(), re.MULTILINE)) if file.is_file() else {}
    return settings if settings.get("MPAMATCH_CUDA") == "ON" else {}


def resources(code: Path, architecture: str) -> dict[str, dict[str, int]]:
    """Of every function of this architecture in an object: REG, STACK (bytes, spills among them), LOCAL, SHARED."""
    listing = cmake.run(compiled.TOOLS / "cuobjdump", "--dump-resource-usage", code)
    parts = re.split(r"^Fatbin (?=elf|ptx)", listing, flags=re.MULTILINE)
    (part,) = [part for part in parts if part.startswith("elf") and f"\narch = sm_{architecture}\n" in part]
    functions = re.findall(r"^ Function (\S+):\n  (REG:.*)$", part, re.MULTILINE)
    return {name: {word: int(value) for word, value in re.findall(r"(\w+):(\d+)", line)} for name, line in functions}


@pytest.mark.native(**NVCC_CHECKS)
@needs_nvcc
@needs_cmake
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_resources(operation: str, architecture: str) -> None:
    """No spills, and as many blocks fit a multiprocessor as the kernel says. All shared memory is dynamic."""
    expected = kernels_of(operation)
    found = dict.fromkeys(expected, 0)
    for function, used in resources(objects() / f"{operation}.cu.o", architecture).items():
        (kernel,) = [kernel for kernel in found if f"{len(kernel)}{kernel}" in function]
        found[kernel] += 1
        threads, blocks = _launch_bounds(kernel)
        assert used["STACK"] == used["LOCAL"] == 0, function
        assert used["REG"] * threads * blocks <= REGISTERS, function
        assert used["SHARED"] <= STATIC_SHARED, function
    assert found == expected


@pytest.mark.native(**NVCC_CHECKS)
@needs_nvcc
def test_a_spill_shows(tmp_path: Path) -> None:
    """The check above is able to fail: 64 numbers at once do not fit the 32 registers that these bounds leave."""
    source, code = tmp_path / "spill.cu", tmp_path / "spill.o"
    source.write_text("""
        __global__ void __launch_bounds__(1024, 2) spill(float* data) {
            float value[64];
            #pragma unroll
            for (int i = 0; i < 64; ++i) value[i] = data[i * 1024 + threadIdx.x];
            __syncthreads();
            #pragma unroll
            for (int i = 0; i < 64; ++i) data[i * 1024 + 1023 - threadIdx.x] = value[i] * value[(i + 17) % 64];
        }
    """)
    log = cmake.run(str(NVCC), "-O3", "-arch=sm_80", "-Xptxas=-v", "-c", "-o", code, source)
    assert re.search(r" [1-9]\d* bytes spill stores", log), log
    (used,) = resources(code, "80").values()
    assert used["STACK"] > 0


def _launch_bounds(kernel: str) -> tuple[int, int]:
    """Threads of a block and blocks of a multiprocessor, as the source of the kernel states them."""
    source = "".join(path.read_text(encoding="utf-8") for path in sorted(CUDA.glob("*.h")))
    body = source[source.index(f"struct {kernel} {{") :]
    threads, blocks = (
        re.search(rf"static constexpr int {word} = (\w+);", body) for word in ("threads", "blocks_per_processor")
    )
    assert threads is not None
    assert blocks is not None
    value = re.search(rf"constexpr int {threads[1]} = (\d+);", source)
    assert value is not None
    return int(value[1]), int(blocks[1])
