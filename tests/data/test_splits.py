import argparse
import json
from itertools import pairwise

import numpy as np
import pytest

from mpamatch.commands import split as split_command
from mpamatch.data.prepared import Class, Item, Prepared, RawSet, training_lists, write_prepared
from mpamatch.data.splits import draw_split, draw_splits, listed_split, read_budget, save_split, write_split
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
    split = draw_split(prepared, read_budget(budget), 5)
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
    drawn = [draw_split(prepared, read_budget("10"), seed).groups for seed in range(5)]
    assert len(set(drawn)) == 5
    assert drawn == [draw_split(prepared, read_budget("10"), seed).groups for seed in range(5)]


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
        draw_split(prepared, read_budget(budget), 0)
    with pytest.raises(InputError, match="--seed"):
        draw_split(prepared, read_budget("4"), -1)


def test_many_splits_are_the_same_as_one_by_one(prepared):
    found = draw_splits(prepared, ["5%", "10%", "100%"], [0, 3])
    assert list(found) == [(budget, seed) for seed in (0, 3) for budget in ("5%", "10%", "100%")]
    for (budget, seed), split in found.items():
        assert split == draw_split(prepared, read_budget(budget), seed)
    for seed in (0, 3):
        sizes = [set(found[budget, seed].images) for budget in ("5%", "10%", "100%")]
        assert sizes[0] < sizes[1] < sizes[2]


# Images


def drawn_images(prepared, budget, seed=0):
    return draw_split(prepared, read_budget(budget, "--images"), seed)


@pytest.mark.parametrize(
    ("budget", "images", "name", "recorded"),
    [
        ("8", 8, "images-8-seed5", "8 images"),
        ("10%", 8, "images-10pct-seed5", "10% images"),
        (" 0.5 %", 1, "images-0.5pct-seed5", "0.5 % images"),
        ("100%", 78, "images-100pct-seed5", "100% images"),
        ("78", 78, "images-78-seed5", "78 images"),
    ],
)
def test_a_budget_of_images_counts_those_with_masks(prepared, budget, images, name, recorded):
    split = drawn_images(prepared, budget, 5)
    assert (split.name, split.budget, split.unit) == (name, recorded, "images")
    assert len(split.images) == len(set(split.images)) == images
    assert set(split.images) <= set(prepared.labelled("train"))
    assert set(split.groups) == {prepared.groups[image] for image in split.images}
    assert (split.of_groups, split.of_images) == (39, len(prepared.parts["train"]))
    assert draw_split(prepared, read_budget(recorded), 5) == split, "the recorded budget draws the same"


def test_smaller_budgets_of_images_lie_within_larger_ones(prepared):
    budgets = [f"{n} images" for n in (1, 2, 3, 8, 20, 77, 78)]
    splits = draw_splits(prepared, budgets, range(4))
    for seed in range(4):
        drawn = [set(splits[budget, seed].images) for budget in budgets]
        assert [len(images) for images in drawn] == [1, 2, 3, 8, 20, 77, 78]
        assert all(smaller < larger for smaller, larger in pairwise(drawn))
        assert splits["8 images", seed] == draw_split(prepared, read_budget("8 images"), seed)


def test_few_images_show_every_class_where_they_can(prepared):
    splits = draw_splits(prepared, ["3 images", "1 image"], range(8))
    assert len({splits["3 images", seed].images for seed in range(8)}) == 8
    for seed in range(8):
        assert splits["3 images", seed].missing_classes == ()
        assert len(splits["1 image", seed].missing_classes) == 2


def test_patients_and_images_are_budgets_of_their_own(prepared):
    splits = draw_splits(prepared, ["10%", "10% images"], [1])
    assert splits["10%", 1].name == "labelled-10pct-seed1"
    assert splits["10% images", 1].name == "images-10pct-seed1"
    of_patients = {image for image in prepared.labelled("train") if prepared.groups[image] in splits["10%", 1].groups}
    assert set(splits["10%", 1].images) == of_patients


