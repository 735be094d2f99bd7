"""`make gpu-check` without a GPU: its parts, its file, and that nothing on its path needs what such a machine lacks."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mpamatch.benchmarks import exercise_cuda, gpu_check
from mpamatch.benchmarks.all import BENCHMARKS
from mpamatch.benchmarks.gpu_check import Outcome, Part, Places
from mpamatch.ops import dispatch
from mpamatch.ops.operation import operations

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
GPU = {"torch": "2.11", "cuda": "13.0", "device": "A GPU", "capability": [9, 0]}
PARTS = [
    "build", "info --check", "goal cases", "goal cases with torch.compile", "tests", "memcheck", "racecheck", "tune",
    "goal cases tuned", "rest of the bench", "step", "prediction",
]  # fmt: skip
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
def places(tmp_path) -> Places:
    found = Places(tmp_path / "results.jsonl", gpu_check.PACKAGE)
    found.logs.mkdir()
    return found


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
        "from mpamatch.benchmarks import exercise_cuda, gpu_tests, measure, share, tune, verdicts\n"
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


def test_the_gpu_tests_are_collected_and_skipped_visibly(bare, places):
    """With the very options that gpu_check uses, but two processes."""
    part = next(part for part in gpu_check.parts(GPU, places) if part.name == "tests")
    command = [word.replace("{seconds}", "300") for word in part.command] + ["--processes", "2"]
    environment = bare | part.environment | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "needs a CUDA device, and torch sees none" in done.stdout
    assert "0 passed, 0 failed" in done.stdout.splitlines()[-1]
    root = ElementTree.parse(places.junit).getroot()
    cases = [(case.get("classname"), case.get("name")) for case in root.iter("testcase")]
    assert len(cases) == len(set(cases)) == int(root.get("tests")) == int(root.get("skipped")) > 100


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
def test_a_part_ends_as_it_should(part, result, note, places):
    outcome = gpu_check.run(part, part.seconds, places)
    assert (outcome.result, outcome.note) == (result, note)


def test_a_part_without_time_is_skipped(places):
    assert gpu_check.run(python("print()"), 0.5, places) == Outcome("part", "skipped", note="no time left")


def test_a_part_knows_when_to_stop_and_its_output_is_kept(places):
    part = Part("the part", [sys.executable, "-c", "print('first'); print('stop after {seconds}')"], 30)
    assert gpu_check.run(part, 35.0, places).note == "stop after 20"
    assert (places.logs / "the-part.log").read_text() == "first\nstop after 20\n"


def test_a_part_ends_with_all_that_it_started(places):
    script = (
        "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)']).pid)"
    )
    started = int(gpu_check.run(python(script), 30.0, places).note)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{started}").exists() and "Z" not in Path(f"/proc/{started}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_a_part_leaves_goes_to_those_after_it(monkeypatch):
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    first, later = Part("first", [], 40), [Part("second", [], 60)]
    assert gpu_check.limit_of(first, later, 1.0, end=200.0) == 40
    assert gpu_check.limit_of(first, later, 1.0, end=230.0) == 70  # 30 s were left
    assert gpu_check.limit_of(first, later, 1.0, end=900.0) == 80  # but no more than twice its own
    assert gpu_check.limit_of(first, later, 2.0, end=300.0) == 80
    assert gpu_check.limit_of(first, later, 1.0, end=120.0) == 20


def test_rows_of_a_gpu_and_of_a_dry_run_do_not_mix(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "probe", lambda: GPU)
    monkeypatch.setattr(gpu_check, "check", lambda *_: pytest.fail("must not start"))
    out = tmp_path / "results.jsonl"
    for line, words, kind in (('{"pretend": true}', [], "dry run"), ('{"operation": "x"}', ["--pretend"], "GPU")):
        out.write_text(line + "\n")
        assert gpu_check.main(["--out", str(out), *words]) == 2
        assert f"holds rows of a {kind}: name another --out" in capsys.readouterr().err
        assert out.read_text() == line + "\n"


def test_the_summary_names_what_is_done_runs_and_is_missing(tmp_path, monkeypatch):
    seen = []
    write = gpu_check.write_check
    monkeypatch.setattr(gpu_check, "probe", lambda: GPU)
    monkeypatch.setattr(gpu_check, "parts", lambda *_: [Part(name, [sys.executable, "-c", ""], 30) for name in "abc"])
    monkeypatch.setattr(gpu_check, "write_check", lambda out, content: (seen.append(content), write(out, content)))
    assert gpu_check.main(["--out", str(tmp_path / "results.jsonl")]) == 0
    assert [(one["done"], one["running"], one["missing"]) for one in seen] == [
        ([], "a", ["a", "b", "c"]),
        (["a"], "b", ["b", "c"]),
        (["a", "b"], "c", ["c"]),
        (["a", "b", "c"], None, []),
    ]


def test_the_whole_check_writes_one_file(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "probe", lambda: GPU)
    monkeypatch.setattr(gpu_check, "parts", lambda *_: [python("print('built')"), python("raise SystemExit(1)")])
    out = tmp_path / "results.jsonl"
    out.write_text('{"check": {"parts": "old"}}\n{"operation": "x"}\n')
    assert gpu_check.main(["--out", str(out)]) == 1
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert lines[0] == {"operation": "x"}
    assert [part["result"] for part in lines[1]["check"]["parts"]] == ["passed", "failed"]
    assert lines[1]["check"]["device"] == "A GPU"
    assert len(lines) == 2


@pytest.mark.parametrize("machine", [GPU, GPU | gpu_check.PRETENDED], ids=["GPU", "pretended"])
def test_all_limits_add_up_to_less_than_nine_minutes(machine, places):
    found = gpu_check.parts(machine, places)
    assert [part.name for part in found] == PARTS
    assert sum(part.seconds for part in found) <= gpu_check.BUDGET == 9 * 60 - 10


def test_the_build_knows_the_device_and_the_goal_cases_are_half_precision(places):
    found = {part.name: part for part in gpu_check.parts(GPU, places)}
    assert found["build"].environment == {"TORCH_CUDA_ARCH_LIST": "9.0", "MPAMATCH_CUDA": "1"}
    for name in ("goal cases", "goal cases with torch.compile", "goal cases tuned"):
        words = " ".join(found[name].command)
        assert "--device cuda" in words
        assert "--dtype bfloat16 --sizes goal --compare eager" in words
    assert "compile" in found["goal cases with torch.compile"].command[-1]


def test_prediction_is_skipped_by_name_where_timm_is_not_there(monkeypatch, places):
    def prediction() -> Part:
        return next(part for part in gpu_check.parts(GPU, places) if part.name == "prediction")

    assert prediction().lacks == ""
    monkeypatch.setattr(gpu_check, "find_spec", lambda name: None if name == "timm" else object())
    assert gpu_check.run(prediction(), 100.0, places).note == "timm is not installed"


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


# Dry runs: the real processes, by the very script, from a folder that is not the checkout.


def start_pretending(folder: Path) -> "subprocess.Popen[str]":
    script = [sys.executable, str(ROOT / "benchmarks" / "gpu_check.py"), "--pretend"]
    words = ["--out", str(folder / "pretend.jsonl"), "--minutes", "120"]  # however busy the machine is
    return subprocess.Popen([*script, *words], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def lines_of(folder: Path) -> list[dict]:
    file = folder / "pretend.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def state_of_checkout() -> dict[Path, int]:
    places = [ROOT / "kernels", ROOT / "benchmarks", ROOT / "mpamatch"]
    files = [path for place in places for path in place.rglob("*") if "__pycache__" not in path.parts]
    return {path: path.stat().st_mtime_ns for path in files if path.is_file()}


def test_a_dry_run_goes_through_all_parts_and_writes_beside_its_file_only(tmp_path):
    before = state_of_checkout()
    process = start_pretending(tmp_path)
    output, _ = process.communicate(timeout=1800)
    assert process.returncode == 0, output
    assert state_of_checkout() == before
    lines = lines_of(tmp_path)
    assert all(line["pretend"] is True for line in lines)
    summary = lines[-1]["check"]
    assert (summary["device"], summary["done"], summary["missing"]) == ("pretended", PARTS, [])
    assert {part["result"] for part in summary["parts"]} <= {"passed", "skipped"}
    kinds = [next(iter(line)) for line in lines]
    assert set(kinds) == {"operation", "info", "tune", "recipe", "predict", "check"}
    measured = {line["operation"] for line in lines if "operation" in line and line["median"]}
    assert measured == {benchmark.operation for benchmark in BENCHMARKS}
    assert {line["backend"] for line in lines if "operation" in line} >= {"eager", "cpp", "compile", "loop", "softmax"}
    assert all(line["machine"].startswith("pretended on") for line in lines[:-1])
    table = json.loads((tmp_path / "pretend.tiles.json").read_text())
    assert (table["device"], table["tuned"]) == ("pretended", False)
    assert int(ElementTree.parse(tmp_path / "pretend.junit.xml").getroot().get("tests", 0)) > 100
    assert all(path.name.startswith("pretend.") for path in tmp_path.iterdir())


def test_a_dry_run_that_is_killed_leaves_a_valid_file_that_names_what_is_missing(tmp_path):
    process = start_pretending(tmp_path)
    deadline = time.monotonic() + 1200
    while not any("operation" in line for line in lines_of(tmp_path)):  # in the middle of the third part
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while processes_named(str(tmp_path)):  # the part ends with the check that started it
        assert time.monotonic() < deadline
        time.sleep(0.05)
    lines = lines_of(tmp_path)
    assert all(line["pretend"] is True for line in lines)
    summary = lines[-1]["check"]
    assert summary["done"] == PARTS[:2]
    assert summary["running"] == summary["missing"][0] == "goal cases"
    assert summary["missing"] == PARTS[2:]


def processes_named(word: str) -> list[str]:
    """The command lines of processes that hold a word."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(file.read_text())
        except OSError:  # gone
            continue
    return [line for line in found if word in line]


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("first\nlast\n\n", "last"),
        ("title\n│ fused │ 3 ms │\n└───────┴──────┘\n", "fused │ 3 ms"),
        ("", ""),
    ],
)
def test_the_note_of_a_part_is_its_last_line_with_words(output, expected):
    assert gpu_check.note(output, failed=False) == expected
