"""Builds, tests and measures on a machine with an NVIDIA GPU, in under nine minutes, with the python3 at hand.

    python3 benchmarks/gpu_check.py [--out FILE] [--minutes 9]         (make gpu-check)

Needs torch, triton, pytest and numpy, and for the native part a compiler, nvcc, cmake, ninja and pybind11; no network,
and installs nothing. Each part is a process of its own with a limit of its own; what one does not use is left for those
after it. All ends in one file of JSON lines: the rows of the benchmarks as they come, and a last line of what the parts
said. The exit code is 0 where every part passed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "build" / "gpu-check"
LONGEST_TAIL = 3000  # characters of a failed part's output that are kept
OPERATIONS = ("prototype_contrast", "segmentation_loss", "prototype_distance", "pseudo_label", "sinkhorn_assign")
QUICK = "eager,loop,cdist,index_add,cross_entropy,linear_cross_entropy,liger,softmax"  # all but torch.compile and KeOps
TARGETS = """
import json, torch
from torch.version import cuda
found = torch.cuda.is_available()
capability = torch.cuda.get_device_capability() if found else None
name = torch.cuda.get_device_name() if found else None
print(json.dumps({"torch": torch.__version__, "cuda": cuda, "device": name, "capability": capability}))
"""


@dataclass
class Part:
    """One command, its time limit, and variables of its environment beside those at hand."""

    name: str
    command: list[str]
    seconds: float
    environment: dict[str, str] = field(default_factory=dict)
    may_be_cut: bool = False  # the results up to its limit are kept, and reaching it is no failure
    lacks: str = ""  # what is not installed: then it is skipped


@dataclass
class Outcome:
    name: str
    result: str  # passed, failed, cut or skipped
    seconds: float = 0.0
    note: str = ""  # the last line, or the end of the output of a part that failed


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the file of JSON lines (benchmarks/results/DEVICE.jsonl)")
    parser.add_argument("--minutes", type=float, default=9.0)
    arguments = parser.parse_args(words)
    end = time.monotonic() + 60 * arguments.minutes - 10
    machine = probe()
    if machine["device"] is None:
        print("gpu-check: torch sees no CUDA device here.", file=sys.stderr)
        return 2
    link_package()
    out = (arguments.out or ROOT / "benchmarks" / "results" / f"{slug(machine['device'])}.jsonl").resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    outcomes = []
    for part in parts(machine, out):
        outcomes.append(run(part, end))
        print(f"{part.name}: {outcomes[-1].result}, {outcomes[-1].seconds:.0f} s; {outcomes[-1].note}", flush=True)
        if part.name == "build":
            link_package()  # the libraries that it made
    write_check(out, {**machine, "parts": [asdict(outcome) for outcome in outcomes]})
    print(f"wrote {out}")
    return 1 if any(outcome.result == "failed" for outcome in outcomes) else 0


def probe() -> dict:
    """Versions and the device; asked in a process of its own, so that this one holds no GPU memory."""
    done = subprocess.run([sys.executable, "-c", TARGETS], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"gpu-check: torch does not load: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def link_package() -> None:
    """build/gpu-check/mpamatch: links to what an installed package holds, as kernels/ and benchmarks/ lie elsewhere."""
    package = PACKAGE / "mpamatch"
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    for path in sorted((ROOT / "mpamatch").iterdir()):
        if path.name != "__pycache__":
            (package / path.name).symlink_to(path)
    for folder in ("kernels", "benchmarks"):
        (package / folder).symlink_to(ROOT / folder)


def parts(machine: dict, out: Path) -> Iterator[Part]:
    """What is done. The limits leave a machine that is slow in one part some time for the others."""
    python = [sys.executable, "-P"]  # without the current folder, where mpamatch lacks kernels and benchmarks
    architecture = ".".join(map(str, machine["capability"]))
    build = {"TORCH_CUDA_ARCH_LIST": architecture, "MPAMATCH_CUDA": "1"}
    # a distribution's setuptools may be too old to read pyproject.toml, so not `setup.py build_ext`
    yield Part("build", [sys.executable, "-c", "import setup; setup.build_in_place()"], 150, build)
    tests = ["-m", "pytest", "tests/gpu", "--confcutdir=tests/gpu", "--import-mode=append", "-rs"]
    yield Part("tests", [*python, *tests], 150, {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})
    yield from sanitizer(python)
    bench = [*python, "-m", "mpamatch", "bench", "--device", "cuda", "--out", str(out)]
    yield Part("tune", [*bench, "--tune", "--seconds", "60"], 90)
    yield Part("bench bfloat16", [*bench, "--dtype", "bfloat16", "--compare", QUICK], 90, may_be_cut=True)
    yield Part("bench float32", [*bench, "--dtype", "float32", "--compare", QUICK], 60, may_be_cut=True)
    yield prediction(python, out)
    for operation in OPERATIONS:
        compiled = [*bench, "--dtype", "bfloat16", "--op", operation, "--compare", f"{QUICK},compile"]
        yield Part(f"bench {operation} with torch.compile", compiled, 60, may_be_cut=True)


def prediction(python: list[str], out: Path) -> Part:
    """Small model and ViT-L, where what builds them is."""
    lacks = ", ".join(name for name in ("timm", "torchvision", "safetensors", "PIL") if find_spec(name) is None)
    command = [*python, "-m", "mpamatch.benchmarks.bench_predict", "--device", "cuda", "--seconds", "5"]
    variants = ["--variants", "mpamatch,mpamatch-bf16", "--out", str(out)]
    return Part("prediction", [*command, *variants], 60, may_be_cut=True, lacks=lacks)


def sanitizer(python: list[str]) -> Iterator[Part]:
    """memcheck and racecheck of the CUDA C++ kernels, where compute-sanitizer is."""
    tool = shutil.which("compute-sanitizer")
    for check in ("memcheck", "racecheck"):
        exercise = [*python, "-m", "mpamatch.benchmarks.exercise_cuda"]
        if tool is None:
            yield Part(check, [], 0, lacks="compute-sanitizer")
            continue
        command = [tool, "--tool", check, "--error-exitcode", "3", *only_our_kernels(tool), *exercise]
        yield Part(check, command, 45, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})


def only_our_kernels(tool: str) -> list[str]:
    """The option has had three names; torch's own kernels are not what is checked."""
    known = subprocess.run([tool, "--help"], capture_output=True, text=True).stdout
    name = next((name for name in ("--kernel-regex", "--kernel-name", "--filter") if f"{name} " in known), None)
    return [name, "kns=mpamatch"] if name else []


