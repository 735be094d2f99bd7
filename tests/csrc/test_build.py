"""The build: what it decides and what it makes."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import build_backend
import setup
from build_backend import BuildError, Cuda, Torch
from mpamatch.ops import native
from tests.csrc import cmake
from tests.csrc.cmake import CSRC, NATIVE, ROOT

TORCH = Torch(Path("torch"), "2.11.0+cu130", "13.0")
CPU_TORCH = Torch(Path("torch"), "2.11.0+cpu", None)
needs_compiler = pytest.mark.skipif(not build_backend.compiler(os.environ), reason="no C++ compiler")
needs_extension = pytest.mark.skipif(native.missing("cpu") is not None, reason=str(native.missing("cpu")))


@pytest.mark.skipif(build_backend.pure_python(os.environ) is not None, reason="no native code is built here")
def test_the_libraries_are_there_where_they_could_be_built():
    """Tests of native code are skipped without them: this one tells an installation that lost them from none."""
    assert native.missing("cpu") is None


def executable(file: Path, body: str = "exit 0") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\n{body}\n")
    file.chmod(0o755)
    return file


def toolkit(folder: Path, release: str = "13.0") -> Path:
    """A stand-in for nvcc: it says its release, and with --dryrun the folder it lies in."""
    nvcc = folder / "bin" / "nvcc"
    says = f'--version) echo "release {release}, V{release}.88";; *) echo "#$ TOP={nvcc.parent}/.." >&2;;'
    return executable(nvcc, f'case "$1" in {says} esac')


# --- which case ---


def test_a_compiler_on_path_is_found(tmp_path):
    assert build_backend.compiler({"PATH": str(tmp_path)}) is None
    gcc = executable(tmp_path / "g++")
    assert build_backend.compiler({"PATH": str(tmp_path)}) == str(gcc)
    first = executable(tmp_path / "c++")
    assert build_backend.compiler({"PATH": str(tmp_path)}) == str(first)


def test_cxx_may_be_a_command(tmp_path):
    executable(tmp_path / "ccache")
    assert build_backend.compiler({"PATH": str(tmp_path), "CXX": "ccache g++"}) == "ccache g++"


def test_pure_python_without_a_compiler_or_by_wish(tmp_path):
    assert "no C++ compiler was found" in str(build_backend.pure_python({"PATH": str(tmp_path)}))
    executable(tmp_path / "c++")
    assert build_backend.pure_python({"PATH": str(tmp_path)}) is None
    assert build_backend.pure_python({"PATH": str(tmp_path), "MPAMATCH_NO_EXTENSION": "0"}) is None
    by_wish = build_backend.pure_python({"PATH": str(tmp_path), "MPAMATCH_NO_EXTENSION": "1"})
    assert by_wish == "MPAMATCH_NO_EXTENSION=1 asks for none"


def test_torch_is_fetched_only_where_a_compiler_is(tmp_path):
    assert build_backend.requirements({"PATH": str(tmp_path)}) == []
    executable(tmp_path / "c++")
    assert build_backend.requirements({"PATH": str(tmp_path)})[0] == "torch>=2.10"
    assert build_backend.requirements({"PATH": str(tmp_path), "MPAMATCH_NO_EXTENSION": "1"}) == []


def test_tools_are_fetched_only_where_they_are_missing_or_too_old(tmp_path, monkeypatch):
    executable(tmp_path / "c++")
    monkeypatch.setattr(build_backend.sysconfig, "get_path", lambda name: str(tmp_path / "none"))
    monkeypatch.setenv("PATH", str(tmp_path))
    environment = {"PATH": str(tmp_path)}
    assert build_backend.requirements(environment) == ["torch>=2.10", "cmake>=3.22", "ninja"]
    executable(tmp_path / "ninja")
    executable(tmp_path / "cmake", "echo cmake version 3.18.4")
    assert build_backend.requirements(environment) == ["torch>=2.10", "cmake>=3.22"]
    executable(tmp_path / "cmake", "echo cmake version 4.0.1")
    assert build_backend.requirements(environment) == ["torch>=2.10"]


def test_the_backend_asks_as_the_environment_is(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    for asks in (build_backend.get_requires_for_build_wheel, build_backend.get_requires_for_build_editable):
        assert not any(name.startswith(("torch", "cmake", "ninja")) for name in asks())
    executable(tmp_path / "c++")
    for asks in (build_backend.get_requires_for_build_wheel, build_backend.get_requires_for_build_editable):
        assert "torch>=2.10" in asks()


def test_the_torch_at_hand_is_read_without_importing_it():
    import torch

    found = build_backend.needed_torch()
    assert found == Torch(Path(torch.__file__).parent, torch.__version__, torch.version.cuda)


@pytest.mark.parametrize(("torch", "said"), [(None, "this Python lacks"), (Torch(Path(), "2.9.1", None), "too old")])
def test_a_torch_that_does_not_serve(torch, said, monkeypatch):
    monkeypatch.setattr(build_backend, "installed_torch", lambda: torch)
    with pytest.raises(BuildError, match=said):
        build_backend.needed_torch()


# --- CUDA ---


def test_cuda_where_nvcc_and_torch_fit(tmp_path):
    nvcc = toolkit(tmp_path)
    assert build_backend.cuda_plan({"PATH": str(nvcc.parent)}, TORCH) == Cuda(nvcc, "13.0", "80-real;90")
    asked = {"PATH": str(nvcc.parent), "TORCH_CUDA_ARCH_LIST": "8.6", "MPAMATCH_CUDA": "1"}
    assert build_backend.cuda_plan(asked, TORCH) == Cuda(nvcc, "13.0", "86-real")


def test_a_wrapper_of_nvcc_is_followed_to_its_toolkit(tmp_path):
    real = toolkit(tmp_path / "cuda")
    wrapper = executable(tmp_path / "somewhere" / "nvcc", f'exec {real} "$@"')
    assert build_backend.find_nvcc({"PATH": str(wrapper.parent)}) == real


def test_cuda_home_comes_before_path(tmp_path):
    on_path, at_home = toolkit(tmp_path / "path"), toolkit(tmp_path / "home")
    environment = {"PATH": str(on_path.parent), "CUDA_HOME": str(tmp_path / "home")}
    assert build_backend.find_nvcc(environment) == at_home


@pytest.mark.parametrize(
    ("torch", "release", "switch", "reason"),
    [
        (CPU_TORCH, "13.0", "auto", "torch 2.11.0+cpu is a build without CUDA"),
        (TORCH, None, "auto", "no nvcc was found"),
        (TORCH, "12.8", "auto", "nvcc is CUDA 12.8, torch 2.11.0+cu130 was built for CUDA 13.0"),
        (TORCH, "13.0", "0", "MPAMATCH_CUDA=0 asks for none"),
    ],
)
def test_no_cuda_has_its_reason(torch, release, switch, reason, tmp_path):
    if release:
        toolkit(tmp_path, release)
    environment = {"PATH": str(tmp_path / "bin"), "MPAMATCH_CUDA": switch}
    plan = build_backend.cuda_plan(environment, torch)
    assert isinstance(plan, str)
    assert reason in plan
    if switch == "auto":
        with pytest.raises(BuildError, match=f"MPAMATCH_CUDA=1 asks for the CUDA kernels, but {re.escape(reason)}"):
            build_backend.cuda_plan({**environment, "MPAMATCH_CUDA": "1"}, torch)


@pytest.mark.parametrize(
    ("text", "cmake"),
    [
        (build_backend.ARCHITECTURES, "80-real;90"),
        ("8.0 8.6+PTX", "80-real;86"),
        ("9.0a, 10.0f", "90a-real;100f-real"),
        ("12.0+PTX;", "120"),
    ],
)
def test_architectures(text, cmake):
    assert build_backend.architectures(text) == cmake


# --- jobs ---

GB = 1 << 30


@pytest.mark.parametrize(
    ("cuda", "cores", "memory", "at_once"),
    [(False, 8, 64 * GB, 8), (False, 8, 7 * GB, 3), (True, 8, 7 * GB, 1), (True, 2, 64 * GB, 2), (False, 4, 0, 1)],
)
def test_jobs_fit_the_cores_and_the_memory(cuda, cores, memory, at_once):
    assert build_backend.jobs({}, cuda, cores, memory) == at_once


def test_max_jobs_has_the_last_word():
    assert build_backend.jobs({"MAX_JOBS": "5"}, True, 1, GB) == 5


def test_free_memory_heeds_a_container(tmp_path):
    for name, text in {
        "proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    4096 kB\n",
        "sys/fs/cgroup/memory.max": "max",
        "sys/fs/cgroup/memory.current": "1000",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert build_backend.free_memory(tmp_path) == 4096 << 10
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("3000\n")
    assert build_backend.free_memory(tmp_path) == 2000


def test_free_memory_where_no_proc_is(tmp_path):
    assert build_backend.free_memory(tmp_path) > 0


# --- bad values: one sentence that names the variable ---


@pytest.mark.parametrize(
    ("name", "value", "decide"),
    [
        ("MPAMATCH_CUDA", "2", build_backend.pure_python),
        ("MPAMATCH_NO_EXTENSION", "yes", build_backend.pure_python),
        ("CXX", "no-such-compiler", build_backend.compiler),
        ("CUDA_HOME", "/no/such/folder", build_backend.find_nvcc),
        ("MAX_JOBS", "two", lambda environment: build_backend.jobs(environment, False, 1, GB)),
        ("MAX_JOBS", "0", lambda environment: build_backend.jobs(environment, False, 1, GB)),
        ("TORCH_CUDA_ARCH_LIST", "Hopper", lambda environment: build_backend.architectures(*environment.values())),
        ("TORCH_CUDA_ARCH_LIST", ";", lambda environment: build_backend.architectures(*environment.values())),
    ],
)
def test_bad_values(name, value, decide):
    with pytest.raises(BuildError) as caught:
        decide({name: value})
    assert re.fullmatch(rf"mpamatch: {name}={re.escape(value)}: [^\n]+\.", str(caught.value))


def test_cuda_cannot_be_asked_for_without_native_code(tmp_path):
    for more in ({}, {"MPAMATCH_NO_EXTENSION": "1"}):
        with pytest.raises(
            BuildError, match="MPAMATCH_CUDA=1 asks for the CUDA kernels, but no native code can be built"
        ):
            build_backend.pure_python({"PATH": str(tmp_path), "MPAMATCH_CUDA": "1", **more})


# --- what comes out ---


def test_a_machine_without_a_compiler_gets_pure_python(tmp_path):
    """The package is laid out as a wheel would hold it, and one sentence says that nothing native is in it."""
    site = tmp_path / "site"
    environment = {**os.environ, "PATH": str(tmp_path)}
    environment.pop("CXX", None)
    command = [sys.executable, "setup.py", "--quiet", "build", "--build-base", str(tmp_path), "--build-lib", str(site)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    sentences = [line for line in done.stdout.splitlines() if line.startswith("mpamatch:")]
    assert len(sentences) == 1
    assert "pure Python, every operation runs as eager PyTorch: no C++ compiler was found" in sentences[0]
    assert list(site.rglob("*.so")) == []
    assert [path.name for path in site.iterdir()] == ["mpamatch"]  # and no experiments
    tables = {file.relative_to(ROOT) for file in (ROOT / "mpamatch").rglob("*.yaml")}
    assert {file.relative_to(site) for file in site.rglob("*.yaml")} == tables
    # An editable installation's finder would lend this package the library of the checkout.
    asks = (
        "import sys; sys.meta_path = [finder for finder in sys.meta_path if '__editable__' not in str(finder)]\n"
        "import mpamatch.kernels\n"
        "from mpamatch.ops import native\n"
        "print(native.missing('cpu'))"
    )
    alone = {**os.environ, "PYTHONPATH": str(site)}
    said = subprocess.run([sys.executable, "-P", "-c", asks], cwd=tmp_path, env=alone, capture_output=True, text=True)
    assert "mpamatch was installed as pure Python" in said.stdout, said.stderr


def test_building_in_place_leaves_what_was_built_and_nothing_older(tmp_path, monkeypatch):
    """For a setuptools that cannot read pyproject.toml: the same build, put where `build_ext --inplace` does."""
    library = tmp_path / "_C.so"
    library.write_text("new")
    package = tmp_path / "mpamatch"
    package.mkdir()
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    for name in ("_C", "_cuda"):
        (package / f"{name}{suffix}").write_text("old")
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    monkeypatch.setattr(setup, "PURE", None)
    monkeypatch.setattr(setup, "build_native", lambda folder: {"_C": library})
    setup.build_in_place()
    assert {path.name: path.read_text() for path in package.iterdir()} == {f"_C{suffix}": "new"}
    monkeypatch.setattr(setup, "PURE", "no C++ compiler was found")
    setup.build_in_place()
    assert list(package.iterdir()) == []


@needs_compiler
def test_a_broken_build_is_an_error_with_a_way_out(tmp_path):
    executable(tmp_path / "c++", "echo broken >&2; exit 1")
    environment = {**os.environ, "CXX": str(tmp_path / "c++"), "MPAMATCH_CUDA": "0"}
    command = [sys.executable, "setup.py", "build", "--build-base", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].startswith("mpamatch: the build failed, see above (MPAMATCH_NO_EXTENSION=1")


def test_another_compiler_configures_afresh_and_keeps_the_objects(tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "run_tool", lambda *arguments: None)
    monkeypatch.setattr(setup, "required", Path)
    cache, object_file = tmp_path / "CMakeCache.txt", tmp_path / "CMakeFiles" / "cpu_avx2.dir" / "a.o"
    found_out = tmp_path / "CMakeFiles" / "3.25.1" / "CMakeCXXCompiler.cmake"
    left = {}
    for name in ("c++", "c++", "g++"):
        for file in (cache, object_file, found_out):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        monkeypatch.setenv("CXX", str(executable(tmp_path / "bin" / name)))
        setup.configure(tmp_path, "no CUDA")
        left[len(left)] = [file.is_file() for file in (object_file, cache, found_out)]
    assert left == {0: [True, False, False], 1: [True, True, True], 2: [True, False, False]}


@needs_extension
def test_the_library_tells_how_it_was_built():
    information = native.build_information()
    assert set(information["instruction_sets"]) >= {"baseline"}
    assert information["instruction_set"] in information["instruction_sets"]
    assert "-march=native" not in information["flags"]
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", information["torch"])
    assert bool(information["cuda"]) == bool(information["cuda_architectures"]) == bool(information["cuda_source_hash"])


LOAD = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("mpamatch._C", sys.argv[1])
library = importlib.util.module_from_spec(spec)
spec.loader.exec_module(library)
print(library.build_information()["instruction_set"])
"""


