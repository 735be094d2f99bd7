import dataclasses
import json
import re

import pytest
import yaml

from mpamatch.data.config import DataConfig
from mpamatch.data.kinds import kinds
from mpamatch.data.sources import acdc
from mpamatch.data.sources.ebhi_seg import LESIONS
from mpamatch.engine.config import (
    EngineConfig,
    field_help,
    flags_for,
    full_names,
    load_config,
    load_saved,
    recipe_for,
    recipes,
    save_config,
)
from mpamatch.errors import InputError
from mpamatch.methods import METHODS
from mpamatch.methods.mpamatch import MPAMatchConfig
from mpamatch.models.network import NETWORKS, NetworkConfig
from mpamatch.models.prompt import load_descriptions
from mpamatch.models.transunet import TransUNetConfig
from mpamatch.settings import fields_of


@pytest.fixture
def written(tmp_path):
    """Writes a configuration file of one's own and gives its path."""

    def write(text: str):
        path = tmp_path / "own.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def one_sentence(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 2000
    return text


# What counts: defaults, then the recipe, then the file, then flags


def test_without_anything_the_defaults_of_the_dataclasses_hold():
    config = load_config()
    assert config.data == DataConfig()
    assert config.model == TransUNetConfig()
    assert config.method == MPAMatchConfig()
    assert config.engine == EngineConfig()
    assert config.recipe == "run"


def test_recipe_over_defaults_file_over_recipe_flags_over_file(written):
    file = written("engine: {steps: 7, learning_rate: 0.5}\ndata: {batch: 9}\n")
    config = load_config("demo", file, ["--engine.steps", "3"])
    assert config.engine.steps == 3  # flag; file 7, recipe 160
    assert config.engine.learning_rate == 0.5  # file; recipe .002
    assert config.data.batch == 9  # file; recipe 4
    assert config.data.crop == 96  # recipe; default 256
    assert config.engine.power == EngineConfig().power  # default
    assert config.recipe == "demo"
    assert load_config(file=file).recipe == "own"


def test_a_file_takes_the_words_of_the_command_line(written):
    """YAML reads 32 as a number and true as a truth value: here they are words, as in the flags."""
    file = load_config(file=written("engine: {precision: 32, channels_last: true}\ndata: {split: 5}\n"))
    words = ["--engine.precision", "32", "--engine.channels_last", "true", "--data.split", "5"]
    flags = load_config(flags=words)
    assert (file.engine, file.data) == (flags.engine, flags.data)
    assert (file.engine.precision, file.engine.channels_last, file.data.split) == ("32", "true", "5")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--model.lora_rank", "4"], "model.lora_rank: does nothing unless model.tuning is lora."),
        (
            ["--method.name", "fixmatch", "--method.threshold_momentum", ".9"],
            "method.threshold_momentum: does nothing unless method.threshold is adaptive or corrmatch, or "
            "class_thresholds is set.",
        ),
        (
            ["--method.name", "unimatch", "--method.share_momentum", ".9"],
            "method.share_momentum: does nothing unless method.align_classes is set.",
        ),
        (
            ["--method.name", "fixmatch", "--method.teacher", "true", "--method.opinion_of", "[student]"],
            "method.opinion_of: does nothing unless method.second_opinion is agree or average.",
        ),
        (
            ["--method.opinion_of", "[image]"],
            "method.opinion_of: does nothing unless method.second_opinion is agree or",
        ),
        (["--method.teacher_decay", ".9"], "method.teacher_decay: does nothing unless method.teacher is set."),
        (["--method.head_share", ".2"], "method.head_share: does nothing unless method.weight_head is set."),
        (
            ["--method.name", "unimatch_v2", "--method.teacher", "false"],
            "method.teacher: does nothing for unimatch_v2;",
        ),
        (
            ["--method.name", "unimatch_v2", "--method.weight_head", "1"],
            "method.weight_head: does nothing for unimatch",
        ),
        (["--method.name", "mean_teacher", "--method.align_classes", "true"], "method.align_classes: does nothing for"),
        (["--method.prompts", "generic"], "method.prompts: does nothing unless method.text_encoder is set."),
        (
            ["--method.assignment", "nearest", "--method.epsilon", ".1"],
            "method.epsilon: does nothing unless method.assi",
        ),
        (["--model.map_weights", "[1, 1, 1]"], "model.map_weights: does nothing for mpamatch; it is a field of lpd."),
        (["--method.name", "supervised", "--method.threshold", ".9"], "method.threshold: does nothing for supervised"),
        (["--method.name", "supervised", "--data.unlabelled_batch", "2"], "which takes no unlabelled images."),
    ],
)
def test_a_field_that_would_do_nothing_is_refused(flags, says):
    with pytest.raises(InputError) as error:
        load_config("demo", None, flags)
    assert says in one_sentence(error)


