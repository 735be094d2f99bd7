"""Builds, tests, tunes and measures on a machine with an NVIDIA GPU, in under nine minutes, with the python3 at hand.

    python3 benchmarks/gpu_check.py [--out FILE] [--minutes 9]         (make gpu-check)
    python3 benchmarks/gpu_check.py --pretend                          a dry run on the CPU: every part at tiny sizes

Needs torch, triton, pytest and numpy, and for the native part a compiler, nvcc, cmake, ninja and pybind11; no network,
and installs nothing. Each part is a process of its own with a limit of its own; what one does not use is left for those
after it. What a visitor wants to know first is measured first: one case of each operation, beside eager and
torch.compile.

All ends in one file of JSON lines: the rows of the benchmarks as they come, and a last line, the summary, which is
written before and after every part: it names those that are done, the one that runs and those that are missing. Beside
it lie the tests' results (.junit.xml), the tuned tile sizes (.tiles.json) and each part's output (.logs). A dry run
marks every line, and writes nowhere else. The exit code is 0 where every part passed.
"""

import argparse
import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "build" / "gpu-check"
BORDERS = " │┃─━└┘┴┼├┤┌┐╰╯╭╮"  # of rich's tables
LONGEST_TAIL = 3000  # characters of a failed part's output that are kept
BUDGET = 530.0  # seconds of nine minutes; the limits of the parts add up to no more
CUT = 75  # the exit code of a part that stopped itself at its limit and kept what it had
MARGIN = 15.0  # seconds that a part which stops itself has for its start and its end
QUICK = "eager,loop,cdist,index_add,cross_entropy,linear_cross_entropy,liger,softmax"  # all but torch.compile and KeOps
STEP_NEEDS = ("rich", "safetensors", "pydantic", "lightning_fabric", "timm", "torchvision", "skimage", "scipy")
PREDICTION_NEEDS = ("timm", "torchvision", "safetensors", "PIL")
PRETENDED = {"device": "pretended", "capability": [9, 0], "pretend": True}
SETUP = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import setup"
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
    """One command, its share of BUDGET, and variables of its environment beside those at hand.

    The word {seconds} in the command becomes the time after which it should stop by itself.
    """

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


@dataclass(frozen=True)
class Places:
    """Where a check writes: all beside `out`, but the native libraries, the tile sizes and the package's links."""

    out: Path
    package: Path

    @property
    def junit(self) -> Path:
        return self.out.with_suffix(".junit.xml")

    @property
    def logs(self) -> Path:
        return self.out.with_suffix(".logs")


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the file of JSON lines (benchmarks/results/DEVICE.jsonl)")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all; the parts' limits grow with it (9)")
    parser.add_argument(
        "--pretend", action="store_true", help="a dry run without a GPU (build/gpu-check/pretend.jsonl)"
    )
    arguments = parser.parse_args(words)
    available = 60 * arguments.minutes - 10
    end = time.monotonic() + available
    machine = probe() | (PRETENDED if arguments.pretend else {})
    if machine["device"] is None:
        return refuse("torch sees no CUDA device here.")
    places = places_for(machine, arguments.out)
    if mixes(places.out, arguments.pretend):
        return refuse(f"{places.out} holds rows of a {'GPU' if arguments.pretend else 'dry run'}: name another --out.")
    for folder in (places.out.parent, places.logs):
        folder.mkdir(parents=True, exist_ok=True)
    outcomes = check(machine, places, available / BUDGET, end)
    print(f"wrote {places.out}")
    return 1 if any(outcome.result == "failed" for outcome in outcomes) else 0


def refuse(sentence: str) -> int:
    print(f"gpu-check: {sentence}", file=sys.stderr)
    return 2


