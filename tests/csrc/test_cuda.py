"""The CUDA kernels where there is no GPU: their own source runs on the processor, and nvcc compiles them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CUDA = ROOT / "csrc" / "cuda"
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
TOOLS = {name: shutil.which(name, path=PATH) for name in ("cmake", "ctest", "ninja", "nvcc")}
COMPILER = shutil.which(os.environ.get("CXX", "c++"))

REGISTERS = 65536  # of a multiprocessor, compute capability 8.0 and 9.0
STATIC_SHARED = 48 << 10  # bytes; beyond it a launch has to ask
KERNELS = {  # instantiations: four storage types in packs and alone, or the two working types
    "sinkhorn_assign.cu": {"SinkhornScore": 8, "SinkhornStep": 2, "SinkhornPick": 2},
    "prototype_update_.cu": {"PixelFactor": 8, "PrototypeSum": 8, "PrototypeAdd": 2, "PrototypeMove": 2},
    "signed_distance.cu": {"DistanceRows": 1, "DistanceColumns": 1},
}


def _run(*command: str | Path) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PATH": PATH},
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@pytest.mark.skipif(
    not (COMPILER and TOOLS["cmake"] and TOOLS["ninja"]), reason="needs cmake, ninja and a C++ compiler"
)
@pytest.mark.parametrize("sanitizer", ["", "thread"])
def test_kernels_on_the_processor(sanitizer: str) -> None:
    folder = ROOT / "build" / f"cuda-tests{'-' + sanitizer if sanitizer else ''}"
    source = ROOT / "csrc" / "tests" / "cuda"
    _run("cmake", "-S", source, "-B", folder, "-G", "Ninja", f"-DMPAMATCH_SANITIZE={sanitizer}")
    _run("cmake", "--build", folder, "--parallel", "1")
    report = _run("ctest", "--test-dir", folder, "--output-on-failure")
    # The sentence differs between versions of ctest.
    assert re.search(r"^100% tests passed.* out of 3$", report, re.MULTILINE), report


def test_every_cuda_file_is_listed() -> None:
    assert {path.name for path in CUDA.glob("*.cu")} == set(KERNELS)


@pytest.mark.skipif(not TOOLS["nvcc"], reason="needs nvcc")
@pytest.mark.parametrize("architecture", ["80", "90"])
@pytest.mark.parametrize("name", sorted(KERNELS))
def test_resources(name: str, architecture: str, tmp_path: Path) -> None:
    """No spills, and as many blocks fit a multiprocessor as the kernel says. All shared memory is dynamic."""
    target = f"-arch=sm_{architecture}"
    options = ["-std=c++17", "-O3", target, "-Xptxas=-v", "-I", CUDA.parent, "-cubin"]
    log = _run("nvcc", *options, "-o", tmp_path / "cubin", CUDA / name)
    resources = re.findall(
        rf"Compiling entry function '(\S+)' for 'sm_{architecture}a?'.*?"
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?"
        r"Used (\d+) registers([^\n]*)",
        log,
        re.DOTALL,
    )
    found = dict.fromkeys(KERNELS[name], 0)
    for function, stack, stores, loads, registers, rest in resources:
        (kernel,) = [kernel for kernel in found if f"{len(kernel)}{kernel}" in function]
        found[kernel] += 1
        threads, blocks = _launch_bounds(kernel)
        assert (stack, stores, loads) == ("0", "0", "0"), function
        assert int(registers) * threads * blocks <= REGISTERS, function
        shared = re.search(r"(\d+) bytes smem", rest)
        assert shared is None or int(shared[1]) <= STATIC_SHARED, function
    assert found == KERNELS[name]


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