@pytest.mark.parametrize(
    "flags",
    [
        ["--method.name", "fixmatch", "--method.threshold", "adaptive", "--method.threshold_momentum", ".9"],
        ["--method.name", "unimatch_v2", "--method.threshold", "corrmatch", "--method.threshold_momentum", ".9"],
        ["--method.name", "unimatch", "--method.class_thresholds", "true", "--method.threshold_momentum", ".9"],
        ["--method.name", "unimatch_v2", "--method.teacher_decay", ".9"],
        ["--method.name", "unimatch", "--method.align_classes", "true", "--method.share_momentum", ".9"],
        ["--method.name", "fixmatch", "--method.teacher", "true", "--method.teacher_decay", ".9"],
        ["--method.second_opinion", "average", "--method.opinion_of", "[image, dropped]"],
        ["--method.weight_head", ".5", "--method.head_share", ".2"],
    ],
)
def test_with_the_switch_that_it_belongs_to_a_field_is_taken_and_saved(flags, tmp_path):
    config = load_config("demo", None, flags)
    save_config(config, tmp_path / "config.yaml")
    assert load_saved(tmp_path / "config.yaml") == config
    content = yaml.safe_load((tmp_path / "config.yaml").read_text())["method"]
    assert content.keys() == fields_of(type(config.method)).keys()
    assert yaml.safe_load(flags[-1]) == content[flags[-2].removeprefix("--method.")]


def test_an_idle_field_of_a_file_is_refused_unless_it_is_the_default_or_saved_by_a_run(written, tmp_path):
    with pytest.raises(InputError, match=r"model\.lora_rank: does nothing unless model\.tuning is lora\."):
        load_config(file=written("model: {lora_rank: 4}"))
    assert load_config(file=written("model: {lora_rank: 8}")).model.lora_rank == 8
    config = load_config("demo")  # whose prompt_set waits for a text encoder
    save_config(config, tmp_path / "config.yaml")
    assert load_config(file=tmp_path / "config.yaml").method == config.method


def test_a_run_from_before_networks_had_settings_of_their_own_is_read(tmp_path):
    save_config(load_config("ebhi-seg-weak"), tmp_path / "config.yaml")
    content = yaml.safe_load((tmp_path / "config.yaml").read_text())
    content["model"] |= {"head": "maps", "decoder_width": 512, "decoder_channels": [256, 128, 64, 16], "head_kernel": 1}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    assert load_saved(tmp_path / "config.yaml") == load_config("ebhi-seg-weak")


def test_numbers_as_people_write_them(written):
    """YAML takes 1e-3, which has no dot, for a text."""
    assert load_config(file=written("engine: {learning_rate: 1e-3, power: 1}")).engine.learning_rate == 0.001
    assert load_config(flags=["--engine.learning_rate", "1e-3"]).engine.learning_rate == 0.001


def test_flags_take_a_value_after_a_space_or_an_equals_sign():
    config = load_config(flags=["--engine.steps=5", "--data.zoom", "[0.5, 2]", "--engine.compile", "default"])
    assert config.engine.steps == 5
    assert config.data.zoom == [0.5, 2.0]
    assert config.engine.compile == "default"


def test_a_name_that_no_other_field_ends_in_may_stand_alone():
    flags = ["--steps", "3", "--threshold=0.7", "--encoder_weights", "UNI.bin", "--text_encoder", "minilm", "--name"]
    config = load_config("demo", None, [*flags, "mpamatch"])
    assert (config.engine.steps, config.method.threshold, config.model.encoder_weights) == (3, 0.7, "UNI.bin")
    assert config == load_config("demo", None, full_names([*flags, "mpamatch"]))
    assert full_names(["--name", "lpd", "--map_weights=[1,1,1]"]) == [
        "--method.name",
        "lpd",
        "--model.map_weights",
        "[1,1,1]",
    ]


def test_a_short_name_means_the_same_whatever_the_method():
    with pytest.raises(InputError, match=r"method\.threshold: does nothing for supervised"):
        load_config("demo", None, ["--method.name", "supervised", "--threshold", "0.9"])
    assert flags_for("supervised", ["--threshold", "0.9", "--steps", "3"]) == ["--engine.steps", "3"]


