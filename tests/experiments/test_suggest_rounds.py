"""The simulated rounds of labelling: pairs that begin alike, nested sets, and a summary from results by hand."""

import json
from pathlib import Path

import pytest

from experiments import suggest_rounds
from mpamatch.data.prepared import load_prepared, training_lists
from mpamatch.studies.sweep import Sweep, read_results
from tests.tiny import FIELDS, make_set

FLAGS = [
    word for name, value in FIELDS.items() if name != "data.unlabelled_batch" for word in (f"--{name}", str(value))
]


@pytest.mark.slow
def test_rounds_begin_alike_grow_and_go_on(tmp_path: Path, monkeypatch) -> None:
    prepared = make_set(tmp_path / "set")
    for split in (prepared.root / "splits").iterdir():
        split.unlink()
    sweep = Sweep(str(tmp_path / "out"), str(prepared.root), "demo", test=True)
    assert suggest_rounds.run_all(sweep, FLAGS, seeds=[3], rounds=(2, 4, 5)) == 0
    again = load_prepared(prepared.root)
    start = set(training_lists(again, "start-2-seed3")[0])
    assert len({prepared.groups[name] for name in start}) == 2
    for strategy in suggest_rounds.STRATEGIES:
        four, five = (set(training_lists(again, f"{strategy}-{size}-seed3")[0]) for size in (4, 5))
        assert start < four < five
        assert (len(four), len(five)) == (4, 5)
    results = read_results(tmp_path / "out")
    assert len(results) == 1 + 2 * 3
    monkeypatch.setattr("mpamatch.studies.sweep.do_run", None)  # nothing is done again
    assert suggest_rounds.run_all(sweep, FLAGS, seeds=[3], rounds=(2, 4, 5)) == 0
    found = suggest_rounds.summary(results)
    assert found["curves"]["random"]["2"] == found["curves"]["suggest"]["2"]
    suggest_rounds.draw(found, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000


def result(trial: str, size: int, seed: int, mdice: float) -> dict:
    return {
        "labelled": f"{size} images", "method": "supervised", "trial": trial, "seed": seed,
        "test": {"mdice": mdice / 100},
    }  # fmt: skip


def test_the_summary_is_that_of_pairs() -> None:
    results = []
    for seed, level in enumerate((80, 84, 91)):
        results.append(result("start", 4, seed, level))
        for trial, gains in (("random", (1, 1, 1)), ("uncertainty", (1, 2, 3)), ("suggest", (3, 3, 3))):
            results.append(result(trial, 8, seed, level + gains[seed]))
    found = suggest_rounds.summary(results)
    assert found["curves"]["random"]["8"]["mean"] == pytest.approx((81 + 85 + 92) / 3)
    assert found["minus_random"]["suggest"]["4"] == pytest.approx({"pairs": 3, "mean": 0, "low": 0, "high": 0})
    assert found["minus_random"]["suggest"]["8"] == pytest.approx({"pairs": 3, "mean": 2, "low": 2, "high": 2})
    # Differences 0, 1, 2: mean 1, standard error 1/√3, Student's t of 2 degrees 4.302653.
    half = 4.302652729911275 / 3**0.5
    assert found["minus_random"]["uncertainty"]["8"] == pytest.approx(
        {"pairs": 3, "mean": 1, "low": 1 - half, "high": 1 + half}
    )
    assert found["over_rounds"]["suggest minus uncertainty"]["mean"] == pytest.approx(1)
    assert "| suggest − random | +0.00 [+0.00, +0.00] | +2.00 [+2.00, +2.00] |" in suggest_rounds.table(found)
    assert json.loads(json.dumps(found))["labelled_images"] == [4, 8]
