"""bench_slides measures a slide in a process of its own and writes what it found."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_small_slide_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    command = [sys.executable, "-m", "mpamatch.benchmarks.bench_slides", "--sizes", "1024", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (row,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert (row["size"], row["windows"]) == (1024, 14**2)  # (1024 − 112) / 74 = 12.3: 13 steps
    assert row["ratio"] == pytest.approx(row["cpu"] / row["model_cpu"])
    assert row["ratio"] > 0.8
    assert 0 < row["after"] < 1
    assert row["regions"] > 0
    assert row["peak_mb"] > 10


def test_a_slide_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_text("no slide")
    command = [sys.executable, "-m", "mpamatch.benchmarks.bench_slides", "--slide", str(tmp_path / "a.tif")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "a.tif" in done.stderr
