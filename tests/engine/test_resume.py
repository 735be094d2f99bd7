"""A run that was stopped at any moment and resumed gives the numbers of one that never was."""

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mpamatch.data.feeds import dali_installed
from mpamatch.data.prepared import load_prepared
from mpamatch.engine.build import placed, settled
from mpamatch.engine.config import load_saved
from mpamatch.engine.log import RunLog
from mpamatch.engine.loop import resume, train
from mpamatch.methods import METHODS
from mpamatch.models.encoders import build_encoder
from tests.tiny import (
    assert_same_run,
    make_set,
    read_checkpoint,
    read_metrics,
    silent,
    tiny_config,
    tiny_flags,
    train_until,
)
from tests.tools.feeds import NEEDS_DALI

pytestmark = pytest.mark.slow

LONG = {"engine.steps": 24, "engine.save_every": 3, "engine.validate_every": 8}
# Name of a run that is killed → its method and fields.
KILLED = {
    "mpamatch": ("mpamatch", LONG),
    "mean_teacher": ("mean_teacher", LONG),
    "dali": ("unimatch", {**LONG, "data.feed": "dali", "data.weak_colour": 0.5}),
}
SHORT = {"engine.steps": 5, "engine.save_every": 2, "engine.validate_every": 4}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("set") / "tissue").root


def lines_of(run):
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


@pytest.fixture(scope="module")
def killed(root, warm_python, tmp_path_factory):
    """Trainings in processes of their own, each killed without warning at a random step."""
    folder = tmp_path_factory.mktemp("killed")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = {}
    for name, (method, fields) in KILLED.items():
        if name == "dali" and not dali_installed():
            continue
        words = ["train", "--recipe", "demo", "--run", str(folder / name), *tiny_flags(root, method, fields)]
        command = [warm_python, "-m", "mpamatch", *words]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        running[name] = process, random.randint(4, 16)
    waiting = dict(running)
    try:
        while waiting:
            for name, (process, step) in list(waiting.items()):
                if lines_of(folder / name) >= step:
                    time.sleep(random.uniform(0, 0.03))  # also in the middle of a step
                    process.kill()
                    del waiting[name]
                elif process.poll() is not None:
                    pytest.fail(f"{name} ended before it was killed:\n{process.stdout.read().decode()}")
            time.sleep(0.002)
    finally:
        for process, _ in running.values():
            process.kill()
            process.communicate()
    assert {process.returncode for process, _ in running.values()} == {-signal.SIGKILL}
    return folder


@pytest.mark.parametrize("name", ["mpamatch", "mean_teacher", pytest.param("dali", marks=NEEDS_DALI)])
def test_a_run_killed_by_sigkill_resumes_to_the_same_numbers(name, killed, root, tmp_path):
    method, fields = KILLED[name]
    done = read_checkpoint(killed / name / "checkpoints" / "last.safetensors")[1]["progress"]["step"]
    assert 0 < done < LONG["engine.steps"]
    train(tiny_config(root, method, fields), tmp_path / "whole", console=silent())
    resume(killed / name, console=silent())
    assert_same_run(tmp_path / "whole", killed / name)
    if name == "mpamatch":
        tensors, _ = read_checkpoint(killed / name / "checkpoints" / "last.safetensors")
        assert any("prototypes" in name for name in tensors)
    assert [line["step"] for line in read_metrics(killed / name) if "loss" in line] == [*range(1, 25)]


