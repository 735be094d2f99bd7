"""Maps kernels/ and benchmarks/ into the package, and has CMake build the native libraries.

build_backend.py decides what is built; everything else stands in pyproject.toml.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

from build_backend import (
    BuildError,
    Cuda,
    compiler,
    cores,
    cuda_plan,
    free_memory,
    jobs,
    needed_torch,
    pure_python,
    tool,
)

ROOT = Path(__file__).resolve().parent
# In the checkout, a folder that stays makes the next build quick. pip's isolated builds, whose torch lies in another
# temporary folder each time, get one of their own.
CHECKOUT = ROOT / "build" / f"native-{sys.implementation.cache_tag}"
PURE = pure_python(os.environ)
NATIVE = ("_C", "_cuda")
HINT = "MPAMATCH_NO_EXTENSION=1 installs pure Python, MPAMATCH_CUDA=0 leaves out the CUDA kernels"


class Build(build):
    """Runs build_ext also where there is nothing to build: it says so, and removes what an earlier build left."""

    sub_commands = [("build_py", None), ("build_ext", None)]  # noqa: RUF012


class BuildNative(build_ext):
    """CMake and ninja build `_C` and `_cuda`; setuptools puts them where they belong."""

    def run(self) -> None:
        self.folder = CHECKOUT if self.inplace else Path(self.build_temp).resolve() / "native"
        if PURE:
            print(f"mpamatch: pure Python, every operation runs as eager PyTorch: {PURE}.", flush=True)
            if self.inplace:
                remove_built()
        super().run()

    def build_extensions(self) -> None:
        built = build_native(self.folder)
        for name in NATIVE:
            target = Path(self.get_ext_fullpath(f"mpamatch.{name}"))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            if name in built:
                shutil.copy2(built[name], target)

    def copy_extensions_to_source(self) -> None:
        for extension in self.extensions:
            built = Path(self.build_lib) / self.get_ext_filename(extension.name)
            place = Path(self.get_ext_fullpath(extension.name))
            if built.is_file():
                put(built, place)
            else:
                place.unlink(missing_ok=True)


def remove_built() -> None:
    for name in NATIVE:
        for library in (ROOT / "mpamatch").glob(f"{name}.*"):
            library.unlink()


def build_in_place() -> None:
    """What `build_ext --inplace` does, for a Python whose setuptools is too old (below 77) to read pyproject.toml."""
    built = {} if PURE else build_native(CHECKOUT)
    remove_built()
    for name, library in built.items():
        put(library, ROOT / "mpamatch" / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}")


def put(library: Path, place: Path) -> None:
    """Replaces by renaming: writing into a library that a running process has mapped would crash it."""
    new = place.with_name(f"{place.name}.new")
    shutil.copy2(library, new)
    new.replace(place)


def build_native(folder: Path) -> dict[str, Path]:
    """Builds in `folder` what the environment asks for; the libraries by name."""
    torch = needed_torch()
    cuda = cuda_plan(os.environ, torch)
    at_once = jobs(os.environ, isinstance(cuda, Cuda), cores(), free_memory())
    kernels = f"CUDA {cuda.version} for {cuda.architectures}" if isinstance(cuda, Cuda) else f"no CUDA: {cuda}"
    print(f"mpamatch: C++ against torch {torch.version}; {kernels}; at most {at_once} jobs.", flush=True)
    configure(folder, cuda)
    names = NATIVE if isinstance(cuda, Cuda) else NATIVE[:1]
    run_tool("cmake", "--build", str(folder), "--parallel", str(at_once), "--target", *names)
    return {name: folder / "lib" / f"{name}.so" for name in names}


def configure(folder: Path, cuda: Cuda | str) -> None:
    """Runs CMake, afresh where the folder was configured by another compiler or for another place."""
    settings = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_MAKE_PROGRAM": str(required("ninja")),
        "MPAMATCH_PYTHON": sys.executable,
        "MPAMATCH_CUDA": "OFF",
    }
    if isinstance(cuda, Cuda):
        settings |= {
            "MPAMATCH_CUDA": "ON",
            "CMAKE_CUDA_COMPILER": str(cuda.nvcc),
            "CMAKE_CUDA_ARCHITECTURES": cuda.architectures,
        }
    wanted = f"{ROOT}\n{compiler(os.environ)}\n{settings.get('CMAKE_CUDA_COMPILER', '')}\n"
    note = folder / "configured-for"
    if not note.is_file() or note.read_text(encoding="utf-8") != wanted:
        (folder / "CMakeCache.txt").unlink(missing_ok=True)
        for compilers in (folder / "CMakeFiles").glob("[0-9]*"):  # what CMake found out; the objects beside it stay
            shutil.rmtree(compilers)
    folder.mkdir(parents=True, exist_ok=True)
    defined = [f"-D{name}={value}" for name, value in settings.items()]
    run_tool("cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", *defined)
    note.write_text(wanted, encoding="utf-8")


def required(name: str) -> Path:
    found = tool(name)
    if not found:
        raise BuildError(f"building the C++ extension needs {name}: install it (pip install {name}); {HINT}.")
    return found


def run_tool(name: str, *arguments: str) -> None:
    sys.stdout.flush()
    environment = {**os.environ, "CXX": compiler(os.environ) or ""}
    if subprocess.run([str(required(name)), *arguments], env=environment).returncode:
        raise BuildError(f"the build failed, see above ({HINT}).")


if __name__ == "__main__":
    setup(
        packages=[*find_packages(include=["mpamatch", "mpamatch.*"]), "mpamatch.kernels", "mpamatch.benchmarks"],
        package_dir={"mpamatch.kernels": "kernels", "mpamatch.benchmarks": "benchmarks"},
        package_data={
            "mpamatch": ["py.typed"],
            "mpamatch.recipes": ["*.yaml", "prompts/*.yaml"],
            "mpamatch.models.encoders": ["presets.yaml"],
            "mpamatch.report": ["*.j2", "*.css"],
            "mpamatch.kernels": ["tiles/*.json"],
        },
        ext_modules=[] if PURE else [Extension(f"mpamatch.{name}", [], optional=name == "_cuda") for name in NATIVE],
        cmdclass={"build": Build, "build_ext": BuildNative},
    )
