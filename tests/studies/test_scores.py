"""Means, deviations and paired differences against numpy, and what stands in the table and the CSV file."""

import csv
import math

import numpy as np
import pytest

from mpamatch.studies import scores
from mpamatch.studies.scores import Row, by_key, cells, markdown, paired, part_scored, table_rows, write_csv

TEST = {"prototypes-1": [0.70, 0.72, 0.77], "prototypes-10": [0.71, 0.75, 0.76], "prototypes-20": [0.74, 0.70, 0.79]}


def result(trial, seed, mdice, *, tested=True, seconds=0.5):
    return {
        "method": "mpamatch",
        "labelled": "4",
        "trial": trial,
        "seed": seed,
        "validation_mdice": mdice + 0.1,
        "seconds": seconds,
        **({"test": {"mdice": mdice}} if tested else {}),
    }


def key(trial):
    return ("4", "mpamatch", trial)


REFERENCES = {key(trial): key("prototypes-10") for trial in TEST}


@pytest.fixture
def results():
    return [result(trial, seed, value) for trial, values in TEST.items() for seed, value in enumerate(values)]


def test_rows_are_what_numpy_says(results):
    found = table_rows(results, REFERENCES)
    assert [row.trial for row in found] == list(TEST)
    reference = 100 * np.array(TEST["prototypes-10"])
    for row in found:
        mine = 100 * np.array(TEST[row.trial])
        assert (row.seeds, row.seconds) == (3, 0.5)
        assert row.mean == pytest.approx(mine.mean(), abs=1e-12)
        assert row.sd == pytest.approx(mine.std(ddof=1), abs=1e-12)
        if row.trial == "prototypes-10":
            assert row.difference is None
            continue
        difference = mine - reference
        error = difference.std(ddof=1) / math.sqrt(3)
        assert row.difference.pairs == 3
        assert row.difference.mean == pytest.approx(difference.mean(), abs=1e-12)
        assert row.difference.error == pytest.approx(error, abs=1e-12)
        # t(.975, 2) = 4.302653
        assert row.difference.low == pytest.approx(difference.mean() - 4.302653 * error, abs=1e-5)
        assert row.difference.high == pytest.approx(difference.mean() + 4.302653 * error, abs=1e-5)


def test_pairing_takes_the_noise_of_the_draw_away():
    """Seeds that differ by 10 points and a method that is always 1 better: the difference is certain."""
    found = paired({0: 61.0, 1: 71.0, 2: 81.0}, {0: 60.0, 1: 70.0, 2: 80.0})
    assert (found.mean, found.error, found.low, found.high) == (1, 0, 1, 1)


def test_only_common_seeds_are_paired_and_one_is_not_enough():
    assert paired({0: 1.0, 1: 5.0, 2: 7.0}, {1: 1.0, 2: 1.0, 9: 0.0}).mean == 5
    assert paired({0: 1.0, 1: 5.0}, {1: 1.0}) is None
    assert paired({}, {}) is None


def test_one_seed_has_a_mean_alone(results):
    (row,) = [row for row in table_rows(results[:4], REFERENCES) if row.trial == "prototypes-10"]
    assert row.seeds == 1
    assert math.isnan(row.sd)
    assert cells(row)[4:7] == ["71.00", "–", "–"]


def test_a_point_without_a_result_has_no_row(results):
    found = table_rows(results, {**REFERENCES, key("prototypes-50"): key("prototypes-10")})
    assert [row.trial for row in found] == list(TEST)


def test_validation_counts_as_long_as_one_run_has_not_seen_the_test_part(results):
    assert part_scored(results) == "test"
    results[3] = result("prototypes-10", 0, 0.71, tested=False)
    assert part_scored(results) == "validation"
    assert by_key(results, "validation")[key("prototypes-1")][0] == pytest.approx(80)
    assert table_rows(results, REFERENCES)[0].mean == pytest.approx(100 * np.mean(TEST["prototypes-1"]) + 10)
    assert part_scored([]) == "validation"


def test_what_a_reader_sees(results):
    row = table_rows(results, REFERENCES)[2]
    # 74, 70, 79 against 71, 75, 76: differences 3, −5, 3, sd 4.6188, error 2.6667
    assert cells(row) == [
        *("4", "mpamatch", "prototypes-20", "3", "74.33 ± 4.51"),
        *("+0.33 ± 2.67", "[-11.14, +11.81]", "–", "0.50"),
    ]
    lines = markdown([row]).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| 4 | mpamatch | prototypes-20 | 3 | 74.33 ± 4.51 |")


def test_the_csv_file_holds_unrounded_numbers(results, tmp_path):
    found = table_rows(results, REFERENCES)
    write_csv(tmp_path / "table.csv", [*found, Row("10%", "mpamatch", "x", 1, 50.0, math.nan, None, 0.1)], "test")
    with (tmp_path / "table.csv").open(newline="") as file:
        first, reference, _, single = csv.DictReader(file)
    assert float(first["mean"]) == found[0].mean
    assert float(first["standard_error"]) == found[0].difference.error
    assert (first["part"], first["pairs"]) == ("test", "3")
    assert reference["difference"] == reference["low"] == ""
    assert (single["sd"], single["labelled"]) == ("", "10%")


def test_the_seconds_are_the_median_of_the_runs():
    lines = [result("prototypes-1", seed, 0.5, seconds=value) for seed, value in enumerate((1.0, 2.0, 60.0))]
    assert table_rows(lines, REFERENCES)[0].seconds == 2


def test_cells_stand_under_their_header(results):
    measures = {"prototypes/in_use": "in use", "prototypes/cosine_within": "cosine within"}
    for names in ({}, measures):
        assert len(cells(table_rows(results, REFERENCES)[0], names)) == len(scores.header(names))


def test_miou_and_measures_are_means_over_the_seeds_that_have_them(results, tmp_path):
    names = {"prototypes/in_use": "in use", "prototypes/text_cosine": "cosine of texts"}
    for one in results:
        one["test"]["miou"] = one["test"]["mdice"] - 0.2
        one["prototypes"] = {"prototypes/in_use": 0.5 + one["seed"] / 10}
    found = table_rows(results, REFERENCES, list(names))
    assert found[0].miou == pytest.approx(100 * (np.mean(TEST["prototypes-1"]) - 0.2))
    assert found[0].measures == {"prototypes/in_use": pytest.approx(0.6)}
    assert cells(found[0], names)[7:] == ["53.00", "0.60", "–", "0.50"]
    assert markdown(found, names).splitlines()[0].endswith("| mIoU, % | in use | cosine of texts | s/step |")
    write_csv(tmp_path / "table.csv", found, "test", list(names))
    with (tmp_path / "table.csv").open(newline="") as file:
        first = next(csv.DictReader(file))
    assert float(first["miou"]) == found[0].miou
    assert (float(first["prototypes/in_use"]), first["prototypes/text_cosine"]) == (pytest.approx(0.6), "")


def test_a_cosine_of_no_pair_is_no_number(results):
    for one in results:
        one["prototypes"] = {"prototypes/cosine_within": 0.0 if one["trial"] == "prototypes-1" else 0.5}
    names = {"prototypes/cosine_within": "cosine within"}
    assert [cells(row, names)[8] for row in table_rows(results, REFERENCES, list(names))] == ["–", "0.50", "0.50"]


def test_results_from_before_miou_was_kept_have_none(results):
    results[0] = result("prototypes-1", 0, 0.7, tested=False)
    assert all(math.isnan(row.miou) for row in table_rows(results, REFERENCES))
