"""The torch-free core's own tests (csrc/tests/core): on the objects that are shipped, and under sanitizers."""

import pytest

from mpamatch.ops import native
from tests.csrc import cmake
from tests.csrc.cmake import NATIVE, ROOT, needs_cmake

SOURCES = [
    *("csrc/arguments", "csrc/core", "csrc/cpu", "csrc/operations.cmake", "csrc/tests/core", "CMakeLists.txt"),
    *("build_backend.py", "setup.py", "tests/csrc/cmake.py"),
]
CORE = {"sources": SOURCES, "tools": cmake.TOOLS}


def runnable() -> str:
    """The instruction sets that this processor runs, as CMake's list: under sanitizers only these are compiled."""
    sets = native.build_information().get("instruction_sets", ["baseline"])
    used = native.build_information().get("instruction_set", "baseline")
    return ";".join(sets[: sets.index(used) + 1])


@pytest.mark.native(**CORE)
@pytest.mark.skipif(native.missing("cpu") is not None, reason=str(native.missing("cpu")))
def test_the_core_as_it_is_shipped():
    """Uses the objects that `_C` is linked from."""
    if not (NATIVE / "CMakeCache.txt").is_file():
        pytest.skip("the extension was not built in this checkout (make extension)")
    cmake.build(NATIVE, "core_tests")
    cmake.ctest(NATIVE)


@pytest.mark.native(**CORE)
@needs_cmake
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_the_core_alone_under_sanitizers(sanitizers):
    """No torch and no Python."""
    folder = ROOT / "build" / f"core-{sanitizers.replace(',', '-')}"
    cmake.configure(
        folder,
        ROOT,
        CMAKE_CXX_FLAGS_RELEASE="-O1",
        MPAMATCH_TORCH="OFF",
        MPAMATCH_SANITIZE=sanitizers,
        MPAMATCH_INSTRUCTION_SETS=runnable(),
    )
    cmake.build(folder, "core_tests")
    cmake.ctest(folder)
