"""What the studies vary, what they compare with, and what they refuse before anything runs."""

from dataclasses import replace

import pytest

from mpamatch.data.splits import Split
from mpamatch.engine.config import flags_for, load_config
from mpamatch.errors import InputError
from mpamatch.methods import METHODS
from mpamatch.methods.towers import Tower
from mpamatch.studies import plans
from mpamatch.studies.catalogue import STUDIES
from mpamatch.studies.plans import along, check_flags, default_values, planned_runs, points, possible, references
from mpamatch.studies.sweep import Sweep

CLASSES = ("background", "gland")
SWEEP = Sweep("out", "data", "demo")


def planned(name, *, methods=None, values=None, across=None, labelled="4", seeds=(0, 1), flags=()):
    study = STUDIES[name]
    across = across or (study.across.values if study.across else ())
    found = points(study, methods or study.methods, values or default_values(study)[0], labelled, across)
    splits = {(point.labelled, seed): f"{point.labelled}-{seed}" for point in found for seed in seeds}
    return found, planned_runs(study, found, seeds, splits, SWEEP, flags, CLASSES)


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_holds_on_the_defaults(name, monkeypatch):
    monkeypatch.setattr(plans, "text_encoders", lambda: {"minilm": "", "conch": "", "plip": "not here"})
    monkeypatch.setattr(Tower, "missing", lambda *_: "")
    study = STUDIES[name]
    values = study.values or ("minilm", "conch", "none")
    found, runs = planned(name)
    across = len(study.across.values) if study.across else 1
    assert len(runs) == 2 * len(found) == 2 * len(study.methods) * len(values) * across
    assert len({case.name for case in runs}) == len(runs)
    assert [case.seed for case in runs] == [0] * len(found) + [1] * len(found)
    assert set(study.methods) <= set(METHODS)
    assert study.reference is None or study.reference in values
    assert study.across is None or study.across.reference in study.across.values
    assert {along(study, point) for point in found} == set(study.methods if study.varies == "methods" else values)


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
    assert [method.text_encoder for method in methods] == ["minilm"] * 6 + ["none"]
    assert [method.prompts for method in methods] == [*STUDIES["prompts"].values[:6], "pathology"]
    assert [method.prompt_seed for method in methods] == [0, 0, 0, 0, 3, 3, 0]


def test_noise_is_drawn_with_the_seed_and_no_noise_is_not_drawn(monkeypatch):
    monkeypatch.setattr(plans, "text_encoders", lambda: {"minilm": ""})
    methods = [SWEEP.configuration(case).method for case in planned("prompt-noise", seeds=(3,))[1]]
    assert [method.prompt_noise for method in methods] == [0, 0.25, 0.5, 0.75, 1]
    assert [method.prompt_seed for method in methods] == [0, 3, 3, 3, 3]
    assert {method.prompts for method in methods} == {"pathology"}


def test_terms_differ_in_the_terms_alone(monkeypatch):
    monkeypatch.setattr(plans, "text_encoders", lambda: {"minilm": ""})
    flags = ["--method.second_opinion", "average", "--method.prompts", "generic", "--method.momentum", "0.9"]
    _, runs = planned("terms", seeds=(0,), flags=flags)
    assert [case.trial for case in runs] == ["terms-none", "terms-image", "terms-text", "terms-both"]
    none, image, text, both = (SWEEP.configuration(case).method for case in runs)
    assert [one.text_encoder for one in (none, image, text, both)] == ["none", "none", "minilm", "minilm"]
    assert [one.image_prototypes for one in (none, image, text, both)] == [True, True, False, True]
    assert [one.weight_prototype > 0 for one in (none, image, text, both)] == [False, True, True, True]
    assert [one.second_opinion for one in (none, image, text, both)] == ["none", "average", "average", "average"]
    assert [one.asked() for one in (none, image, text, both)] == [[], ["image"], ["text"], ["image"]]
    shared = {"text_encoder": "minilm", "prompts": "generic", "momentum": 0.9, "second_opinion": "average"}
    for one in (none, image, text):  # all else is equal, what a point does not use too
        same = {**shared, "image_prototypes": True, "weight_prototype": both.weight_prototype}
        assert replace(one, **same) == both
    with pytest.raises(InputError, match="unknown value of study terms 'images': did you mean 'image'"):
        planned("terms", values=("images",))