@pytest.mark.parametrize(
    ("budget", "says"),
    [
        ("0", "--images 0: must be from 1 to 78, the training images with a mask."),
        ("79", "--images 79: must be from 1 to 78"),
        ("0%", "--images 0%: must be above 0"),
        ("8 images", "--images '8 images': must be a number of images (8) or a percentage (10%)."),
        ("8.5", "--images '8.5': must be a number of images"),
        ("", "--images '': must be"),
    ],
)
def test_impossible_budgets_of_images_are_refused(prepared, budget, says):
    with pytest.raises(InputError) as caught:
        drawn_images(prepared, budget)
    assert str(caught.value).startswith(says)


@pytest.mark.parametrize("budget", ["0 images", "8 imgs", "images", "8 images 2", "101 % images"])
def test_impossible_budgets_of_images_are_refused_for_labelled_too(prepared, budget):
    with pytest.raises(InputError, match="--labelled"):
        draw_splits(prepared, [budget], [0])


# Lists


def listed(prepared, names, folder, name="1_8 (labeled).txt"):
    path = folder / name
    path.write_text("\n".join(names))
    return path


def test_a_listed_split_is_what_training_reads(prepared, tmp_path):
    names = ["p03-0.png", "p05-2.bmp", "images/p05-0.png masks/p05-0.png"]
    split = listed_split(prepared, listed(prepared, names, tmp_path))
    assert split.name == "1_8-labeled"
    assert split.images == ("p03-0.png", "p05-0.png", "p05-2.png")
    assert split.groups == ("p03", "p05")
    assert split.missing_classes == ("a", "rare")
    content = json.loads(save_split(prepared, split).read_text())
    assert content == {
        "labelled": ["p03-0.png", "p05-0.png", "p05-2.png"],
        "groups": ["p03", "p05"],
        "seed": None,
        "budget": None,
        "list": "1_8 (labeled).txt",
    }
    labelled, unlabelled = training_lists(prepared, "1_8-labeled")
    assert labelled == split.images
    assert set(labelled) | set(unlabelled) == set(prepared.parts["train"])


def test_a_list_never_replaces_another_split(prepared, tmp_path):
    first = listed_split(prepared, listed(prepared, ["p03-0"], tmp_path), "mine")
    other = listed_split(prepared, listed(prepared, ["p04-0"], tmp_path), "mine")
    before = save_split(prepared, first).read_bytes()
    assert save_split(prepared, first).read_bytes() == before
    with pytest.raises(InputError, match=r"mine.json: is there already, with other images: give another --name"):
        save_split(prepared, other)
    assert (prepared.root / "splits" / "mine.json").read_bytes() == before


@pytest.mark.parametrize(
    ("given", "plain"),
    [("a/b", "a-b"), ("..", "list"), ("", "list"), ("x.json", "x"), (".hidden", "hidden"), ("glas 7:2", "glas-7-2")],
)
def test_a_name_that_is_no_plain_file_name_is_refused(prepared, given, plain, tmp_path):
    with pytest.raises(InputError) as caught:
        listed_split(prepared, listed(prepared, ["p03-0"], tmp_path), given)
    assert f"--name {given!r}: may hold letters" in str(caught.value)
    assert str(caught.value).endswith(f"such as {plain!r}.")


@pytest.mark.parametrize(
    ("name", "plain"), [("glas 7:2.txt", "glas-7-2"), ("labeled.v2.txt", "labeled.v2"), ("(...)", "list")]
)
def test_the_name_of_a_list_is_made_plain(prepared, name, plain, tmp_path):
    assert listed_split(prepared, listed(prepared, ["p03-0"], tmp_path, name)).name == plain


# The command


def run_split(prepared, capsys, **given):
    nothing = dict.fromkeys(("labelled", "images", "list", "masks", "name", "seed"))
    assert split_command.run(argparse.Namespace(data=str(prepared.root), **{**nothing, **given})) == 0
    return capsys.readouterr().out


