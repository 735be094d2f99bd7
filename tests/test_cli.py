"""The command line, from preparing to predicting."""

import csv
import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mpamatch import cli
from mpamatch.cli import COMMANDS, main, main_train
from mpamatch.commands import info
from mpamatch.data import feeds
from mpamatch.data.kinds import kinds
from mpamatch.data.prepared import load_prepared
from mpamatch.data.sources.ebhi_seg import LESIONS
from mpamatch.engine.config import load_saved, recipes
from mpamatch.errors import InputError
from mpamatch.images import read_mask
from mpamatch.methods import METHODS
from mpamatch.models.encoders import presets
from mpamatch.ops import dispatch, native
from mpamatch.ops.operation import operations
from tests.models.encoders.hub import empty_cache, put
from tests.tiny import FIELDS, tiny_flags


def ended(words):
    """The exit code, whether returned or raised by the parser."""
    try:
        return main([str(word) for word in words])
    except SystemExit as end:
        return end.code


# One story


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """prepare → split → check → train → evaluate → predict on made-up tissue; the folder and the exit codes."""
    folder = tmp_path_factory.mktemp("story")
    data, run = folder / "data", folder / "run"
    words = {
        "prepare": ["synthetic", data, "--images", 24, "--size", 48, "--microns-per-pixel", 0.5],
        "split": [data, "--labelled", "25%"],
        "check": [data],
        "train": ["--recipe", "demo", "--run", run, *tiny_flags(data, "mpamatch")],
        "evaluate": [run, "--device", "cpu"],
        "predict": [run, data / "images", "--out", folder / "out", "--device", "cpu", "--overlap", "0.25"],
    }
    return folder, {command: ended([command, *rest]) for command, rest in words.items()}


@pytest.mark.slow
def test_every_command_of_the_story_succeeds(story):
    assert set(story[1].values()) == {0}, story[1]


def test_training_writes_what_the_run_folder_promises(story):
    run = story[0] / "run"
    there = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    wanted = {"config.yaml", "metrics.jsonl", "checkpoints/last.safetensors", "checkpoints/best.safetensors"}
    assert wanted | {"figures/training.png", "figures/prototypes.png", "evaluation-test.json"} <= there
    config = load_saved(run / "config.yaml")
    assert config.recipe == "demo"
    assert config.data.crop == FIELDS["data.crop"]


