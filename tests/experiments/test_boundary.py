"""The comparison of object separation: pairs, its table, and the cut by shape that stands beside it."""

from typing import Any

import numpy as np

from experiments.boundary import ARMS, FLAGS, cut_by_shape, make_runs, painted, table
from tests.data.test_instances import two_discs


def result(arm: str, seed: int, f1: float) -> dict[str, Any]:
    objects = {"f1": f1, "dice": f1 / 2, "hausdorff": 40 * f1}
    return {"method": "supervised", "trial": arm, "seed": seed, "test": {"mdice": 0.9, "dice": {}, "objects": objects}}


def test_runs_come_in_pairs_that_differ_by_the_option_alone():
    runs = list(make_runs(["supervised", "fixmatch"], {0: "a", 1: "b"}, ("--engine.steps", "5")))
    assert [(run.method, run.seed, run.trial) for run in runs[:4]] == [
        ("supervised", 0, "without"),
        ("supervised", 0, "with"),
        ("supervised", 1, "without"),
        ("supervised", 1, "with"),
    ]
    for one, other in zip(runs[::2], runs[1::2], strict=True):
        assert one.split == other.split
        assert other.flags == (*one.flags, *ARMS["with"])
        assert one.flags == (*FLAGS, "--engine.steps", "5")


def test_the_table_has_means_and_paired_differences():
    found = [result("without", 0, 0.4), result("with", 0, 0.6), result("without", 1, 0.5), result("with", 1, 0.7)]
    lines = table([*found, result("shape", 0, 0.5), result("shape", 1, 0.5)]).splitlines()
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells[:5] == ["supervised", "object F1, %", "45.0", "50.0", "65.0"]
    assert cells[5] == "+20.0 [+20.0, +20.0]"
    assert cells[6].startswith("+15.0 [")
    assert table(found).splitlines()[2].split("|")[4].strip() == "–"
    assert len(lines) == 6


def test_a_cut_by_shape_parts_discs_at_their_waist_and_drops_specks():
    truth = two_discs(apart=18)
    mask = truth > 0
    mask[0, :5] = True  # a speck
    mask[36:39, 2:30] = True  # no maximum stands out: one object
    found = cut_by_shape(mask, 2.0)
    assert not found[0].any()
    assert len(np.unique(found)) == 4
    assert found[20, 15] != found[20, 45]
    assert len(np.unique(found[36:39, 2:30])) == 1


def test_every_object_has_a_colour_of_its_own_and_the_background_is_black():
    colours = painted(two_discs())
    assert not colours[0, 0].any()
    assert (colours[20, 15] != colours[20, 45]).any()
