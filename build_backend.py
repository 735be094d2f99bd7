"""What is built and with what, and the hooks through which pip asks (PEP 517).

pip fetches torch, cmake and ninja only where a compiler is found, so that nobody downloads gigabytes for a pure Python
installation. Every decision is a function of the environment that builds nothing; setup.py carries them out.
"""

import importlib.util
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

Environment = Mapping[str, str]
OLDEST_TORCH = (2, 10)  # the stable ABI that csrc/extension.cmake targets
OLDEST_CMAKE = (3, 22)
ARCHITECTURES = "8.0;9.0+PTX"
CPP_JOB_BYTES = 2 << 30
CUDA_JOB_BYTES = 4 << 30


class BuildError(SystemExit):
    """One sentence that says what is wrong and what to do; it ends the build."""

    def __init__(self, sentence: str) -> None:
        super().__init__(f"mpamatch: {sentence}")


@dataclass(frozen=True)
class Torch:
    folder: Path
    version: str
    cuda: str | None  # of the build, e.g. "13.0"; None: a build without CUDA


@dataclass(frozen=True)
class Cuda:
    nvcc: Path
    version: str
    architectures: str  # as CMAKE_CUDA_ARCHITECTURES wants them


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    return [*build_meta.get_requires_for_build_wheel(config_settings), *requirements(os.environ)]


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    return [*build_meta.get_requires_for_build_editable(config_settings), *requirements(os.environ)]


def requirements(environment: Environment) -> list[str]:
    """What the build needs beside setuptools; tools that are here already are not fetched again."""
    if pure_python(environment):
        return []
    tools = {"cmake": f"cmake>={'.'.join(map(str, OLDEST_CMAKE))}", "ninja": "ninja"}
    return [f"torch>={'.'.join(map(str, OLDEST_TORCH))}", *(tools[name] for name in tools if not tool(name))]


def choice(environment: Environment, name: str, allowed: tuple[str, ...]) -> str:
    """The value of a switch; the first of `allowed` where it is unset or empty."""
    value = environment.get(name, "") or allowed[0]
    if value not in allowed:
        raise BuildError(f"{name}={value}: expected {', '.join(allowed[:-1])} or {allowed[-1]}.")
    return value


def pure_python(environment: Environment) -> str | None:
    """Why no native code is built; None where it is."""
    cuda = choice(environment, "MPAMATCH_CUDA", ("auto", "0", "1"))
    if choice(environment, "MPAMATCH_NO_EXTENSION", ("0", "1")) == "1":
        reason = "MPAMATCH_NO_EXTENSION=1 asks for none"
    elif not compiler(environment):
        reason = "no C++ compiler was found (c++, g++ or clang++ on PATH, or CXX)"
    else:
        return None
    if cuda == "1":
        raise BuildError(f"MPAMATCH_CUDA=1 asks for the CUDA kernels, but no native code can be built: {reason}.")
    return reason


def compiler(environment: Environment) -> str | None:
    """The C++ compiler: CXX (a command, so that CXX="ccache g++" works), else the first found on PATH."""
    path = environment.get("PATH", os.defpath)
    named = environment.get("CXX", "").strip()
    if named:
        if not shutil.which(shlex.split(named)[0], path=path):
            raise BuildError(f"CXX={named}: no such compiler; correct it, or unset it to search PATH.")
        return named
    return next(filter(None, (shutil.which(name, path=path) for name in ("c++", "g++", "clang++"))), None)


def tool(name: str) -> Path | None:
    """cmake or ninja: pip's own beside this Python (whose folder need not be on PATH), else the one on PATH."""
    beside = sysconfig.get_path("scripts")
    found = shutil.which(name, path=os.pathsep.join([beside, os.environ.get("PATH", os.defpath)]))
    if not found or (name == "cmake" and _cmake_version(found) < OLDEST_CMAKE):
        return None
    return Path(found)