def test_predict_writes_a_label_and_an_overlay_per_image_and_a_table(story):
    folder = story[0]
    images = sorted((folder / "data" / "images").iterdir())
    with (folder / "out" / "areas.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [str(image) for image in images]
    for row in rows:
        label = read_mask(folder / "out" / "masks" / f"{row['name']}.png")
        assert label.shape == (48, 48)
        assert int(row["gland pixels"]) == (label == 1).sum()
        assert float(row["background share"]) == pytest.approx((label == 0).mean(), abs=1e-6)
        assert (folder / "out" / "overlays" / f"{row['name']}.png").is_file()


def test_evaluate_prints_the_scores_it_wrote(story, capsys):
    folder = story[0]
    assert ended(["evaluate", folder / "run", "--part", "validation", "--device", "cpu"]) == 0
    scores = json.loads((folder / "run" / "evaluation-validation.json").read_text())
    printed = capsys.readouterr().out
    assert f"{100 * scores['mdice']:.2f}" in printed
    assert f"{100 * scores['iou']['gland']:.2f}" in printed


def test_resume_of_a_finished_run_says_what_comes_next(story, capsys):
    run = story[0] / "run"
    before = (run / "checkpoints" / "last.safetensors").read_bytes()
    assert ended(["train", "--resume", run]) == 0
    assert f"next: mpamatch report {run}" in capsys.readouterr().out
    assert (run / "checkpoints" / "last.safetensors").read_bytes() == before


@pytest.mark.real
@pytest.mark.slow
def test_the_story_on_real_tissue(ebhi_seg, tmp_path):
    """EBHI-Seg, up to ten images of each lesion: glands at a quarter of the size, three steps of each method."""
    source = tmp_path / "ebhi"
    for lesion in LESIONS:
        for kind in ("image", "label"):
            (source / lesion / kind).mkdir(parents=True)
        for image in sorted((ebhi_seg / lesion / "image").iterdir())[::7][:10]:
            for kind in ("image", "label"):
                if (ebhi_seg / lesion / kind / image.name).is_file():
                    (source / lesion / kind / image.name).symlink_to(ebhi_seg / lesion / kind / image.name)
    data, weak = tmp_path / "data", tmp_path / "weak"
    assert ended(["prepare", "ebhi-seg", source, data, "--task", "gland"]) == 0
    assert ended(["prepare", "ebhi-seg", source, weak, "--task", "weak"]) == 0
    assert ended(["split", data, "--labelled", "20%"]) == 0
    assert ended(["check", data]) == 0
    fields = {"engine.steps": 3, "data.scale": 0.25}
    for method in METHODS:
        run = tmp_path / method
        root, recipe = (weak, "ebhi-seg-weak") if method == "lpd" else (data, "ebhi-seg-gland")
        assert ended(["train", "--recipe", recipe, "--run", run, *tiny_flags(root, method, fields)]) == 0
        assert ended(["evaluate", run, "--device", "cpu"]) == 0
        scores = json.loads((run / "evaluation-test.json").read_text())
        assert 0 < scores["mdice"] < 1
        assert set(scores["dice"]) == {"background", *(LESIONS if method == "lpd" else ["gland"])}
    name = load_prepared(data).parts["test"][0]
    words = ["predict", tmp_path / "mpamatch", data / "images" / name, "--out", tmp_path / "out", "--device", "cpu"]
    assert ended(words) == 0
    label = read_mask(next((tmp_path / "out" / "masks").iterdir()))
    with Image.open(data / "images" / name) as image:
        assert label.shape == (image.height, image.width)
    assert set(np.unique(label)) <= {0, 1}


# Words


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    assert ended([command, "--help"]) == 0
    assert f"mpamatch {command}" in capsys.readouterr().out


def test_the_help_names_every_command_and_kind(capsys):
    assert ended(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)
    assert ended(["prepare", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(kind in text for kind in kinds())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["trian"], "unknown command 'trian': did you mean 'train'?"),
        ([], "COMMAND"),
        (["prepare", "gals", "a", "b"], "unknown kind of data set 'gals': did you mean 'glas'?"),
        (["prepare", "folder", "a"], "name the folder to make after a"),
        (["prepare", "synthetic", "a", "b"], "takes one folder, not a and b"),
        (["prepare", "synthetic", "a", "--images", "many"], "--images"),
        (["prepare", "synthetic", "a", "--task", "gland"], "--task: is an option of"),
        (["split", "a"], "give one of --labelled (patients, 4 or 10%), --images (8 or 10%) and --list"),
        (["split", "a", "--images", "8", "--list", "b"], "not --images and --list."),
        (["split", "a", "--image", "8"], "unknown option '--image': did you mean '--images'?"),
        (["split", "a", "--labelled", "4", "--sed", "1"], "unknown option '--sed': did you mean '--seed'?"),
        (["check"], "DATA"),
        (["check", "a", "b"], "'b': unexpected"),
        (["evaluate", "a", "--device", "gpu"], "--device"),
        (["predict", "a", "b"], "--out"),
        (["info", "--jsn"], "unknown option '--jsn': did you mean '--json'?"),
        (["train", "--recip", "demo"], "did you mean 'recipe'?"),
        (["train", "--resme", "a"], "did you mean 'resume'?"),
        (["train", "--run"], "--run"),
        (["train", "demo"], "'demo': expected a field"),
        (["train", "--resume", "a", "--engine.steps", "3"], "takes no other option"),
        (["train", "--resume", "a", "--recipe", "demo"], "takes no other option"),
        (["train", "--resume", "a", "--run", "b"], "takes no other option"),
    ],
)
def test_a_wrong_word_is_one_sentence_and_exit_code_2(words, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ended(words) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("mpamatch")
    assert says in captured.err
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("raised", "code", "says"),
    [
        (KeyboardInterrupt(), 130, "mpamatch: interrupted\n"),
        (InputError("here: is wrong; mend it."), 2, "mpamatch: here: is wrong; mend it.\n"),
        (OSError(28, "No space left on device", "runs/a/metrics.jsonl"), 2, "metrics.jsonl"),
        (PermissionError(13, "Permission denied", "runs"), 2, "runs"),
    ],
)
def test_how_a_command_can_end(raised, code, says, capsys, monkeypatch):
    def fail(_):
        raise raised

    monkeypatch.setattr(info, "run", fail)
    assert main(["info"]) == code
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.err.count("\n") == 1


def test_a_fault_of_our_own_is_no_bad_input(monkeypatch):
    """A traceback is for whoever mends it; only what a user can mend is a sentence."""

    def fail(_):
        raise RuntimeError("a fault")

    monkeypatch.setattr(info, "run", fail)
    with pytest.raises(RuntimeError, match="a fault"):
        main(["info"])


# Commands around the story


def test_info_for_machines(capsys):
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["methods"] == list(METHODS)
    assert facts["recipes"] == recipes()
    assert facts["versions"]["torch"].startswith("2.")
    runs = "eager" if native.missing("cpu") else "cpp"
    assert list(facts["operations"]) == list(operations())
    assert all(text.startswith(f"cpu: {runs}") for text in facts["operations"].values())


@pytest.mark.parametrize(("there", "says"), [(True, "available"), (False, "pip install 'mpamatch[dali-cuda13]'")])
def test_info_says_which_feeds_are_here(there, says, capsys, monkeypatch):
    monkeypatch.setattr(feeds, "dali_installed", lambda: there)
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["feeds"]
    assert found["torchvision"] == "available"
    assert found["dali"].startswith(says)


@pytest.mark.parametrize(("there", "says"), [(True, "available"), (False, "pip install 'mpamatch[slides]'")])
def test_info_says_which_readers_of_slides_are_here(there, says, capsys, monkeypatch):
    monkeypatch.setattr("mpamatch.slides.reader.installed", lambda name: there or name != "openslide")
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["slide readers"]
    assert found == {"openslide": says, "tifffile": "available", "pillow": "available"}


