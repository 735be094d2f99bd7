"""The rows of bench_export: a run's file beside torch."""

from pathlib import Path

import numpy as np
import pytest

from mpamatch.benchmarks import bench_export
from mpamatch.benchmarks.bench_export import Row, in_turns, line
from mpamatch.engine import loop
from mpamatch.inference.export.graph import Frame
from mpamatch.inference.export.onnx_file import Checked
from tests.tiny import make_set, silent, tiny_config


def test_ways_take_turns_over_all_batches():
    seen: list[str] = []
    ways = {"onnxruntime": lambda _: seen.append("a"), "torch": lambda _: seen.append("b")}
    seconds, turns = in_turns(ways, [np.zeros(1)] * 2, 0.0)
    assert turns == 3
    assert "".join(seen) == "ab" + "aabb" * 3  # once each before, to warm up
    assert set(seconds) == set(ways)


def test_a_line_has_milliseconds_and_ratios():
    checked = Checked(Path("a.onnx"), Frame(64, 32, 32), 5, 2e-6, 0.9995)
    row = Row("tiny", checked, {"onnxruntime": 0.002, "torch": 0.003, "torch, channels-last": 0.0025}, 3)
    assert line(row) == "| tiny | 64² (multiples of 32) | 5 | 2e-06 | 99.950% | 2.0 | 3.0 | 2.5 | 1.50 | 1.25 | 3 |"


@pytest.mark.slow
def test_a_run_is_measured_on_its_own_images(tmp_path, capsys):
    make_set(tmp_path / "data")
    loop.train(tiny_config(tmp_path / "data"), tmp_path / "tiny", console=silent())
    assert bench_export.main([str(tmp_path / "tiny"), "--windows", "3", "--batch", "2", "--seconds", "0"]) == 0
    cells = [cell.strip() for cell in capsys.readouterr().out.strip().strip("|").split("|")]
    assert cells[:3] == ["tiny", "32² (multiples of 16)", "3"]
    assert float(cells[3]) < 1e-5
    assert all(float(cell) > 0 for cell in cells[5:10])
