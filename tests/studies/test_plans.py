"""What the studies vary, what they compare with, and what they refuse before anything runs."""

from dataclasses import replace

import pytest

from mpamatch.data.splits import Split
from mpamatch.engine.config import flags_for, load_config
from mpamatch.errors import InputError
from mpamatch.methods import METHODS
from mpamatch.studies import plans
from mpamatch.studies.plans import STUDIES, along, check_flags, planned_runs, points, possible, references
from mpamatch.studies.sweep import Sweep

CLASSES = ("background", "gland")
SWEEP = Sweep("out", "data", "demo")


def planned(name, *, methods=None, values=None, labelled="4", seeds=(0, 1), flags=()):
    study = STUDIES[name]
    found = points(study, methods or study.methods, values or study.values, labelled)
    splits = {(point.labelled, seed): f"{point.labelled}-{seed}" for point in found for seed in seeds}
    return found, planned_runs(study, found, seeds, splits, SWEEP, flags, CLASSES)


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_holds_on_the_defaults(name):
    study = STUDIES[name]
    found, runs = planned(name)
    assert len(runs) == 2 * len(found) == 2 * len(study.methods) * len(study.values)
    assert len({case.name for case in runs}) == len(runs)
    assert [case.seed for case in runs] == [0] * len(found) + [1] * len(found)
    assert set(study.methods) <= set(METHODS)
    assert study.reference is None or study.reference in study.values
    assert {along(study, point) for point in found} == set(study.methods if study.varies == "methods" else study.values)


def test_the_points_of_a_field_differ_in_that_field_alone():
    _, runs = planned("prototypes", values=("1", "20"), flags=["--engine.steps", "7"])
    configs = [SWEEP.configuration(case) for case in runs]
    assert [config.method.prototypes for config in configs] == [1, 20] * 2
    assert [config.engine.seed for config in configs] == [0, 0, 1, 1]
    assert {(config.data.split, config.engine.seed) for config in configs} == {("4-0", 0), ("4-1", 1)}
    assert {config.engine.steps for config in configs} == {7}
    first = configs[0]
    for config in configs:
        assert replace(config.method, prototypes=1) == first.method
        assert replace(config.engine, seed=0) == first.engine
        assert replace(config.data, split="4-0") == first.data
        assert config.model == first.model


def test_thresholds_and_tokens_reach_the_method():
    assert [SWEEP.configuration(case).method.threshold for case in planned("threshold")[1][:4]] == [
        0.8,
        0.9,
        0.95,
        0.99,
    ]
    assert [SWEEP.configuration(case).method.context_tokens for case in planned("tokens")[1][:4]] == [0, 1, 2, 4]


def test_prompts_switch_text_on_and_off_and_draw_with_the_seed(monkeypatch):
    monkeypatch.setattr(plans, "text_encoders", lambda: {"minilm": ""})
    methods = [SWEEP.configuration(case).method for case in planned("prompts", seeds=(3,))[1]]
    assert [method.text_encoder for method in methods] == ["minilm"] * 4 + ["none"]
    assert [method.prompts for method in methods] == ["pathology", "generic", "shuffled", "random", "pathology"]
    assert [method.prompt_seed for method in methods] == [0, 0, 3, 3, 0]


def test_an_encoder_that_was_named_is_kept(monkeypatch):
    monkeypatch.setattr(plans, "text_encoders", lambda: {"minilm": "not here"})
    _, runs = planned("tokens", values=("0",), flags=["--method.text_encoder", "open_clip:ViT-B-32"])
    assert {SWEEP.configuration(case).method.text_encoder for case in runs} == {"open_clip:ViT-B-32"}
    with pytest.raises(InputError, match=r"study tokens: needs text prototypes.*not here"):
        planned("tokens")


def test_descriptions_are_looked_at_before_anything_runs(monkeypatch):
    monkeypatch.setattr(plans, "text_encoders", lambda: {"minilm": ""})
    with pytest.raises(InputError, match="no descriptions were written for recipe 'nowhere'"):
        planned("prompts", flags=["--method.prompt_set", "nowhere"])


def test_a_value_is_compared_with_the_reference_of_its_method():
    found, _ = planned("threshold", methods=("fixmatch", "unimatch"), values=("0.5", "0.95"))
    assert references(STUDIES["threshold"], found) == {
        ("4", method, f"threshold-{value}"): ("4", method, "threshold-0.95")
        for method in ("fixmatch", "unimatch")
        for value in ("0.5", "0.95")
    }