def run(part: Part, end: float) -> Outcome:
    """Runs a part within its limit and before `end`."""
    if part.lacks:
        return Outcome(part.name, "skipped", note=f"{part.lacks} is not installed")
    limit = min(part.seconds, end - time.monotonic())
    if limit < 1:
        return Outcome(part.name, "skipped", note="no time left")
    began = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE), **part.environment}
    process = subprocess.Popen(
        part.command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=limit)
        result = "failed" if process.returncode else "passed"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)  # with the compilers it started
        output, _ = process.communicate()
        result = "cut" if part.may_be_cut else "failed"
        output += f"\nstopped after {limit:.0f} s"
    return Outcome(part.name, result, round(time.monotonic() - began, 1), note(output, failed=result == "failed"))


def note(output: str, *, failed: bool) -> str:
    lines = output.strip().splitlines()
    return output.strip()[-LONGEST_TAIL:] if failed else (lines[-1] if lines else "")


def write_check(out: Path, check: dict) -> None:
    """The last line of `out`; one of an earlier check is replaced."""
    lines = out.read_text(encoding="utf-8").splitlines() if out.is_file() else []
    kept = [line for line in lines if not line.startswith('{"check":')]
    temporary = out.with_name(f".{out.name}.new")
    temporary.write_text("\n".join([*kept, json.dumps({"check": check})]) + "\n", encoding="utf-8")
    temporary.replace(out)


def slug(text: str) -> str:
    """NVIDIA H100 80GB HBM3 → nvidia-h100-80gb-hbm3."""
    return "-".join("".join(letter if letter.isalnum() else " " for letter in text.lower()).split())


if __name__ == "__main__":
    sys.exit(main())