@pytest.mark.parametrize("missing", [[], ["onnxruntime"]])
def test_info_says_what_export_lacks(missing, capsys, monkeypatch):
    monkeypatch.setattr("mpamatch.commands.info.missing_libraries", lambda: missing)
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["export"]
    assert list(found) == ["onnx", "onnxscript", "onnxruntime"]
    assert (found["onnxruntime"] == "pip install 'mpamatch[export]'") == bool(missing)


def test_info_says_what_text_encoders_lack_and_their_licences(capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["text encoders"]
    assert found["plip"] == (
        "weights not here: vinid/plip is fetched from Hugging Face on first use, or give --method.text_weights FILE "
        "(licence: none published)"
    )
    assert found["conch"].endswith("(licence: CC BY-NC-ND 4.0)")
    assert list(found) == ["minilm", "conch", "plip", "keep", "quiltnet", "biomedclip", "open_clip:MODEL"]


def test_info_says_where_the_encoders_weights_are_and_their_terms(capsys, monkeypatch, tmp_path):
    cache = empty_cache(monkeypatch, tmp_path)
    put(cache, "MahmoodLab/UNI", {"a": torch.zeros(1)})
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["encoders"]
    assert found["uni"] == {
        "at hand": ["hub"],
        "from": "on request: MahmoodLab/UNI",
        "hub": "hf-hub:MahmoodLab/UNI",
        "on request": True,
        "licence": presets()["uni"].licence,
    }
    assert (found["h0-mini"]["at hand"], found["h0-mini"]["on request"]) == ([], True)
    assert (found["kaiko-s16"]["from"].split("/")[0], found["kaiko-s16"]["on request"]) == ("hub: 1aurent", False)
    assert list(found) == list(presets())
    assert main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    rows = {line.split()[0]: line.split(maxsplit=1)[1].rstrip() for line in lines if line and line[0] != " "}
    assert re.fullmatch(r"at hand: hub cache +CC BY-NC-ND 4.0", rows["uni"])
    assert re.fullmatch(r"on request: paige-ai/Virchow2 +CC BY-NC-ND 4.0", rows["virchow2"])
    assert re.fullmatch(r"hub: 1aurent/\S+… +Kaiko non-commercial licence", rows["kaiko-s16"])
    assert re.fullmatch(r"smp: ImageNet +NVIDIA Source Code License", rows["mit_b0"])
    assert re.fullmatch(r"none: from scratch", rows["small_conv"])


def test_info_names_the_reason_where_there_is_no_extension(capsys, monkeypatch):
    monkeypatch.setitem(native._MISSING, "cpu", "no compiler was found")
    dispatch.missing.cache_clear()
    assert main(["info", "--json"]) == 0
    dispatch.missing.cache_clear()
    facts = json.loads(capsys.readouterr().out)
    assert facts["extension"]["C++"] == "no compiler was found"
    for text in facts["operations"].values():
        assert text.startswith("cpu: eager (cpp: no compiler was found")


def test_info_can_check_the_kernels_first(capsys):
    assert main(["info", "--json", "--check"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert all("(checked)" in text for text in facts["operations"].values())


def test_info_on_a_machine_with_a_gpu_that_has_no_table(capsys, monkeypatch):
    found = SimpleNamespace(
        name="NVIDIA L40S", major=8, minor=9, multi_processor_count=142, shared_memory_per_block_optin=101376
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: found.name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (found.major, found.minor))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    dispatch.missing.cache_clear()
    assert main(["info", "--json"]) == 0
    dispatch.missing.cache_clear()
    facts = json.loads(capsys.readouterr().out)
    assert "table of sm_89, the nearest to NVIDIA L40S" in facts["tiles"]
    assert "cuda: triton" in facts["operations"]["prototype_contrast"]


def test_info_for_people(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert "prototype_contrast: cpu:" in text
    assert "mpamatch" in text


def test_mpamatch_train_is_mpamatch_train(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mpamatch-train", "--fields"])
    assert main_train() == 0
    assert "--engine.learning_rate" in capsys.readouterr().out


def test_module_and_script_are_the_same_program():
    from importlib.metadata import entry_points

    scripts = {script.name: script.value for script in entry_points(group="console_scripts")}
    assert scripts["mpamatch"] == f"{cli.__name__}:main"
    assert scripts["mpamatch-train"] == f"{cli.__name__}:main_train"


def test_split_is_drawn_again_the_same(tmp_path, capsys):
    data = tmp_path / "data"
    assert ended(["prepare", "synthetic", data, "--images", 24, "--size", 48]) == 0
    assert ended(["split", data, "--labelled", "2", "--seed", "3"]) == 0
    path = data / "splits" / "labelled-2-seed3.json"
    first = path.read_bytes()
    assert ended(["split", data, "--labelled", "2", "--seed", "3"]) == 0
    assert path.read_bytes() == first
    assert "2 of 4 patients, 8 of 16 images labelled" in capsys.readouterr().out