def test_the_first_value_takes_the_place_of_a_reference_that_is_not_run():
    found, _ = planned("threshold", values=("0.5", "0.6"))
    assert set(references(STUDIES["threshold"], found).values()) == {("4", "mpamatch", "threshold-0.5")}
    assert plans.reference_name(STUDIES["threshold"], found) == "method.threshold 0.5"


def test_methods_are_compared_with_the_first_on_the_same_labelled_images():
    found, _ = planned("labels", values=("5%", "10%"))
    compared = references(STUDIES["labels"], found)
    assert compared["5%", "mpamatch", "recipe"] == ("5%", "supervised", "recipe")
    assert compared["10%", "supervised", "recipe"] == ("10%", "supervised", "recipe")
    assert plans.reference_name(STUDIES["labels"], found) == "supervised on the same labelled images"


@pytest.mark.parametrize(
    ("values", "axis"),
    [
        (("5%", "4"), "labelled patients"),
        (("8 images", "10% images"), "labelled images"),
        (("4", "8 images"), "labelled images or patients"),
    ],
)
def test_the_axis_of_labels_says_what_its_budgets_count(values, axis):
    found, runs = planned("labels", values=values)
    assert plans.axis_name(STUDIES["labels"], found) == axis
    assert len({run.name for run in runs}) == len(runs)
    assert plans.axis_name(STUDIES["tokens"], found) == "CoOp context tokens"


def test_a_budget_that_leaves_nothing_unlabelled_is_for_supervised_training():
    found, _ = planned("labels", values=("10%", "100%"))
    splits = {
        (budget, 0): Split("", budget, 0, (), tuple("abcd"[:images]), 4, 4, ())
        for budget, images in (("10%", 1), ("100%", 4))
    }
    kept = [(point.method, point.labelled) for point in possible(found, splits)]
    assert kept == [("supervised", "10%"), ("mpamatch", "10%"), ("supervised", "100%")]


def test_a_field_reaches_the_methods_that_have_it():
    flags = ["--engine.steps", "5", "--method.prototypes", "3", "--method.threshold=0.9", "--data.crop", "64"]
    threshold = ["--method.threshold", "0.9"]
    assert flags_for("mpamatch", flags) == [*flags[:4], *threshold, *flags[5:]]
    assert flags_for("fixmatch", flags) == ["--engine.steps", "5", *threshold, "--data.crop", "64"]
    assert flags_for("supervised", flags) == ["--engine.steps", "5", "--data.crop", "64"]
    for method in METHODS:
        load_config("demo", None, [*flags_for(method, flags), "--method.name", method])


@pytest.mark.parametrize(
    ("name", "flags", "says"),
    [
        ("prototypes", ["--method.prototypes", "3"], "sets method.prototypes itself; say what it takes with --values"),
        ("seeds", ["--method.name=fixmatch"], "sets method.name itself; say what it takes with --methods"),
        ("labels", ["--engine.seed", "3"], "sets engine.seed itself; say what it takes with --seeds"),
        ("seeds", ["--method.treshold", "3"], "did you mean 'method.threshold'"),
    ],
)
def test_what_a_study_sets_itself_is_refused(name, flags, says):
    with pytest.raises(InputError, match=says):
        check_flags(STUDIES[name], STUDIES[name].methods, flags)


def test_values_of_a_wrong_type_are_refused():
    with pytest.raises(InputError, match=r"method\.prototypes: .*many"):
        planned("prototypes", values=("many",))
    with pytest.raises(InputError, match=r"method\.prototypes: does nothing for supervised"):
        planned("prototypes", methods=("supervised",))


def test_names_of_runs_are_names_of_folders():
    _, runs = planned(
        "prompts", values=("pathology", "none"), labelled="10%", flags=["--method.text_encoder", "minilm"]
    )
    assert runs[0].name == "mpamatch-prompts-pathology-10pct-seed0"
    assert (
        "/"
        not in planned_runs(
            STUDIES["prototypes"],
            points(STUDIES["prototypes"], ["mpamatch"], ["1"], "a/b c"),
            [0],
            {("a/b c", 0): "x"},
            SWEEP,
            [],
            CLASSES,
        )[0].name
    )


def test_every_field_that_is_swept_exists():
    for study in STUDIES.values():
        if study.varies.startswith("method."):
            for method in study.methods:
                assert hasattr(METHODS[method].configuration(), study.varies.removeprefix("method."))