def _cmake_version(cmake: str) -> tuple[int, ...]:
    said = subprocess.run([cmake, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"version (\d+)\.(\d+)", said)
    return tuple(map(int, found.groups())) if found else (0, 0)


def installed_torch() -> Torch | None:
    """The torch of this Python, read without importing it (an import takes seconds)."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0])
    facts = runpy.run_path(str(folder / "version.py"))
    return Torch(folder, str(facts["__version__"]), facts["cuda"])


def needed_torch() -> Torch:
    """The torch to build against; a BuildError where it is missing or older than the stable ABI that is targeted."""
    torch = installed_torch()
    oldest = ".".join(map(str, OLDEST_TORCH))
    hint = "or set MPAMATCH_NO_EXTENSION=1 for pure Python"
    if torch is None:
        raise BuildError(f"the C++ extension is built against torch, which this Python lacks: install it, {hint}.")
    if tuple(map(int, re.findall(r"\d+", torch.version)[:2])) < OLDEST_TORCH:
        raise BuildError(f"torch {torch.version} is too old to build against: install {oldest} or later, {hint}.")
    return torch


def cuda_plan(environment: Environment, torch: Torch) -> Cuda | str:
    """The CUDA kernels to build, or the reason why not; a BuildError where MPAMATCH_CUDA=1 cannot be had."""
    wanted = choice(environment, "MPAMATCH_CUDA", ("auto", "0", "1"))
    if wanted == "0":
        return "MPAMATCH_CUDA=0 asks for none"
    nvcc = find_nvcc(environment)
    if torch.cuda is None:
        reason = f"torch {torch.version} is a build without CUDA"
    elif nvcc is None:
        reason = "no nvcc was found (on PATH, or below CUDA_HOME)"
    elif (version := nvcc_version(nvcc)).split(".")[0] != torch.cuda.split(".")[0]:
        reason = f"nvcc is CUDA {version}, torch {torch.version} was built for CUDA {torch.cuda}"
    else:
        return Cuda(nvcc, version, architectures(environment.get("TORCH_CUDA_ARCH_LIST", "") or ARCHITECTURES))
    if wanted == "1":
        raise BuildError(f"MPAMATCH_CUDA=1 asks for the CUDA kernels, but {reason}.")
    return reason


def find_nvcc(environment: Environment) -> Path | None:
    """The real nvcc: of CUDA_HOME, else of PATH, where a wrapper script is followed to the toolkit it calls."""
    home = environment.get("CUDA_HOME", "")
    path = str(Path(home) / "bin") if home else environment.get("PATH", os.defpath)
    found = shutil.which("nvcc", path=path)
    if home and not found:
        raise BuildError(f"CUDA_HOME={home}: no bin/nvcc there; correct it, or unset it to search PATH.")
    if not found:
        return None
    # --dryrun prints the settings nvcc would compile with, its own folder (TOP) among them, and runs nothing.
    said = subprocess.run([found, "--dryrun", "-E", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
    top = re.search(r"^#\$ TOP=(.*)$", said, re.MULTILINE)
    real = Path(top[1]).resolve() / "bin" / "nvcc" if top else None
    return real if real and real.is_file() else Path(found)


def nvcc_version(nvcc: Path) -> str:
    said = subprocess.run([str(nvcc), "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release (\d+\.\d+)", said)
    if not found:
        raise BuildError(f"{nvcc} --version names no release; repair the CUDA toolkit, or set MPAMATCH_CUDA=0.")
    return found[1]


def architectures(text: str) -> str:
    """TORCH_CUDA_ARCH_LIST ("8.0;9.0+PTX") as CMake writes it ("80-real;90"): without PTX, machine code alone."""
    entries = [entry for entry in re.split(r"[;,\s]+", text) if entry]
    named = []
    for entry in entries:
        parts = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", entry)
        if not parts:
            raise BuildError(f'TORCH_CUDA_ARCH_LIST={text}: expected versions such as "8.0;9.0+PTX", got {entry}.')
        named.append(f"{parts[1]}{parts[2]}{parts[3]}" + ("" if parts[4] else "-real"))
    if not named:
        raise BuildError(f'TORCH_CUDA_ARCH_LIST={text}: expected versions such as "8.0;9.0+PTX", got none.')
    return ";".join(named)


def jobs(environment: Environment, cuda: bool, cores: int, memory: int) -> int:
    """How many compilers run at once: MAX_JOBS, else as many as the cores and the free memory (bytes) bear."""
    named = environment.get("MAX_JOBS", "")
    if named:
        if not (named.isascii() and named.isdigit()) or int(named) == 0:
            raise BuildError(f"MAX_JOBS={named}: expected a whole number from 1.")
        return int(named)
    return max(1, min(cores, memory // (CUDA_JOB_BYTES if cuda else CPP_JOB_BYTES)))


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that may still be used: the machine's, and less where a container (cgroup 2) is allowed less."""
    try:
        meminfo = (root / "proc/meminfo").read_text()
        free = int(re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.MULTILINE)[1]) << 10  # type: ignore[index]
    except (OSError, TypeError):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        group = root / "sys/fs/cgroup"
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):  # no cgroup 2, or "max": no limit
        return free
    return min(free, max(0, limit - used))


def cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