def test_the_command_says_of_which_patients_images_are(prepared, capsys):
    said = run_split(prepared, capsys, images="8", seed=2)
    drawn = drawn_images(prepared, "8", 2)
    of_these = [image for image in prepared.parts["train"] if prepared.groups[image] in drawn.groups]
    assert f"8 of 79 images labelled, from {len(drawn.groups)} of 39 patients\n" in said
    assert f"note: {len(of_these) - 8} other training images of these patients stay in the pool as unlabelled" in said
    assert json.loads((prepared.root / "splits" / "images-8-seed2.json").read_text())["budget"] == "8 images"
    assert "stay in the pool" not in run_split(prepared, capsys, labelled="8")


def test_the_command_says_how_a_list_was_read(prepared, capsys, tmp_path):
    path = listed(prepared, ["p_3_0.png", "p05-1"], tmp_path)
    said = run_split(prepared, capsys, list=str(path), name="told")
    assert f"{prepared.root / 'splits' / 'told.json'}: 2 of 79 images labelled, from 2 of 39 patients\n" in said
    assert "note: 1 of the names are written otherwise in the set: p_3_0.png is taken as p03-0.png.\n" in said
    assert "no labelled image shows: a, rare\n" in said


def test_images_without_mask_of_labelled_patients_are_no_news(tmp_path, capsys):
    plain = np.zeros((16, 16, 3), np.uint8)
    items = [Item(f"i{n}", "p", "train", plain, np.eye(16, dtype=np.uint8) if n else None) for n in range(3)]
    classes = (Class("background", COLOUR), Class("a", COLOUR))
    one = write_prepared(tmp_path / "set", RawSet("set", classes, items, len(items), None, "", ""))
    assert "1 of 1 patients, 2 of 3 images labelled\n" in run_split(one, capsys, labelled="1")
    assert "stay in the pool" not in run_split(one, capsys, labelled="1")


def test_patients_that_are_not_known_are_not_counted(tmp_path, capsys):
    plain = np.zeros((16, 16, 3), np.uint8)
    items = [Item(f"i{n}", f"i{n}", "train", plain, np.eye(16, dtype=np.uint8)) for n in range(6)]
    classes = (Class("background", COLOUR), Class("a", COLOUR))
    alone = write_prepared(tmp_path / "set", RawSet("set", classes, items, len(items), None, "", ""))
    said = run_split(alone, capsys, images="2")
    assert "images-2-seed0.json: 2 of 6 images labelled\n" in said
    assert "note: 6 of 6 images each count as a patient of their own" in said


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "split: give one of --labelled (patients, 4 or 10%), --images (8 or 10%) and --list (a file of names)."),
        ({"labelled": "4", "images": "8"}, "(a file of names), not --labelled and --images."),
        ({"labelled": "4", "images": "8", "list": "x"}, "not --labelled and --images and --list."),
        ({"labelled": "4", "name": "x"}, "--name: names the split of a --list"),
        ({"list": "x", "seed": 0}, "--seed: nothing is drawn where --list names the images"),
    ],
)
def test_one_way_of_choosing_is_given(prepared, capsys, given, says):
    before = sorted((prepared.root / "splits").iterdir())
    with pytest.raises(InputError) as caught:
        run_split(prepared, capsys, **given)
    assert says in str(caught.value)
    assert sorted((prepared.root / "splits").iterdir()) == before


def test_the_command_says_what_it_drew(prepared, capsys):
    said = run_split(prepared, capsys, labelled="1", seed=1)
    drawn = draw_split(prepared, read_budget("1"), 1)
    assert f"1 of 39 patients, {len(drawn.images)} of {len(prepared.parts['train'])} images labelled\n" in said
    assert f"no labelled image shows: {', '.join(drawn.missing_classes)}" in said
    assert (prepared.root / "splits" / "labelled-1-seed1.json").is_file()