@pytest.mark.parametrize("method", ["mpamatch", "lpd", "supervised"])
def test_a_short_name_of_several_fields_is_refused_with_all_of_them(method):
    says = "--prototypes: is short for method.prototypes and for model.prototypes; write out which."
    with pytest.raises(InputError, match=re.escape(says)):
        load_config(None, None, ["--method.name", method, "--prototypes", "3"])


@pytest.mark.parametrize(
    ("flag", "says"),
    [("--encoder_wieghts", "did you mean 'encoder_weights'?"), ("--recip", "did you mean 'recipe'?")],
)
def test_a_short_name_of_no_field_names_the_nearest(flag, says):
    with pytest.raises(InputError, match=re.escape(says)):
        load_config(None, None, [flag, "3"])


def test_the_last_of_two_equal_flags_counts_also_for_the_method():
    flags = ["--method.name", "fixmatch", "--method.name", "unimatch", "--engine.steps", "4", "--engine.steps", "5"]
    config = load_config(flags=flags)
    assert isinstance(config.method, METHODS["unimatch"].configuration)
    assert config.method.name == "unimatch"
    assert config.engine.steps == 5


# Methods


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("recipe", recipes())
def test_every_recipe_holds_for_every_method_and_is_saved_as_it_was(recipe, method, tmp_path):
    config = load_config(recipe, None, ["--method.name", method])
    assert type(config.method) is METHODS[method].configuration
    assert config.method.name == method
    save_config(config, tmp_path / "config.yaml")
    assert load_saved(tmp_path / "config.yaml") == config


OF_MASKS = ("demo", "folder", "glas", "kpi", "busi", "acdc", "ebhi-seg-gland", "ebhi-seg-cancer", "ebhi-seg-classes")


def _pccs_stages(recipe, gpu, monkeypatch):
    monkeypatch.setattr("mpamatch.engine.config.on_gpu", lambda device: gpu)
    config = load_config(recipe, None, ["--method.name", "pccs"])
    return config.method.start, config.method.contrast_start, config.method.ramp, config.engine.steps


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("recipe", OF_MASKS)
def test_the_stages_of_pccs_end_before_the_steps_of_a_recipe_do(recipe, gpu, monkeypatch):
    """With the paper's ramp of 30,000 the consistency would end at .0013 of its weight after 2,000 steps; in recipes it
    has all of it for a third of the steps at least."""
    start, contrast_start, ramp, steps = _pccs_stages(recipe, gpu, monkeypatch)
    assert 0 < start < contrast_start < ramp <= 2 * steps / 3


@pytest.mark.parametrize("recipe", ["busi", "acdc"])
def test_the_recipes_of_the_pccs_paper_have_stages_of_their_own_steps(recipe, monkeypatch):
    assert _pccs_stages(recipe, False, monkeypatch) == (100, 200, 400, 600)
    assert _pccs_stages(recipe, True, monkeypatch) == (400, 1000, 2000, 4000)


def test_the_recipes_that_prepare_names_exist():
    named = {recipe for kind in kinds().values() for recipe in kind.recipes.values()}
    assert named | {"folder", "demo"} <= set(recipes())


@pytest.mark.parametrize("recipe", [name for name in recipes() if name not in ("folder", "paper")])
def test_the_prompt_set_of_a_recipe_is_there(recipe):
    prompt_set = load_config(recipe, None, ["--method.name", "mpamatch"]).method.prompt_set
    foreground = {
        "acdc": acdc.CLASSES[1:],
        "bcss-wsss": ["tumour", "stroma", "lymphocytes", "necrosis"],
        "busi": ["lesion"],
        "ebhi-seg-cancer": ["cancer"],
        "ebhi-seg-classes": LESIONS,
        "ebhi-seg-weak": LESIONS,
        "kpi": ["glomerulus"],
    }.get(recipe, ["gland"])
    assert all(load_descriptions("pathology", prompt_set, ["background", *foreground]))


def test_methods_section_gives_each_method_its_own_settings(written):
    file = written("methods:\n  fixmatch: {threshold: 0.7}\n  mean_teacher: {ramp: 3}\nmethod: {name: fixmatch}\n")
    assert load_config(file=file).method.threshold == 0.7
    assert load_config(file=file, flags=["--method.name", "mean_teacher"]).method.ramp == 3
    assert load_config(file=file, flags=["--method.name", "unimatch"]).method == METHODS["unimatch"].configuration()


def test_settings_of_the_method_stand_over_those_of_methods(written):
    file = written("methods: {fixmatch: {threshold: 0.7}}\nmethod: {name: fixmatch, threshold: 0.8}\n")
    assert load_config(file=file).method.threshold == 0.8
    assert load_config(file=file, flags=["--method.threshold", "0.9"]).method.threshold == 0.9