@needs_extension
@pytest.mark.parametrize("name", ["baseline", "avx2"])
def test_the_instruction_set_can_be_chosen(name):
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").is_file() else []
    if name != "baseline" and name not in flags:
        pytest.skip(f"this processor lacks {name}")
    library = sys.modules["mpamatch._C"].__file__
    torch_libraries = str(build_backend.needed_torch().folder / "lib")  # all of `import torch` takes seconds
    environment = {**os.environ, "MPAMATCH_CPU": name, "LD_LIBRARY_PATH": torch_libraries}
    command = [sys.executable, "-c", LOAD, str(library)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [name]


@needs_extension
def test_instructions_that_a_processor_may_lack_stay_in_their_namespace():
    """Outside mpamatch::avx2, ::avx512 and ::amx no ymm or zmm register: the linker kept no copy of the wrong set."""
    library = Path(sys.modules["mpamatch._C"].__file__)
    if not shutil.which("objdump") or "avx2" not in native.build_information()["instruction_sets"]:
        pytest.skip("needs objdump and x86-64")
    code = subprocess.run(["objdump", "-dC", "--no-show-raw-insn", library], capture_output=True, text=True, check=True)
    using: dict[str, set[str]] = {}
    function = ""
    for line in code.stdout.splitlines():
        if line.endswith(">:"):
            function = line.partition(" <")[2]
        for register in re.findall(r"%([yzt])mm", line):
            using.setdefault(register, set()).add(function)
    assert len(using["y"]) > 10
    assert len(using["z"]) > 10
    for register, sets in {"y": ("avx2", "avx512", "amx"), "z": ("avx512", "amx"), "t": ("amx",)}.items():
        wrong = [name for name in using.get(register, ()) if not any(f"mpamatch::{one}::" in name for one in sets)]
        assert wrong == [], register
    assert ("t" in using) == ("amx" in native.build_information()["instruction_sets"])


@needs_extension
def test_every_instruction_set_has_its_own_copy_of_the_core():
    """A function of ours outside the sets' namespaces would be merged by the linker: avx2 would run baseline's copy."""
    objects = sorted((NATIVE / "CMakeFiles" / "cpu_avx2.dir" / "csrc" / "cpu").glob("*.o"))
    if not shutil.which("nm") or not objects:
        pytest.skip("needs nm, and the extension built in this checkout for x86-64")
    symbols = subprocess.run(["nm", "-C", *objects], capture_output=True, text=True, check=True).stdout
    ours = re.findall(r"^[0-9a-f]+ [WVu] (?:.*? )?(mpamatch::\S.*)$", symbols, re.MULTILINE)
    assert len(ours) > 10
    assert [name for name in ours if not name.startswith("mpamatch::avx2::")] == []


# --- the list of operations ---


@pytest.mark.parametrize("operation", cmake.operations())
def test_an_operation_has_its_files(operation):
    files = {"arguments/{}.h", "core/{}.h", "cpu/{}.cpp", "bindings/{}.cpp", "tests/core/test_{}.cpp"}
    if operation in cmake.operations("cuda"):
        files |= {"cuda/{}.h", "cuda/{}.cu", "tests/cuda/test_{}.cpp"}
    assert [name for name in files if not (CSRC / name.format(operation)).is_file()] == []


@pytest.mark.parametrize(
    ("pattern", "beside"),
    [("arguments/*.h", {"common", "kernel"}), ("cpu/*.cpp", {"pick"}), ("bindings/*.cpp", set())],
)
def test_a_file_is_of_a_listed_operation(pattern, beside):
    assert {path.stem for path in CSRC.glob(pattern)} - beside == set(cmake.operations())


@needs_extension
def test_every_listed_operation_is_registered():
    """Every schema that the bindings define is there, and has a kernel on each device that the list names."""
    import torch

    for device in ("cpu", "cuda") if native.missing("cuda") is None else ("cpu",):
        for operation in cmake.operations(device):
            names = re.findall(r'm\.def\(\s*"(\w+)\(', (CSRC / "bindings" / f"{operation}.cpp").read_text("utf-8"))
            assert names
            for name in names:
                assert torch._C._dispatch_has_kernel_for_dispatch_key(f"mpamatch::{name}", device.upper()), name
