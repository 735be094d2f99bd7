"""A method from outside the package, found by its entry point, is trained by --method.name like one of ours."""

import csv
import json
from importlib.metadata import EntryPoint

import pytest

from mpamatch import registry
from mpamatch.cli import main
from mpamatch.methods import METHODS
from tests.tiny import SPLIT, assert_same_run, make_set, tiny_config, tiny_flags, train_until

POINT = EntryPoint("confident", "tests.engine.outside:Confident", "mpamatch.methods")


@pytest.fixture
def installed(monkeypatch):
    """Another package is installed that brings the method."""
    monkeypatch.setattr(registry, "entry_points", lambda group: [POINT] if group == POINT.group else [])
    yield
    METHODS._classes.pop("confident", None)


@pytest.mark.slow
def test_it_trains_resumes_evaluates_and_predicts(installed, tmp_path, capsys):
    data, run = make_set(tmp_path / "data"), tmp_path / "run"
    fields = {"engine.steps": 4, "engine.save_every": 2, "data.split": SPLIT, "method.weight_entropy": 0.2}
    assert main(["train", "--recipe", "demo", "--run", str(run), *tiny_flags(data.root, "confident", fields)]) == 0
    said = capsys.readouterr().out
    assert "confident with small_conv" in said
    assert "CutMix" not in said  # two unlabelled images, but it mixes none

    again = tmp_path / "again"
    train_until(3, tiny_config(data.root, "confident", fields), again)
    assert main(["train", "--resume", str(again)]) == 0
    assert_same_run(run, again)

    assert main(["evaluate", str(run), "--device", "cpu"]) == 0
    assert 0 <= json.loads((run / "evaluation-test.json").read_text())["mdice"] <= 1
    out = tmp_path / "out"
    assert main(["predict", str(run), str(data.root / "images"), "--out", str(out), "--device", "cpu"]) == 0
    with (out / "areas.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == 24

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"labelled", "entropy", "sure"} <= set(lines[0])


def test_it_is_listed_and_its_fields_are_checked(installed, capsys):
    assert main(["info", "--json"]) == 0
    assert "confident" in json.loads(capsys.readouterr().out)["methods"]
    assert main(["train", "--fields"]) == 0
    assert "--method.weight_entropy (confident): of the mean entropy" in capsys.readouterr().out
    assert main(["train", "--recipe", "demo", "--method.name", "confident", "--method.weight_entropy", "-1"]) == 2
    assert "method.weight_entropy: expected at least 0, got -1." in capsys.readouterr().err


def test_without_the_package_it_is_unknown(capsys):
    assert main(["train", "--recipe", "demo", "--method.name", "confident"]) == 2
    assert "unknown method.name 'confident'" in capsys.readouterr().err
