"""The progress line shows what the method logs."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from mpamatch.engine.log import RunLog
from mpamatch.engine.loop import Trainer
from mpamatch.errors import WriteError
from mpamatch.methods import METHODS
from tests.reliability.scenarios import scalars
from tests.tiny import make_set, silent, tiny_config


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("set") / "tissue")


def test_losses_and_shares_are_shown_and_nothing_else(tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True)
    with RunLog(tmp_path, 10, 0, console, losses=("labelled", "entropy"), shares=("agreed",)) as log:
        log.write(1, {"loss": 2.0, "labelled": 1.0, "entropy": 0.5, "agreed": 0.25, "learning_rate": 0.1, "area": 3.0})
        assert log.bar.tasks[0].fields["parts"] == "loss 2.000  labelled 1.000  entropy 0.500  agreed 25%"


@pytest.mark.parametrize("method", ["pccs", "lpd", "mpamatch"])
def test_the_trainer_hands_over_what_its_method_declares(method, prepared, tmp_path):
    trainer = Trainer(tiny_config(prepared.root, method), prepared, silent())
    with trainer._log(tmp_path, 0) as log:
        declared = METHODS[method]
        assert log.losses == ("loss", *(declared.progress or declared.losses))
        assert log.shares == declared.shares


def test_a_run_killed_before_its_first_checkpoint_shows_every_step_once(tmp_path):
    killed = RunLog(tmp_path, 4, 0, silent())
    for step in (1, 2, 3):
        killed.write(step, {"loss": float(step)})
    killed.board.flush()  # and no end
    (events,) = tmp_path.glob("events.out.tfevents.*")
    # A process that goes on begins later; here both would be of one second, and by name the tenth before the ninth.
    start, second, rest = events.name.partition("tfevents.")[0], *events.name.split(".", 4)[3:]
    events.rename(tmp_path / f"{start}tfevents.{int(second) - 1:010d}.{rest}")
    with RunLog(tmp_path, 4, 0, silent()) as log:
        for step in (1, 2, 3, 4):
            log.write(step, {"loss": 10.0 * step})
    assert scalars(tmp_path)["train/loss"] == [(step, 10.0 * step) for step in (1, 2, 3, 4)]


def test_a_full_disk_is_said_with_the_run(tmp_path, monkeypatch):
    with RunLog(tmp_path, 4, 0, silent()) as log:

        def full(line):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(log, "file", SimpleNamespace(write=full))
            with pytest.raises(WriteError, match=r"metrics\.jsonl .* \(No space left on device\): make room.*--resume"):
                log.write(1, {"loss": 1.0})