def probe() -> dict:
    """Versions and the device; asked in a process of its own, so that this one holds no GPU memory."""
    done = subprocess.run([sys.executable, "-c", TARGETS], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"gpu-check: torch does not load: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def places_for(machine: dict, out: Path | None) -> Places:
    if "pretend" in machine:
        out = (out or PACKAGE / "pretend.jsonl").resolve()
        return Places(out, out.with_suffix(".package"))
    return Places((out or ROOT / "benchmarks" / "results" / f"{slug(machine['device'])}.jsonl").resolve(), PACKAGE)


def mixes(out: Path, pretend: bool) -> bool:
    """Whether `out` holds a line of the other kind of check."""
    lines = out.read_text(encoding="utf-8").splitlines() if out.is_file() else []
    return any(bool(json.loads(line).get("pretend")) != pretend for line in lines)


def check(machine: dict, places: Places, scale: float, end: float) -> list[Outcome]:
    """Runs all parts. The file is whole and its summary true before, after and between them."""
    link_package(places.package)
    left = parts(machine, places)
    outcomes: list[Outcome] = []
    while left:
        part = left.pop(0)
        write_check(places.out, summary(machine, outcomes, part, left))
        outcomes.append(run(part, limit_of(part, left, scale, end), places))
        print(f"{part.name}: {outcomes[-1].result}, {outcomes[-1].seconds:.0f} s; {outcomes[-1].note}", flush=True)
        if part.name == "build":
            link_package(places.package)  # the libraries that it made
    write_check(places.out, summary(machine, outcomes, None, []))
    return outcomes


def link_package(folder: Path = PACKAGE) -> None:
    """FOLDER/mpamatch: links to what an installed package holds, as kernels/ and benchmarks/ lie elsewhere."""
    package = folder / "mpamatch"
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    for path in sorted((ROOT / "mpamatch").iterdir()):
        if path.name not in ("__pycache__", "kernels", "benchmarks"):
            (package / path.name).symlink_to(path)
    for name in ("kernels", "benchmarks"):
        (package / name).symlink_to(ROOT / name)


def parts(machine: dict, places: Places) -> list[Part]:
    """What is done, in order: first what the kernels are for, last what only a long visit has time for."""
    pretend, out = "pretend" in machine, str(places.out)
    python = [sys.executable, "-P"]
    on = ["--device", "cpu" if pretend else "cuda", "--out", out]
    bench = [*python, "-m", "mpamatch", "bench", *on]
    goal = [*bench, "--dtype", "bfloat16", "--sizes", "tiny" if pretend else "goal"]
    one = ["--op", "prototype_contrast"] if pretend else []  # a dry run compiles one operation
    again = QUICK if pretend else f"{QUICK},compile"
    rest = ["--sizes", "tiny", "--op", "pseudo_label"] if pretend else ["--sizes", "rest", "--compare", QUICK]
    tests = [*python, "-m", "mpamatch.benchmarks.gpu_tests", "--out", str(places.junit), "--seconds", "{seconds}"]
    found = [
        build(machine, places),
        Part("info --check", [*python, "-m", "mpamatch.benchmarks.verdicts", *on], 20),
        Part("goal cases", [*goal, "--compare", "eager"], 45, may_be_cut=True),
        Part("goal cases with torch.compile", [*goal, "--compare", "eager,compile", *one], 70, may_be_cut=True),
        Part("tests", [*tests, *(["--processes", "2"] if pretend else [])], 80, may_be_cut=True),
        *sanitizer(python),
        tune(bench, pretend),
        Part("goal cases tuned", [*goal, "--compare", again], 30, may_be_cut=True),
        Part("rest of the bench", [*bench, *rest], 25, may_be_cut=True),
        step(python, on, pretend),
        prediction(python, on, pretend),
    ]
    if pretend:
        quiet = {"MPAMATCH_PRETEND": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        for part in found:
            part.environment |= quiet | {"TRITON_CACHE_DIR": str(places.out.with_suffix(".cache"))}
    return found


def build(machine: dict, places: Places) -> Part:
    """Builds into the checkout; a distribution's setuptools may be too old to read pyproject.toml, so not build_ext."""
    if "pretend" in machine:
        folder = str(places.out.with_suffix(".build"))
        script = f"import pathlib; {SETUP}; setup.configure(pathlib.Path({folder!r}), 'a dry run configures alone')"
        return Part("build", [sys.executable, "-c", script], 120)
    architecture = ".".join(map(str, machine["capability"]))
    environment = {"TORCH_CUDA_ARCH_LIST": architecture, "MPAMATCH_CUDA": "1"}
    return Part("build", [sys.executable, "-c", f"{SETUP}; setup.build_in_place()"], 120, environment)


def tune(bench: list[str], pretend: bool) -> Part:
    """Stops by itself; what it has found lies in the table, so being stopped is no failure."""
    if not pretend:
        return Part("tune", [*bench, "--tune", "--seconds", "{seconds}"], 60, may_be_cut=True)
    command = [*bench, "--tune", "--seconds", "12", "--op", "pseudo_label"]
    return Part("tune", command, 60, {"TRITON_INTERPRET": "1"}, may_be_cut=True)


def step(python: list[str], on: list[str], pretend: bool) -> Part:
    command = [*python, "-m", "mpamatch.benchmarks.check_step", *on, *(["--tiny"] if pretend else [])]
    return Part("step", command, 20, may_be_cut=True, lacks=missing(STEP_NEEDS))


def prediction(python: list[str], on: list[str], pretend: bool) -> Part:
    """Small model and ViT-L, where what builds them is."""
    few = ["--model", "small", "--seconds", "0", "--images", "1", "--variants", "mpamatch"]
    words = few if pretend else ["--seconds", "3", "--variants", "mpamatch,mpamatch-bf16"]
    command = [*python, "-m", "mpamatch.benchmarks.bench_predict", *on, *words]
    return Part("prediction", command, 20, may_be_cut=True, lacks=missing(PREDICTION_NEEDS))


def missing(packages: tuple[str, ...]) -> str:
    return ", ".join(name for name in packages if find_spec(name) is None)


def sanitizer(python: list[str]) -> Iterator[Part]:
    """memcheck and racecheck of the CUDA C++ kernels, where compute-sanitizer is."""
    tool = shutil.which("compute-sanitizer")
    for name in ("memcheck", "racecheck"):
        exercise = [*python, "-m", "mpamatch.benchmarks.exercise_cuda"]
        if tool is None:
            yield Part(name, [], 20, lacks="compute-sanitizer")
            continue
        command = [tool, "--tool", name, "--error-exitcode", "3", *only_our_kernels(tool), *exercise]
        yield Part(name, command, 20, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})


def only_our_kernels(tool: str) -> list[str]:
    """The option has had three names; torch's own kernels are not what is checked."""
    known = subprocess.run([tool, "--help"], capture_output=True, text=True).stdout
    name = next((name for name in ("--kernel-regex", "--kernel-name", "--filter") if f"{name} " in known), None)
    return [name, "kns=mpamatch"] if name else []


def limit_of(part: Part, later: list[Part], scale: float, end: float) -> float:
    """Its own share, and what those before it left, up to as much again: the rest is for those after it."""
    spare = end - time.monotonic() - scale * sum(one.seconds for one in later)
    return min(2 * scale * part.seconds, max(scale * part.seconds, spare), end - time.monotonic())


def run(part: Part, limit: float, places: Places) -> Outcome:
    """Runs a part within its limit; its whole output lies in the logs."""
    if part.lacks:
        return Outcome(part.name, "skipped", note=f"{part.lacks} is not installed")
    if limit < 1:
        return Outcome(part.name, "skipped", note="no time left")
    began = time.monotonic()
    command = [word.replace("{seconds}", f"{max(1.0, limit - MARGIN):.0f}") for word in part.command]
    # without the current folder, where mpamatch lacks kernels and benchmarks; for the processes that a part starts too
    ours = {"PYTHONPATH": str(places.package), "PYTHONSAFEPATH": "1"}
    environment = {**os.environ, **ours, **part.environment}
    log = places.logs / f"{slug(part.name)}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True, preexec_fn=die_with_parent,
        )  # fmt: skip
        try:
            code = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            stop(process)
    output_text = log.read_text(encoding="utf-8", errors="replace")
    if code is None:
        output_text += f"\nstopped after {limit:.0f} s"
    cut = part.may_be_cut and code in (None, CUT)
    result = "passed" if code == 0 else "cut" if cut else "failed"
    return Outcome(part.name, result, round(time.monotonic() - began, 1), note(output_text, failed=result == "failed"))