def test_settings_of_one_method_do_not_reach_another(written):
    """`method: {name: mpamatch, start: 5}` and a flag for another method: that one has no field `start`."""
    file = written("method: {name: mpamatch, start: 5, threshold: 0.5}\n")
    config = load_config(file=file, flags=["--method.name", "fixmatch"])
    assert config.method == METHODS["fixmatch"].configuration()


def test_settings_of_a_file_for_the_method_of_the_recipe_do_not_reach_another(written):
    file = written("method: {threshold: 0.9}")
    assert load_config("demo", file).method.threshold == 0.9
    config = load_config("demo", file, ["--method.name", "supervised"])
    assert config.method == METHODS["supervised"].configuration()
    assert load_config("demo", file, ["--method.name", "unimatch"]) == load_config(
        "demo", None, ["--method.name", "unimatch"]
    )


# Saved and read back


def test_what_is_saved_reads_back_equal_where_every_field_was_changed(tmp_path):
    flags = ["--data.root", "d", "--data.split", "labelled-1-seed0", "--data.zoom", "[0.3, 3]", "--data.scale", "0.7"]
    flags += ["--model.encoder_weights", "w.pt", "--model.decoder_channels", "[4, 3, 2, 1]", "--model.norm", "group"]
    flags += ["--engine.precision", "bf16", "--engine.compile", "default", "--engine.learning_rate", "1e-7"]
    flags += ["--method.name", "mpamatch", "--method.same_class_negatives", "false", "--method.epsilon", "0.1234567890"]
    config = load_config("demo", None, flags)
    save_config(config, tmp_path / "config.yaml")
    assert load_saved(tmp_path / "config.yaml") == config
    content = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert content["engine"] == dataclasses.asdict(config.engine)
    assert content["recipe"] == "demo"


def test_a_folder_without_configuration_is_no_run(tmp_path):
    with pytest.raises(InputError, match="is no run folder") as error:
        load_saved(tmp_path / "config.yaml")
    assert str(tmp_path) in one_sentence(error)


def test_field_help_lists_the_fields_of_all_methods_and_networks_with_their_meaning():
    listed = {name: (default, meaning) for name, default, meaning in field_help()}
    for section, configuration in (("data", DataConfig), ("engine", EngineConfig)):
        for field in dataclasses.fields(configuration):
            assert f"{section}.{field.name}" in listed
    for network in NETWORKS.values():
        for field in dataclasses.fields(network.configuration):
            assert (f"model.{field.name}" in listed) is (field.name in fields_of(NetworkConfig))
            assert (f"model.{field.name} ({network.name})" in listed) is (field.name not in fields_of(NetworkConfig))
    for method in METHODS.values():
        for field in dataclasses.fields(method.configuration)[1:]:
            assert f"method.{field.name} ({method.name})" in listed or field.name == "name"
    assert listed["engine.steps"] == ("2000", "optimizer steps.")
    assert [name for name, (_, meaning) in listed.items() if not meaning] == []


