import argparse
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from mpamatch.commands import split as split_command
from mpamatch.data.prepared import Class, Item, Prepared, RawSet, training_lists, write_prepared
from mpamatch.data.splits import draw_split, draw_splits, write_split
from mpamatch.errors import InputError

COLOUR = (1, 2, 3)
RARE = 17  # the one patient of the training part that shows class 3


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Prepared:
    """40 training patients with 1 to 3 images (the last one's without mask), one image in each other part."""
    classes = tuple(Class(name, COLOUR) for name in ("background", "a", "b", "rare"))
    items = []
    for patient in range(40):
        for i in range(1 + patient % 3):
            label = np.zeros((16, 16), np.uint8)
            label[4:8] = 3 if patient == RARE else 1 + patient % 2
            label[15] = 255
            image = np.random.default_rng([patient, i]).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            stem = f"p{patient:02d}-{i}"
            items.append(Item(stem, f"p{patient:02d}", "train", image, None if patient == 39 else label))
    for part in ("validation", "test"):
        items.append(Item(part, part, part, np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16), np.uint8)))
    raw = RawSet("set", classes, items, len(items), None, "", "")
    return write_prepared(tmp_path_factory.mktemp("data") / "set", raw)


@pytest.mark.parametrize(
    ("budget", "groups", "name"),
    [
        ("10%", 4, "labelled-10pct-seed5"),
        ("4", 4, "labelled-4-seed5"),
        ("0.5 %", 1, "labelled-0.5pct-seed5"),
        ("100%", 39, "labelled-100pct-seed5"),
        ("39", 39, "labelled-39-seed5"),
        (" 12.5%", 5, "labelled-12.5pct-seed5"),
    ],
)
def test_a_budget_counts_patients_with_masks(prepared, budget, groups, name):
    split = draw_split(prepared, budget, 5)
    assert split.name == name
    assert len(split.groups) == groups
    assert split.of_groups == 39
    assert split.of_images == len(prepared.parts["train"])
    of_these = {image for image in prepared.labelled("train") if prepared.groups[image] in split.groups}
    assert set(split.images) == of_these, "a patient is labelled with all of their images"


def test_smaller_budgets_lie_within_larger_ones(prepared):
    budgets = ("1", "3", "10%", "5", "50%", "39")
    splits = draw_splits(prepared, budgets, range(3))
    for seed in range(3):
        drawn = [splits[budget, seed].groups for budget in budgets]
        assert [len(groups) for groups in drawn] == [1, 3, 4, 5, 20, 39]
        assert all(larger[: len(smaller)] == smaller for smaller, larger in pairwise(drawn))


def test_seeds_differ_and_repeat(prepared):
    drawn = [draw_split(prepared, "10", seed).groups for seed in range(5)]
    assert len(set(drawn)) == 5
    assert drawn == [draw_split(prepared, "10", seed).groups for seed in range(5)]


def test_a_small_budget_shows_every_class_where_it_can(prepared):
    splits = draw_splits(prepared, ["3", "1"], range(8))
    for seed in range(8):
        assert splits["3", seed].missing_classes == ()
        assert f"p{RARE}" in splits["3", seed].groups
        assert len(splits["1", seed].missing_classes) == 2


def test_the_file_is_what_training_reads(prepared):
    path = write_split(prepared, "4", 0)
    content = json.loads(path.read_text())
    assert path == prepared.root / "splits" / "labelled-4-seed0.json"
    assert content["seed"] == 0
    assert content["budget"] == "4"
    assert len(content["groups"]) == 4
    labelled, unlabelled = training_lists(prepared, "labelled-4-seed0")
    assert list(labelled) == content["labelled"]
    assert set(labelled) | set(unlabelled) == set(prepared.parts["train"])
    before = path.read_bytes()
    assert write_split(prepared, "4", 0).read_bytes() == before


@pytest.mark.parametrize("budget", ["0", "0%", "100.5%", "-1", "40", "ten", "", "%", "1.5", "nan%", "٣"])
def test_impossible_budgets_are_refused(prepared, budget):
    with pytest.raises(InputError, match="--labelled"):
        draw_split(prepared, budget, 0)
    with pytest.raises(InputError, match="--seed"):
        draw_split(prepared, "4", -1)


def test_the_command_says_what_it_drew(prepared, capsys):
    arguments = argparse.Namespace(data=str(prepared.root), labelled="1", seed=1)
    assert split_command.run(arguments) == 0
    said = capsys.readouterr().out
    drawn = draw_split(prepared, "1", 1)
    assert f"1 of 39 patients, {len(drawn.images)} of {len(prepared.parts['train'])} images labelled" in said
    assert f"no labelled image shows: {', '.join(drawn.missing_classes)}" in said
    assert (Path(prepared.root) / "splits" / "labelled-1-seed1.json").is_file()


def test_many_splits_are_the_same_as_one_by_one(prepared):
    found = draw_splits(prepared, ["5%", "10%", "100%"], [0, 3])
    assert list(found) == [(budget, seed) for seed in (0, 3) for budget in ("5%", "10%", "100%")]
    for (budget, seed), split in found.items():
        assert split == draw_split(prepared, budget, seed)
    for seed in (0, 3):
        sizes = [set(found[budget, seed].images) for budget in ("5%", "10%", "100%")]
        assert sizes[0] < sizes[1] < sizes[2]
