"""Folders that cannot be written: what was computed is printed first, then one sentence, and exit code 2."""

from pathlib import Path

import pytest

from mpamatch import files
from mpamatch.cli import main
from tests.tiny import make_set_and_run, tiny_flags

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared set and a run on it."""
    return make_set_and_run(tmp_path_factory.mktemp("ready"))


@pytest.fixture
def locked(monkeypatch):
    """Makes writing of files refuse by their names, as a folder does that is another's; root may write everywhere."""
    begin = files._begin

    def lock(*names):
        def refused(path, **how):
            if path.name in names:
                raise PermissionError(13, "Permission denied", str(path))
            return begin(path, **how)

        monkeypatch.setattr(files, "_begin", refused)

    return lock


def refused(words, capsys, path):
    """Runs a command that computes and cannot write `path`; returns what it printed."""
    assert main([str(word) for word in words]) == 2
    said = capsys.readouterr()
    assert said.err.splitlines()[-1] == f"mpamatch: {path}: cannot be written (Permission denied)."
    assert "Traceback" not in said.err
    return said.out


def test_evaluate_shows_the_scores(ready, locked, capsys):
    locked("evaluation-test.json")
    run = ready / "run"
    printed = refused(["evaluate", run, "--device", "cpu"], capsys, run / "evaluation-test.json")
    assert "foreground mean" in printed
    assert "mean over images: mDice" in printed
    assert "wrote" not in printed


def test_check_shows_the_counts_and_problems(ready, locked, capsys):
    locked("check.png")
    printed = refused(["check", ready / "set"], capsys, ready / "set" / "check.png")
    assert "problems that spoil training" in printed


def test_predict_shows_the_summary(ready, tmp_path, locked, capsys):
    locked("areas.csv")
    words = ["predict", ready / "run", ready / "set" / "images", "--out", tmp_path / "out", "--device", "cpu"]
    assert "24 images" in refused(words, capsys, tmp_path / "out" / "areas.csv")
    assert len(list((tmp_path / "out" / "masks").iterdir())) == 24


def test_training_tells_its_best_score(ready, locked, capsys):
    locked("training.png")
    printed = refused(["train", "--resume", ready / "run"], capsys, ready / "run" / "figures" / "training.png")
    assert "best validation mDice" in printed
    assert "next: " not in printed


def test_study_prints_its_table(ready, tmp_path, locked, capsys):
    locked("table.csv")
    out = tmp_path / "study"
    flags = tiny_flags(ready / "set", "supervised")
    del flags[flags.index("--method.name") :]
    words = ["study", "seeds", "--recipe", "demo", "--methods", "supervised", "--seeds", 2, "--labelled", "2", *flags]
    printed = refused([*words, "--jobs", 0, "--out", out], capsys, out / "table.csv")
    assert "mDice, %" in printed


def test_bench_shows_what_it_measured(tmp_path, locked, capsys):
    locked("rows.jsonl")
    out = tmp_path / "rows.jsonl"
    words = ["bench", "--device", "cpu", "--op", "pseudo_label", "--sizes", "tiny", "--compare", "eager", "--out", out]
    assert "pseudo_label" in refused(words, capsys, out)
