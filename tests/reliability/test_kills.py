"""A few kills of what `python -m tests.reliability.kills` kills often."""

import random

import pytest

from tests.reliability.commands import Ambush, Command, site
from tests.reliability.kills import CHECKPOINT, Found, Killer, kill_saves
from tests.reliability.scenarios import SCENARIOS, Scenario, contents, differences

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "name",
    [
        "train-mean_teacher",
        "predict-slide",
        "predict-images",
        "prepare-folder",
        "study",
        "suggest-slide",
        "split-masks",
    ],
)
def test_what_was_killed_goes_on_to_the_same_bytes(name, shared, warm_python, tmp_path):
    killer, draw, found = Killer(SCENARIOS[name], shared, tmp_path, warm_python), random.Random(1), Found(name)
    killer.at_moment(draw, found)
    for _ in range(2):
        killer.before_operation(draw, found)
    assert found.faults == []
    assert found.kills >= 2


def test_a_checkpoint_is_whole_whenever_its_writer_is_killed(tmp_path):
    found = kill_saves(tmp_path, 3, seed=1)
    assert found.scenario == CHECKPOINT
    assert found.kills == 3
    assert found.faults == []


def test_the_killer_finds_what_does_not_hold(shared, warm_python, tmp_path):
    """A command that goes on by doing nothing has done nothing."""
    lazy = SCENARIOS["split"]
    lazy = Scenario(lazy.name, lazy.words, lambda shared, folder: None, lazy.makes)
    killer, found = Killer(lazy, shared, tmp_path, warm_python), Found("split")
    killer.before_operation(random.Random(0), found)
    assert len(found.faults) >= 1


def test_operations_are_seen_in_order_and_stopped_before(shared, tmp_path):
    def run(at: int) -> Command:
        folder = tmp_path / str(at)
        folder.mkdir()
        words = SCENARIOS["prepare-synthetic"].words(shared)
        return Command(words, folder, tmp_path / "said", Ambush(folder, at))

    whole = run(0)
    assert whole.end() == 0
    places = list(dict.fromkeys(map(site, whole.operations)))
    assert places[:3] == ["mkdir made", "mkdir made/images", "mkdir made/masks"]
    assert "rename made" in places[-2:]
    assert run(3).end() == -9
    assert sorted(path.name for path in (tmp_path / "3").rglob("*") if not path.name.startswith(".")) == ["images"]


def test_contents_are_compared_without_times(tmp_path):
    for name, seconds, loss in (("a", 1.0, 2.0), ("b", 3.0, 2.0), ("c", 1.0, 2.5)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(f'{{"step": 1, "seconds": {seconds}, "loss": {loss}}}\n')
    one, same, other = (contents(tmp_path / name) for name in "abc")
    assert differences(same, one) == []
    assert differences(other, one) == ["metrics.jsonl differs"]
    assert differences({}, one) == ["metrics.jsonl is missing"]
