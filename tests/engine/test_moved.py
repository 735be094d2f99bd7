"""A run finds its data from any folder, says so if they were moved, and goes on with them where they are now."""

import json
import shutil

import pytest
import yaml

from mpamatch.cli import main
from mpamatch.data.prepared import load_prepared
from mpamatch.data.splits import write_split
from tests.tiny import SPLIT, assert_same_run, make_set, tiny_config, tiny_flags, train_until

FIELDS = {"engine.steps": 6, "engine.save_every": 2, "engine.validate_every": 3}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run that was stopped at step 3, trained from a folder beside its data, which it was given as `data`."""
    make_set(tmp_path / "work" / "data")
    monkeypatch.chdir(tmp_path / "work")
    train_until(3, tiny_config("data", "fixmatch", FIELDS), tmp_path / "run")
    return tmp_path / "run"


def moved(run, tmp_path):
    (tmp_path / "work").rename(tmp_path / "elsewhere")
    return tmp_path / "elsewhere" / "data"


def test_from_another_folder(run, tmp_path, monkeypatch, capsys):
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["root"] == str(tmp_path / "work" / "data")
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", str(run), "--part", "validation"]) == 0
    assert main(["train", "--resume", str(run)]) == 0
    capsys.readouterr()


@pytest.mark.parametrize("words", [["evaluate"], ["train", "--resume"]])
def test_data_that_were_moved_are_named(words, run, tmp_path, capsys):
    moved(run, tmp_path)
    assert main([*words, str(run)]) == 2
    assert capsys.readouterr().err == (
        f"mpamatch: {run}: was trained on {tmp_path / 'work' / 'data'} (data.root in its config.yaml), "
        "where no folder is now: give the prepared set by --data FOLDER.\n"
    )


def test_it_goes_on_where_the_data_are_now(run, tmp_path):
    whole = tmp_path / "whole"
    assert main(["train", "--recipe", "demo", "--run", str(whole), *tiny_flags("data", "fixmatch", FIELDS)]) == 0
    data = moved(run, tmp_path)
    assert main(["evaluate", str(run), "--data", str(data), "--part", "validation"]) == 0
    assert main(["train", "--resume", str(run), "--data", str(data)]) == 0
    assert_same_run(run, whole)
    assert main(["evaluate", str(run), "--part", "validation"]) == 0  # config.yaml knows it now


@pytest.mark.parametrize("change", ["split", "set"])
def test_other_images_are_refused(change, run, tmp_path, capsys):
    prepared = load_prepared(tmp_path / "work" / "data")
    if change == "split":
        path = prepared.root / "splits" / f"{SPLIT}.json"
        other = write_split(prepared, "2", 1)
        other.replace(path)
        data = prepared.root
    else:
        data = tmp_path / "other"
        shutil.copytree(prepared.root, data)
        listing = json.loads((data / "parts.json").read_text())
        listing["parts"]["train"].reverse()  # draws count in this order
        (data / "parts.json").write_text(json.dumps(listing))
    before = (run / "config.yaml").read_bytes()
    capsys.readouterr()
    assert main(["train", "--resume", str(run), "--data", str(data)]) == 2
    assert "was trained on other images or classes than the set and split have now" in capsys.readouterr().err
    assert (run / "config.yaml").read_bytes() == before


def test_a_split_that_came_later_changes_nothing(run, tmp_path):
    write_split(load_prepared(tmp_path / "work" / "data"), "2", 1)
    assert main(["train", "--resume", str(run)]) == 0


def test_data_is_for_resume_alone(run, tmp_path, capsys):
    assert main(["train", "--data", "x", "--recipe", "demo"]) == 2
    assert "a new run takes --data.root" in capsys.readouterr().err
