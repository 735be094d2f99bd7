"""`make gpu-check` without a GPU: its parts, its file, and that nothing on its path needs what such a machine lacks."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mpamatch.benchmarks import exercise_cuda, gpu_check
from mpamatch.benchmarks.gpu_check import Outcome, Part
from mpamatch.ops import dispatch
from mpamatch.ops.operation import operations

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
ABSENT = (
    "open_clip", "nvidia.dali", "lightning_fabric", "hypothesis", "rich", "jsonargparse", "matplotlib", "safetensors",
    "torchvision", "skimage", "scipy", "yaml", "tensorboard", "pytest_benchmark", "torchmetrics", "PIL",
)  # fmt: skip
TIMM_NEEDS = ("torchvision", "safetensors", "yaml", "PIL")


def blocker(absent: tuple[str, ...]) -> str:
    """A sitecustomize.py that hides packages."""
    return f"""
import sys
from importlib.machinery import PathFinder

class WithoutThem(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.startswith({absent!r}) else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutThem
"""


@pytest.fixture
def bare(tmp_path) -> dict[str, str]:
    """The environment of a process in which those packages cannot be imported, and mpamatch is not installed."""
    (tmp_path / "sitecustomize.py").write_text(blocker(ABSENT))
    gpu_check.link_package()
    return {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{gpu_check.PACKAGE}", "OMP_NUM_THREADS": "1"}


def test_the_blocker_blocks(bare):
    done = subprocess.run([sys.executable, "-P", "-c", "import rich"], env=bare, capture_output=True, text=True)
    assert "No module named 'rich'" in done.stderr


def test_benchmarks_run_without_the_absent_packages_from_the_links(bare, tmp_path):
    out = tmp_path / "results.jsonl"
    words = ["--device", "cpu", "--sizes", "small", "--op", "pseudo_label", "--compare", "softmax", "--out", str(out)]
    script = (
        "import sys, mpamatch\n"
        f"assert {str(gpu_check.PACKAGE)!r} in mpamatch.__file__, mpamatch.__file__\n"
        "from mpamatch import kernels, ops\n"
        "from mpamatch.benchmarks import exercise_cuda, measure, tune\n"
        "from mpamatch.cli import main\n"
        "from mpamatch.commands import bench\n"
        "from functools import partial\n"
        "bench.Settings = partial(bench.Settings, seconds=0.0)\n"
        "measure.POOL = 2**20\n"
        "measure._quickest = lambda call, device: 1e-3\n"
        f"sys.exit(main(['bench', *{words!r}]))\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], env=bare, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "no picture: No module named 'matplotlib'" in done.stdout
    assert len(out.read_text().splitlines()) >= 4


def test_prediction_is_measured_where_timm_is_and_what_it_stands_on(bare, tmp_path):
    absent = tuple(name for name in ABSENT if name not in TIMM_NEEDS)
    (tmp_path / "sitecustomize.py").write_text(blocker(absent))
    out = tmp_path / "results.jsonl"
    words = ["--model", "small", "--device", "cpu", "--seconds", "0", "--images", "1", "--variants", "mpamatch"]
    command = [sys.executable, "-P", "-m", "mpamatch.benchmarks.bench_predict", *words, "--out", str(out)]
    done = subprocess.run(command, env=bare, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["rate"] > 0 for line in out.read_text().splitlines()] == [True] * 5


def test_the_gpu_tests_are_collected_and_skipped_visibly(bare):
    """With the very options that gpu_check uses."""
    machine = {"capability": [9, 0]}
    part = next(part for part in gpu_check.parts(machine, Path("results.jsonl")) if part.name == "tests")
    environment = bare | part.environment | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(part.command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "needs a CUDA device, and torch sees none" in done.stdout
    assert "skipped" in done.stdout.splitlines()[-1]
    assert "passed" not in done.stdout.splitlines()[-1]


def test_without_a_device_it_is_one_sentence_and_exit_code_2():
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "gpu_check.py")],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "gpu-check: torch sees no CUDA device here."


def python(script: str, **fields: object) -> Part:
    return Part("part", [sys.executable, "-c", script], **{"seconds": 30.0, **fields})


@pytest.mark.parametrize(
    ("part", "result", "note"),
    [
        (python("print('first'); print('last')"), "passed", "last"),
        (python("import sys; print('why'); sys.exit(3)"), "failed", "why"),
        (python("import os; print(os.environ['ANSWER'])", environment={"ANSWER": "42"}), "passed", "42"),
        (python("import time; time.sleep(60)", seconds=1.2, may_be_cut=True), "cut", "stopped after 1 s"),
        (Part("memcheck", [], 0, lacks="compute-sanitizer"), "skipped", "compute-sanitizer is not installed"),
    ],
)
def test_a_part_ends_as_it_should(part, result, note):
    outcome = gpu_check.run(part, time.monotonic() + 100)
    assert (outcome.result, outcome.note) == (result, note)


def test_a_part_without_time_is_skipped():
    assert gpu_check.run(python("print()"), time.monotonic() + 0.5) == Outcome("part", "skipped", note="no time left")


def test_the_whole_check_writes_one_file(tmp_path, monkeypatch):
    machine = {"torch": "2.11", "cuda": "13.0", "device": "A GPU", "capability": [9, 0]}
    monkeypatch.setattr(gpu_check, "probe", lambda: machine)
    monkeypatch.setattr(gpu_check, "parts", lambda *_: [python("print('built')"), python("raise SystemExit(1)")])
    out = tmp_path / "results.jsonl"
    out.write_text('{"check": {"parts": "old"}}\n{"operation": "x"}\n')
    assert gpu_check.main(["--out", str(out)]) == 1
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert lines[0] == {"operation": "x"}
    assert [part["result"] for part in lines[1]["check"]["parts"]] == ["passed", "failed"]
    assert lines[1]["check"]["device"] == "A GPU"
    assert len(lines) == 2


def test_every_limit_lies_within_nine_minutes_and_the_build_knows_the_device():
    found = list(gpu_check.parts({"capability": [9, 0]}, Path("results.jsonl")))
    assert [part.name for part in found][:4] == ["build", "tests", "memcheck", "racecheck"]
    assert found[0].environment == {"TORCH_CUDA_ARCH_LIST": "9.0", "MPAMATCH_CUDA": "1"}
    needed = sum(part.seconds for part in found if not part.may_be_cut)
    assert needed < 9 * 60 - 60  # the rest is for measurements


def test_prediction_is_skipped_by_name_where_timm_is_not_there(monkeypatch):
    def prediction() -> Part:
        found = gpu_check.parts({"capability": [9, 0]}, Path("results.jsonl"))
        return next(part for part in found if part.name == "prediction")

    assert prediction().lacks == ""
    monkeypatch.setattr(gpu_check, "find_spec", lambda name: None if name == "timm" else object())
    assert gpu_check.run(prediction(), time.monotonic() + 100).note == "timm is not installed"


@pytest.mark.parametrize(
    ("help_text", "option"),
    [("  --kernel-regex arg", "--kernel-regex"), ("  --filter arg", "--filter"), ("nothing", None)],
)
def test_the_sanitizer_looks_at_our_kernels_only(tmp_path, help_text, option):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\necho '{help_text}'\n")
    tool.chmod(0o755)
    assert gpu_check.only_our_kernels(str(tool)) == ([option, "kns=mpamatch"] if option else [])


def test_the_sanitizer_gets_a_sample_of_every_size():
    """The very calls, on the CPU."""
    ran = {"uint8": 0, "int64": 0}
    for size, dtype in exercise_cuda.CASES:
        for record in operations().values():
            sample = exercise_cuda.sample(size, dtype, "cpu")
            with dispatch.using("cpp,eager"):
                assert all(value.isfinite().all() for value in record.self_check(sample))
            ran[str(sample.label.dtype).removeprefix("torch.")] += 1
    assert min(ran.values()) > 0
