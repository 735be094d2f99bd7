"""Results files, tables, goals and the picture."""

import json
from dataclasses import replace

import pytest

from mpamatch.benchmarks import goals, measure, report, roofline, rows
from mpamatch.benchmarks.rows import Row
from mpamatch.errors import InputError

ROW = Row(
    "prototype_distance",
    "eager",
    "forward",
    65_536,
    256,
    2,
    10,
    "float32",
    "cpu",
    "fresh",
    median=0.080,
    p20=0.079,
    p80=0.082,
    rounds=7,
    timer="wall",
    bytes=70_000_000,
    flops=700_000_000,
    roofline=0.05,
    copy_bytes_per_second=1e10,
    matmul_flops_per_second=1e11,
    machine="a machine",
)
OURS = replace(ROW, backend="cpp", median=0.008, roofline=0.5)


def test_rows_come_back_and_a_new_measurement_replaces_an_old_one(tmp_path):
    file = tmp_path / "results.jsonl"
    rows.write(file, [ROW, OURS])
    rows.write(file, [replace(OURS, median=0.007), replace(OURS, allocation="warm")])
    assert [(row.backend, row.allocation, row.median) for row in rows.read(file)] == [
        ("eager", "fresh", 0.080),
        ("cpp", "fresh", 0.007),
        ("cpp", "warm", 0.008),
    ]


def test_a_time_replaces_the_reason_why_there_was_none_and_the_reverse(tmp_path):
    file = tmp_path / "results.jsonl"
    missing = replace(OURS, median=None, allocation="", note="not built")
    rows.write(file, [ROW, missing])
    rows.write(file, [OURS])
    assert rows.read(file) == [ROW, OURS]
    rows.write(file, [missing])
    assert rows.read(file) == [ROW, missing]


def test_the_summary_of_a_gpu_check_stays_and_is_no_row(tmp_path):
    file = tmp_path / "results.jsonl"
    file.write_text('{"check": {"parts": []}}\n')
    rows.write(file, [ROW])
    assert rows.read(file) == [ROW]
    assert file.read_text().splitlines()[-1] == '{"check": {"parts": []}}'


@pytest.mark.parametrize("line", ["{", '{"median": 1}', "[1]"])
def test_a_file_of_something_else_is_named(tmp_path, line):
    file = tmp_path / "results.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(InputError, match=r"results\.jsonl: line 1 is no benchmark row"):
        rows.read(file)


def test_a_machine_names_its_file():
    assert rows.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"


def test_cells_tell_a_time_or_the_reason_for_none():
    assert rows.cells(OURS)[3:9] == ["cpp", "fresh", "8.00", "79.00–82.00", "–", "50.0"]
    assert rows.cells(replace(OURS, predicted=7e-5))[7] == "0.0700"
    missing = replace(ROW, median=None, note="pykeops is not installed")
    assert rows.cells(missing)[5:] == ["– pykeops is not installed", "", "", "", "", ""]
    assert len(rows.cells(missing)) == len(rows.cells(OURS)) == len(rows.HEADER)


def test_a_table_is_text_where_rich_is_missing():
    assert rows.plain("title", ("a", "bc"), [("1", "2"), ("33", "4")]).splitlines() == [
        "title",
        "a   bc",
        "--  --",
        "1   2",
        "33  4",
    ]


def test_a_goal_is_met_or_missed_in_the_same_allocation():
    (verdict,) = goals.judge([ROW, OURS, replace(ROW, allocation="warm", median=0.010)])
    assert (verdict.figure, verdict.bound, verdict.met) == ("eager", 8, True)
    assert verdict.reached == pytest.approx(10)
    assert verdict.cells()[5:] == ["eager / cpp", "10.00×", "≥ 8.00×", "met"]
    (verdict,) = goals.judge([replace(ROW, median=0.040), OURS])
    assert verdict.met is False


def test_a_result_that_differs_meets_no_goal():
    assert goals.judge([ROW, replace(OURS, note="values differ: result 0 by 1e-2 of its size")]) == []


def test_goals_of_a_gpu_are_shares_launches_bytes_and_seconds():
    ours = replace(
        OURS, device="cuda", dtype="bfloat16", backend="triton", operation="prototype_contrast", allocation="warm",
        direction="forward+backward", roofline=0.7, peak_extra_bytes=65_536 * 13,
    )  # fmt: skip
    found = {verdict.figure: verdict for verdict in goals.judge([ours])}
    assert found["roofline"].met is True
    assert found["bytes_per_pixel"].met is False
    assert found["bytes_per_pixel"].cells()[6:] == ["13.0 B/pixel", "≤ 12.0 B/pixel", "missed"]


def test_a_report_has_a_line_per_goal_and_per_case(tmp_path, capsys):
    file = tmp_path / "results.jsonl"
    differs = replace(ROW, backend="loop", median=0.050, note="values differ: 3% of result 1")
    rows.write(file, [ROW, OURS, differs, replace(ROW, backend="keops", median=None)])
    assert report.main([str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    size = "prototype_distance | N=65536 D=256 C=2 K=10 float32 | forward"
    assert lines[4] == f"| {size} | fresh | eager / cpp | 10.00× | ≥ 8.00× | met |"
    assert lines[-1] == f"| {size} | fresh | 8.00 | 80.00 | – | loop 50.00 (differs) | 50 | – | – |"


def test_the_picture_is_drawn_or_there_is_none(tmp_path):
    file = tmp_path / "results.jsonl"
    rows.write(file, [replace(ROW, median=None)])
    assert roofline.draw(file, tmp_path / "picture.png") is None
    rows.write(file, [ROW, OURS])
    picture = roofline.draw(file, tmp_path / "picture.png")
    assert picture is not None
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_lines_of_another_form_stay_and_the_summary_is_the_last(tmp_path):
    file = tmp_path / "results.jsonl"
    file.write_text('{"check": {"parts": []}}\n')
    rows.add(file, [{"tune": "prototype_contrast.forward"}])
    rows.write(file, [ROW])
    rows.add(file, [{"info": {}}])
    assert rows.read(file) == [ROW]
    kinds = [next(iter(json.loads(line))) for line in file.read_text().splitlines()]
    assert kinds == ["operation", "tune", "info", "check"]


def test_a_dry_run_marks_what_it_writes_and_meets_no_goal(tmp_path, monkeypatch):
    monkeypatch.setenv("MPAMATCH_PRETEND", "1")
    file = tmp_path / "results.jsonl"
    made = Row(
        *(getattr(ROW, name) for name in ("operation", "backend", "direction", "n", "d", "c", "k")), "x", "y", "z"
    )
    assert made.pretend
    rows.add(file, [{"info": {}}])
    assert json.loads(file.read_text()) == {"info": {}, "pretend": True}
    assert measure.machine("cpu").startswith("pretended on ")
    assert goals.judge([replace(ROW, pretend=True), replace(OURS, pretend=True)]) == []