@pytest.mark.parametrize("method", METHODS)
def test_a_stopped_run_resumes_to_the_same_numbers(method, root, tmp_path):
    """Step 3 is after the checkpoint of step 2: it is done, forgotten and done again."""
    config = tiny_config(root, method, SHORT)
    train(config, tmp_path / "whole", console=silent())
    train_until(3, config, tmp_path / "stopped")
    assert lines_of(tmp_path / "stopped") == 3
    resume(tmp_path / "stopped", console=silent())
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize(
    ("method", "fields", "remembered"),
    [
        (
            "fixmatch",
            {
                "method.threshold": "adaptive",
                "method.align_classes": "true",
                "method.teacher": "true",
                "method.second_opinion": "average",
                "method.opinion_of": "[student, mirror]",
            },
            ["confidence", "probability", "labelled_share", "predicted_share"],
        ),
        ("unimatch_v2", {"method.threshold": "corrmatch", "method.unlabelled_ramp": 4}, ["confidence"]),
        ("mpamatch", {"method.weight_head": 0.5, "method.second_opinion": "agree"}, []),
    ],
    ids=str,
)
def test_a_stopped_run_remembers_thresholds_shares_and_teacher(method, fields, remembered, root, tmp_path):
    config = tiny_config(root, method, {**SHORT, **fields})
    train(config, tmp_path / "whole", console=silent())
    train_until(3, config, tmp_path / "stopped")
    tensors, _ = read_checkpoint(tmp_path / "stopped" / "checkpoints" / "last.safetensors")
    kept = [name for name in tensors if name.startswith("method/pseudo.")]
    assert sorted(name.rpartition(".")[2] for name in kept) == sorted(remembered)
    assert any(name.startswith("method/teacher.") for name in tensors) is (method != "mpamatch")
    resume(tmp_path / "stopped", console=silent())
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    after, _ = read_checkpoint(tmp_path / "whole" / "checkpoints" / "last.safetensors")
    assert all(not torch.equal(after[name], tensors[name]) for name in kept)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_channels_last_run_resumes_to_the_same_numbers(optimizer, root, tmp_path):
    """A checkpoint keeps values, not layouts, and a fused optimizer walks through memory: both must lie alike."""
    config = tiny_config(root, "supervised", {**SHORT, "engine.channels_last": "true", "engine.optimizer": optimizer})
    train(config, tmp_path / "whole", console=silent())
    train_until(3, config, tmp_path / "stopped")
    resume(tmp_path / "stopped", console=silent())
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_a_finished_run_resumes_to_itself(root, tmp_path):
    config = tiny_config(root, "supervised", {**SHORT, "engine.optimizer": "sgd", "engine.save_every": 1})
    train(config, tmp_path / "whole", console=silent())
    train_until(2, config, tmp_path / "stopped")
    once = shutil.copytree(tmp_path / "stopped", tmp_path / "once")
    resume(once, console=silent())
    resume(once, console=silent())  # nothing is left to do, and nothing changes
    assert_same_run(tmp_path / "whole", once)


def test_a_run_stopped_before_its_first_checkpoint_starts_again_from_its_pretrained_weights(root, tmp_path):
    torch.manual_seed(77)
    weights = tmp_path / "encoder.safetensors"
    save_file(build_encoder("small_conv", None, "batch").state_dict(), weights)
    config = tiny_config(root, "supervised", {"model.encoder_weights": weights, "engine.steps": 2})
    train(config, tmp_path / "whole", console=silent())
    train_until(1, config, tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "checkpoints" / "last.safetensors").exists()
    resume(tmp_path / "stopped", console=silent())
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_resuming_needs_a_tuned_encoders_first_weights_no_more(root, tmp_path):
    torch.manual_seed(77)
    weights = tmp_path / "encoder.safetensors"
    save_file(build_encoder("small_conv", None, "batch").state_dict(), weights)
    config = tiny_config(root, "supervised", {**SHORT, "model.encoder_weights": weights})
    train(config, tmp_path / "whole", console=silent())
    train_until(3, config, tmp_path / "stopped")
    weights.unlink()
    resume(tmp_path / "stopped", console=silent())
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_the_configuration_of_a_run_stays_as_it_was(root, tmp_path):
    config = tiny_config(root, "fixmatch", SHORT)
    train_until(3, config, tmp_path / "run")
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    resume(tmp_path / "run", console=silent())
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before
    assert load_saved(tmp_path / "run" / "config.yaml") == placed(settled(config, "synthetic"), load_prepared(root))


# metrics.jsonl


def written(run, text):
    run.mkdir(exist_ok=True)
    (run / "metrics.jsonl").write_text(text)
    return run


def test_lines_after_the_checkpoint_are_dropped(tmp_path):
    run = written(tmp_path, '{"step": 1, "loss": 3.0}\n{"step": 2}\n{"step": 2, "validation": {}}\n{"step": 3}\n')
    with RunLog(run, 5, 2, silent()):
        pass
    assert read_metrics(run) == [{"step": 1, "loss": 3.0}, {"step": 2}, {"step": 2, "validation": {}}]


@pytest.mark.parametrize("cut", ['{"step": 2, "lo', "{", '{"loss": 2.0}', "[1]", "\n", "\x00\x00\x00"])
def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path, cut):
    run = written(tmp_path, '{"step": 1, "loss": 3.0}\n' + cut)
    with RunLog(run, 5, 2, silent()) as log:
        log.write(3, {"loss": 1.0})
    assert read_metrics(run) == [{"step": 1, "loss": 3.0}, {"step": 3, "loss": 1.0}]


def test_a_new_run_in_an_old_folder_forgets_everything(tmp_path):
    run = written(tmp_path, '{"step": 1}\n{"step": 2}\n')
    with RunLog(run, 5, 0, silent()):
        pass
    assert read_metrics(run) == []


def test_lines_survive_where_they_cannot_be_rewritten(tmp_path, monkeypatch):
    """A kill or a full disk while the file is shortened leaves it as it was."""
    text = '{"step": 1}\n{"step": 2}\n{"step": 3}\n'
    run = written(tmp_path, text)

    def half(self, content, encoding=None):
        self.write_bytes(content.encode()[:5])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises((OSError, ValueError)):
        RunLog(run, 5, 2, silent())
    assert (run / "metrics.jsonl").read_text() == text
