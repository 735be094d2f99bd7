"""SIGTERM, as clusters send it: training saves and says so, all else cleans up; the exit code is 143."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mpamatch.cli import main
from mpamatch.signals import Terminated, postponed, terminable
from tests.tiny import assert_same_run, make_set, tiny_flags

FIELDS = {"engine.steps": 40, "engine.save_every": 1000, "engine.validate_every": 20, "data.workers": 1}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("set") / "tissue").root


def test_it_is_raised_where_the_process_is():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated, match="terminated"), terminable():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_it_waits_once_and_no_second_time():
    with postponed() as note:
        assert not note.asked
        signal.raise_signal(signal.SIGTERM)
        assert note.asked
        with pytest.raises(Terminated):
            signal.raise_signal(signal.SIGTERM)


def wait_for(path: Path, lines: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not path.is_file() or path.read_text().count("\n") < lines:
        assert process.poll() is None, process.returncode
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("whole_group", [False, True])  # clusters send it to every process of a job, loaders too
def test_training_is_saved_and_goes_on_to_the_same_weights(whole_group, root, tmp_path):
    words = ["train", "--recipe", "demo", *tiny_flags(root, "fixmatch", FIELDS)]
    run, whole = tmp_path / "run", tmp_path / "whole"
    with subprocess.Popen(
        [sys.executable, "-m", "mpamatch", *words, "--run", str(run)],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},  # other threads give other last bits
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as process:
        wait_for(run / "metrics.jsonl", 5, process)
        (os.killpg if whole_group else os.kill)(process.pid, signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert said.splitlines()[-1].startswith(f"mpamatch: terminated; {run} is saved at step ")
    assert said.endswith(f": go on with mpamatch train --resume {run}\n")
    assert "Traceback" not in said
    assert main(["train", "--resume", str(run)]) == 0
    assert main([*words, "--run", str(whole)]) == 0
    assert_same_run(run, whole)


@pytest.mark.slow
def test_other_commands_leave_nothing_half_written(tmp_path):
    command = [sys.executable, "-m", "mpamatch", "prepare", "synthetic", "set", "--images", "4000"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".set.*/images/*.png")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert said == "mpamatch: terminated\n"
    assert list(tmp_path.iterdir()) == []