# What is wrong, in one sentence


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--engine.stps", "3"], "unknown field 'engine.stps': did you mean 'engine.steps'?"),
        (["--method.threshhold", "1"], "unknown field 'method.threshhold': did you mean 'method.threshold'?"),
        (["--method.name", "unimtch"], "unknown method.name 'unimtch': did you mean 'unimatch'?"),
        (["--method.name=unimtch"], "unknown method.name 'unimtch': did you mean 'unimatch'?"),
        (
            ["--method.name", "fixmatch", "--method.epsilon", "1"],
            "method.epsilon: does nothing for fixmatch; it is a field of",
        ),
        (["--engine.steps", "many"], "engine.steps: expected int, got many."),
        (["--engine.steps", "3.5"], "engine.steps: expected int, got 3.5."),
        (["--engine.steps", "0"], "engine.steps: expected at least 1, got 0."),
        (["--engine.log_every", "-2"], "engine.log_every: expected at least 1, got -2."),
        (["--engine.learning_rate", "fast"], "engine.learning_rate: expected float, got fast."),
        (["--engine.learning_rate", "-1"], "engine.learning_rate"),
        (["--engine.weight_decay", "-1"], "engine.weight_decay"),
        (["--engine.power", "-1"], "engine.power"),
        (
            ["--engine.compile", "perhaps"],
            "unknown engine.compile 'perhaps': choose from default, none, reduce-overhead.",
        ),
        (["--engine.fused", "perhaps"], "engine.fused: expected bool, got perhaps."),
        (["--engine.accumulate", "0"], "engine.accumulate: expected at least 1, got 0."),
        (["--engine.channels_last", "maybe"], "unknown engine.channels_last 'maybe'"),
        (["--engine.optimizer", "adm"], "unknown engine.optimizer 'adm': did you mean 'adamw'?"),
        (["--engine.precision", "16"], "unknown engine.precision '16'"),
        (["--engine.device", "gpu"], "unknown engine.device 'gpu'"),
        (["--engine.overlap", "1"], "engine.overlap: expected 0 <= overlap < 1, got 1."),
        (["--data.zoom", "wide"], "data.zoom: expected list of float, got wide."),
        (["--data.crop", "[3]"], "data.crop: expected int"),
        (["--engine.steps"], "engine.steps: expected"),
        (["5"], "'5': expected a field such as --engine.steps before it."),
        (["--engine.steps", "3", "4"], "'4': expected a field such as --engine.steps before it."),
    ],
)
def test_a_wrong_flag(flags, says):
    with pytest.raises(InputError) as error:
        load_config("demo", None, flags)
    assert says in one_sentence(error)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("engine: {stps: 3}", "unknown field 'engine.stps': did you mean 'engine.steps'?"),
        ("engine: {steps: many}", "engine.steps: expected int, got many."),
        ("engine: {steps: [1]}", "engine.steps: expected int"),
        ("engine: {steps: 2.5}", "engine.steps: expected int, got 2.5."),
        ("engine: 5", "engine"),
        ("engin: {steps: 3}", "'engin"),
        ("method: supervised", "method"),
        ("method: {name: superviced}", "unknown method.name 'superviced': did you mean 'supervised'?"),
        ("methods: {mpmatch: {start: 1}}", "unknown method.name 'mpmatch': did you mean 'mpamatch'?"),
        ("methods: [mpamatch]", "methods"),
        ("methods: {mpamatch: 5}", "methods"),
        ("methods: {mpamatch: {strt: 5}}", "unknown field 'method.strt': did you mean 'method.start'?"),
        ("data: {zoom: 3}", "data.zoom"),
        ("data: {root: {a: 1}}", "data.root"),
        ("1: 2", "1"),
        ("- engine", "expected sections data, model, method, engine"),
        ("engine: [", "cannot be read as YAML"),
    ],
)
def test_a_wrong_file(text, says, written):
    with pytest.raises(InputError) as error:
        load_config(file=written(text))
    assert says in one_sentence(error)


def test_an_empty_file_or_section_changes_nothing(written):
    assert load_config(file=written("# nothing yet\n")).engine == EngineConfig()
    assert load_config(file=written("engine:\n# steps: 5\n")).engine == EngineConfig()


def test_an_unknown_field_in_a_file_is_named_with_the_file(written):
    file = written("model: {norms: group}")
    with pytest.raises(InputError, match=r"did you mean 'model\.norm'") as error:
        load_config(file=file)
    assert one_sentence(error).startswith(f"{file}: ")


def test_a_missing_or_unreadable_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nope\.yaml: no such file"):
        load_config(file=tmp_path / "nope.yaml")
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory\)"):
        load_config(file=tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"binary\.yaml: cannot be read as YAML"):
        load_config(file=tmp_path / "binary.yaml")


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(InputError, match="unknown recipe 'demmo': did you mean 'demo'"):
        load_config("demmo")


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("ebhi-seg-gland", "ebhi-seg-gland"),
        ("ebhi-seg-all", "folder"),
        ("glas-grade", "glas"),
        ("bcss-wsss", "bcss-wsss"),
        ("synthetic", "demo"),
        ("mine", "folder"),
        ("paper", "folder"),
        ("demo", "folder"),
        (7, "folder"),
    ],
)
def test_the_recipe_of_a_set_is_that_of_its_name(tmp_path, name, recipe):
    (tmp_path / "dataset.json").write_text(json.dumps({"name": name}))
    for flags in (["--data.root", str(tmp_path)], [f"--root={tmp_path}", "--steps", "5"]):
        assert recipe_for(flags) == recipe


def test_the_recipe_without_data_and_of_what_is_no_set(tmp_path):
    assert recipe_for(["--steps", "5"]) == "demo"
    assert recipe_for(["--data.root", str(tmp_path / "gone")]) == "folder"
    (tmp_path / "dataset.json").write_text("[1]")
    assert recipe_for(["--data.root", str(tmp_path)]) == "folder"
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(InputError, match="no JSON"):
        recipe_for(["--data.root", str(tmp_path)])
