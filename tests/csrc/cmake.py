"""CMake, ninja and ctest for the checks that compile, in folders below build/ that stay: what changed is built."""

import fcntl
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import build_backend
import setup

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
NATIVE = setup.CHECKOUT  # where `make extension` builds
COMPILER = build_backend.compiler(os.environ)
CXX = shlex.split(COMPILER or "c++")[-1]  # without a ccache before it
TOOLS = [CXX, "cmake"]
needs_cmake = pytest.mark.skipif(
    not (COMPILER and build_backend.tool("cmake") and build_backend.tool("ninja")),
    reason="needs cmake, ninja and a C++ compiler",
)


def operations(device: str = "cpu") -> list[str]:
    """Those with kernels for this kind of device, as csrc/operations.cmake lists them."""
    lines = re.findall(r"^operation\((\w+) ([\w ]+)\)$", (CSRC / "operations.cmake").read_text("utf-8"), re.MULTILINE)
    return [name for name, devices in lines if device in devices.split()]


def configure(folder: Path, source: Path, **settings: str | Path) -> None:
    settings = {"CMAKE_MAKE_PROGRAM": setup.required("ninja"), **settings}
    defined = [f"-D{name}={value}" for name, value in settings.items()]
    run(setup.required("cmake"), "-S", source, "-B", folder, "-G", "Ninja", *defined)


def build(folder: Path, target: str) -> None:
    at_once = build_backend.jobs(os.environ, False, build_backend.cores(), build_backend.free_memory())
    with _alone(folder):
        run(setup.required("cmake"), "--build", folder, "--parallel", at_once, "--target", target)


def ctest(folder: Path) -> str:
    """Runs the tests of a folder, one for each core at once; their output is shown if one fails."""
    program = setup.required("cmake").with_name("ctest")
    at_once = build_backend.cores()
    return run(program, "--test-dir", folder, "--parallel", at_once, "--output-on-failure", "--no-tests=error")


def run(*command: str | Path | int) -> str:
    """What a program prints; the end of it is shown if it fails."""
    environment = {**os.environ, "CXX": COMPILER or ""}
    done = subprocess.run(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two processes that build in one folder at once would spoil it: the second waits."""
    with (folder / "built-by-one").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
