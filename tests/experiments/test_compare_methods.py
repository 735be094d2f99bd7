"""The arithmetic of the comparison's table and the order of its runs; nothing is trained."""

import argparse
import json

import pytest

from experiments.compare_methods import main, make_runs, paired, table
from mpamatch.studies.sweep import StudyRun, read_results

# mDice by method over seeds 0, 1, 2; the differences to supervised are 1, 2, 3.
TEST = {"supervised": [0.80, 0.82, 0.84], "unimatch": [0.80, 0.83, 0.86], "mpamatch": [0.81, 0.84, 0.87]}


def result(method, seed, mdice, *, labelled="4", trial="recipe", tested=True, confident=0.5, seconds=0.25):
    return {
        "name": f"{method}-{trial}-{labelled}-seed{seed}",
        "method": method,
        "labelled": labelled,
        "seed": seed,
        "trial": trial,
        "validation_mdice": mdice - 0.1 if tested else mdice,
        "seconds": seconds,
        "confident": confident,
        **({"test": {"mdice": mdice}} if tested else {}),
    }


def rows(text):
    """The cells of each row by (labelled, method, trial)."""
    head, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return head, {tuple(line[:3]): dict(zip(head, line, strict=True)) for line in lines}


@pytest.fixture
def results():
    shares = {"supervised": None, "unimatch": 0.5, "mpamatch": 0.75}
    return [
        result(method, seed, value, confident=shares[method])
        for method, values in TEST.items()
        for seed, value in enumerate(values)
    ]


def test_means_deviations_and_paired_differences(results):
    head, cells = rows(table(results))
    names = "labelled|method|trial|seeds|test mDice|− supervised|− unimatch|object F1|object Dice|s/step|confident"
    assert head == names.split("|")
    of = cells["4", "mpamatch", "recipe"]
    assert of["seeds"] == "3"
    assert of["test mDice"] == "84.00 ± 3.00"
    # differences 1, 2, 3: mean 2, sd 1, half = t(.975, 2) 4.30265 · 1/√3 = 2.48414
    assert of["− supervised"] == "+2.00 [-0.48, +4.48]"
    # differences 1, 1, 1
    assert of["− unimatch"] == "+1.00 [+1.00, +1.00]"
    assert (of["s/step"], of["confident"]) == ("0.25", "75%")
    plain = cells["4", "supervised", "recipe"]
    assert plain["− supervised"] == plain["confident"] == "–"
    assert plain["test mDice"] == "82.00 ± 2.00"
    assert plain["− unimatch"] == "-1.00 [-3.48, +1.48]"


def test_object_scores_are_means_in_percent_of_runs_that_have_them(results):
    for share, one in zip((0.5, 0.7), results[:2], strict=True):
        one["test"]["objects"] = {"f1": share, "dice": share + 0.2, "hausdorff": 40.0}
    _, cells = rows(table(results))
    assert [cells["4", "supervised", "recipe"][name] for name in ("object F1", "object Dice")] == ["60.0", "80.0"]
    assert cells["4", "mpamatch", "recipe"]["object F1"] == "–"


def test_only_seeds_that_both_have_are_paired(results):
    results = [one for one in results if (one["method"], one["seed"]) != ("supervised", 0)]
    _, cells = rows(table(results))
    # differences 2 and 3: mean 2.5, sd .70711, half = t(.975, 1) 12.7062 · .70711/√2 = 6.3531
    assert cells["4", "mpamatch", "recipe"]["− supervised"] == "+2.50 [-3.85, +8.85]"


def test_paired_by_hand():
    assert paired({0: 3.0, 1: 1.0, 7: 9.0}, {1: 1.0, 0: 1.0}) == "+1.00 [-11.71, +13.71]"
    assert paired({0: 3.0, 1: 1.0}, {1: 1.0}) == "–"
    assert paired({}, {}) == "–"


def test_one_seed_has_no_deviation_and_no_interval():
    _, cells = rows(table([result("supervised", 0, 0.8), result("mpamatch", 0, 0.9)]))
    assert cells["4", "mpamatch", "recipe"]["test mDice"] == "90.00"
    assert cells["4", "mpamatch", "recipe"]["− supervised"] == "–"


def test_budgets_are_never_mixed(results):
    more = [result(m, s, v + 0.05, labelled="10%") for m, values in TEST.items() for s, v in enumerate(values)]
    _, cells = rows(table(results + more))
    assert cells["10%", "mpamatch", "recipe"]["test mDice"] == "89.00 ± 3.00"
    assert cells["10%", "mpamatch", "recipe"]["− supervised"] == "+2.00 [-0.48, +4.48]"
    assert cells["4", "mpamatch", "recipe"]["test mDice"] == "84.00 ± 3.00"


def test_validation_is_shown_as_long_as_one_run_is_not_tested(results):
    results.append(result("fixmatch", 0, 0.7, tested=False))
    head, cells = rows(table(results))
    assert "validation mDice" in head
    assert cells["4", "fixmatch", "recipe"]["validation mDice"] == "70.00"
    assert cells["4", "mpamatch", "recipe"]["validation mDice"] == "74.00 ± 3.00"


def test_trials_are_rows_of_their_own():
    lines = [result("mpamatch", seed, 0.5 + 0.1 * seed, trial=trial) for seed in (0, 1) for trial in ("a", "b")]
    _, cells = rows(table(lines))
    assert set(cells) == {("4", "mpamatch", "a"), ("4", "mpamatch", "b")}


def test_seconds_are_the_median_of_the_runs():
    lines = [result("mpamatch", seed, 0.5, seconds=value) for seed, value in enumerate((1.0, 2.0, 60.0))]
    assert rows(table(lines))[1]["4", "mpamatch", "recipe"]["s/step"] == "2.00"


def test_cases_come_in_whole_pairs_with_the_settings_of_their_trial():
    arguments = argparse.Namespace(seeds="0-1", labelled="4,10%", methods="supervised,mpamatch")
    trials = {"mpamatch": {"low": {"method.prototypes": 2}, "high": {"method.prototypes": 8}}}
    splits = {(labelled, seed): f"{labelled} of {seed}" for labelled in ("4", "10%") for seed in range(4)}
    cases = list(make_runs(arguments, splits, trials, ["--engine.steps", "9"]))
    assert len(cases) == 2 * 2 * 3
    assert [case.seed for case in cases] == [0] * 6 + [1] * 6
    assert cases[0] == StudyRun("supervised", "4", 0, "4 of 0", "recipe", ("--engine.steps", "9"))
    assert cases[1].flags == ("--engine.steps", "9", "--method.prototypes", "2")
    assert cases[5].name == "mpamatch-high-10pct-seed0"
    assert len({case.name for case in cases}) == len(cases)
    by_image = argparse.Namespace(**{**vars(arguments), "labelled": "8 images, 10% images"})
    drawn = {(labelled, seed): f"{labelled} of {seed}" for labelled in ("8 images", "10% images") for seed in (0, 1)}
    cases = list(make_runs(by_image, drawn, {}, []))
    assert [case.split for case in cases[:3]] == ["8 images of 0", "8 images of 0", "10% images of 0"]
    assert cases[-1].name == "mpamatch-recipe-10pct_images-seed1"
    only = argparse.Namespace(**{**vars(arguments), "seeds": "3"})
    assert [case.seed for case in make_runs(only, splits, {}, [])] == [3] * 4


def test_the_table_is_read_from_the_file(results, tmp_path, capsys):
    assert read_results(tmp_path) == []
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(one) + "\n" for one in results))
    assert main(["table", str(tmp_path)]) == 0
    assert capsys.readouterr().out == table(results) + "\n"