def stop(process: "subprocess.Popen[bytes]") -> None:
    """Ends a part with all that it started, compilers among them."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def die_with_parent() -> None:
    """Asks Linux to end this process with its parent: a check that is killed leaves no part that still writes."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def note(output: str, *, failed: bool) -> str:
    """The end of the output of a part that failed, else its last line that is more than a border of a table."""
    lines = [line.strip(BORDERS) for line in output.splitlines()]
    return output.strip()[-LONGEST_TAIL:] if failed else next((line for line in reversed(lines) if line), "")


def summary(machine: dict, outcomes: list[Outcome], running: Part | None, later: list[Part]) -> dict:
    """What the last line says. A part that runs is among the missing ones until it ends."""
    unfinished = [part.name for part in ([running] if running else []) + later]
    return {
        **machine,
        "done": [outcome.name for outcome in outcomes],
        "running": running.name if running else None,
        "missing": unfinished,
        "parts": [asdict(outcome) for outcome in outcomes],
    }


def write_check(out: Path, content: dict) -> None:
    """The last line of `out`; that of an earlier check is replaced. Written whole or not at all."""
    lines = out.read_text(encoding="utf-8").splitlines() if out.is_file() else []
    kept = [line for line in lines if not line.startswith('{"check":')]
    mark = {"pretend": True} if "pretend" in content else {}
    temporary = out.with_name(f".{out.name}.new")
    temporary.write_text("\n".join([*kept, json.dumps({"check": content, **mark})]) + "\n", encoding="utf-8")
    temporary.replace(out)


def slug(text: str) -> str:
    """NVIDIA H100 80GB HBM3 → nvidia-h100-80gb-hbm3."""
    return "-".join("".join(letter if letter.isalnum() else " " for letter in text.lower()).split())


if __name__ == "__main__":
    sys.exit(main())