def test_text_encoders_are_those_at_hand_and_the_others_are_named(monkeypatch):
    here = {"minilm": "", "conch": "give it", "plip": "not here", "open_clip:MODEL": ""}
    monkeypatch.setattr(plans, "text_encoders", lambda: here)
    values, lacking = default_values(STUDIES["text-encoders"])
    assert values == ("minilm", "none")
    assert lacking == {"conch": "give it", "plip": "not here"}
    assert default_values(STUDIES["prompts"]) == (STUDIES["prompts"].values, {})


def test_a_text_encoder_brings_its_file_and_is_called_by_its_name(tmp_path):
    file = tmp_path / "CONCH.bin"
    file.write_bytes(b"")
    values = ("minilm", f"conch={file}", "open_clip:ViT-B-32=openai", "none")
    flags = ["--method.context_tokens", "1"]
    found, runs = planned("text-encoders", values=values, seeds=(0,), flags=flags)
    methods = [SWEEP.configuration(case).method for case in runs]
    assert [one.text_encoder for one in methods] == ["minilm", "conch", "open_clip:ViT-B-32", "none"]
    assert [one.text_weights for one in methods] == [None, str(file), "openai", None]
    assert [one.context_tokens for one in methods[:3]] == [1, 1, 1]
    study = STUDIES["text-encoders"]
    assert [along(study, point) for point in found] == ["minilm", "conch", "open_clip:ViT-B-32=openai", "none"]
    assert set(references(study, found).values()) == {("4", "mpamatch", "text_encoder-conch")}
    assert plans.reference_name(study, found) == "method.text_encoder conch"
    assert all(str(tmp_path) not in case.name for case in runs)


def test_what_a_text_encoder_lacks_is_told_before_anything_runs(tmp_path):
    with pytest.raises(InputError, match=r"method\.text_weights: CONCH is chosen, and its checkpoint is given on requ"):
        planned("text-encoders", values=("minilm", "conch"))
    with pytest.raises(InputError, match=r"nope\.bin: no such checkpoint file"):
        planned("text-encoders", values=("minilm", f"conch={tmp_path / 'nope.bin'}"))
    for name in ("one.bin", "two.bin"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match="--values names text_encoder-conch twice"):
        planned("text-encoders", values=[f"conch={tmp_path / name}" for name in ("one.bin", "two.bin")])


def test_a_grid_has_every_pair_and_one_point_that_all_are_compared_with(monkeypatch):
    monkeypatch.setattr(plans, "text_encoders", lambda: {"minilm": ""})
    study = STUDIES["threshold-tokens"]
    found, runs = planned("threshold-tokens", values=("0.9", "0.95"), across=("1", "2"), seeds=(0,))
    methods = [SWEEP.configuration(case).method for case in runs]
    assert [(one.threshold, one.context_tokens) for one in methods] == [(0.9, 1), (0.9, 2), (0.95, 1), (0.95, 2)]
    assert len({case.name for case in runs}) == 4
    compared = references(study, found)
    assert set(compared.values()) == {("4", "mpamatch", "threshold-0.95-context_tokens-1")}
    assert plans.reference_name(study, found) == "method.threshold 0.95 with method.context_tokens 1"
    found, _ = planned("threshold-tokens", values=("0.8", "0.9"), across=("4", "2"), seeds=(0,))
    assert set(references(study, found).values()) == {("4", "mpamatch", "threshold-0.8-context_tokens-4")}


def test_flags_for_text_reach_only_the_points_that_have_text(monkeypatch):
    monkeypatch.setattr(plans, "text_encoders", lambda: {"minilm": ""})
    flags = ["--method.context_tokens", "2", "--method.class_context", "true", "--method.weight_text", "0.5"]
    *with_text, none = [SWEEP.configuration(case).method for case in planned("prompts", seeds=(0,), flags=flags)[1]]
    assert {(one.context_tokens, one.class_context, one.weight_text) for one in with_text} == {(2, True, 0.5)}
    assert none == replace(with_text[0], text_encoder="none", context_tokens=0, class_context=False, weight_text=1.0)


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
        ("terms", ["--method.image_prototypes", "false"], "sets method.image_prototypes itself"),
        (
            "text-encoders",
            ["--method.text_weights", "f"],
            "sets method.text_weights itself; say what it takes with --values NAME=FILE",
        ),
        ("threshold-tokens", ["--method.context_tokens", "3"], "say what it takes with --across"),
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
        for field in study.own_fields:
            if field.startswith("method."):
                for method in study.methods:
                    assert hasattr(METHODS[method].configuration(), field.removeprefix("method."))
