"""The recipe `paper` by one command: UNI and CONCH narrowed, under their published names, with made-up weights."""

import huggingface_hub
import numpy as np
import pytest
import torch

from mpamatch.cli import main
from mpamatch.engine.build import prompt_set_for
from mpamatch.engine.config import load_config, load_saved
from mpamatch.engine.loop import resume
from mpamatch.inference.checkpoint import load_segmenter
from mpamatch.models.text_encoders import conch as conch_text
from tests.models.encoders.hub import empty_cache
from tests.models.narrow import narrow
from tests.models.published import conch_text_shapes, filled, timm_vit, write_conch_tokenizer
from tests.tiny import assert_same_run, make_set, read_metrics, silent, train_until

FIELDS = {"crop": 64, "steps": 2, "save_every": 1, "validate_every": 1, "log_every": 1, "workers": 0, "device": "cpu"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("set") / "tissue").root


@pytest.fixture
def files(monkeypatch, tmp_path):
    """The two files that a user brings, CONCH's with its tokenizer beside it; as words of the command line."""
    narrow(monkeypatch, "uni", embed_dim=48, depth=1, num_heads=4)
    conch = conch_text.CONCH_TEXT | {"width": 32, "heads": 2, "layers": 1, "output_dim": 16}
    monkeypatch.setattr(conch_text, "CONCH_TEXT", conch)
    torch.save(filled(timm_vit(48, 1, 16, 197)), tmp_path / "UNI.bin")
    torch.save(filled(conch_text_shapes(1, 32, 16)), tmp_path / "CONCH.bin")
    write_conch_tokenizer(tmp_path / conch_text.CONCH_TOKENIZER, ["gland stroma"])
    return ["--encoder_weights", str(tmp_path / "UNI.bin"), "--text_weights", str(tmp_path / "CONCH.bin")]


@pytest.fixture
def nothing_here(monkeypatch, tmp_path):
    """No weights in the hub's cache, and nobody logged in."""
    empty_cache(monkeypatch, tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)


def words(root, run, *more):
    short = [word for name, value in FIELDS.items() for word in (f"--{name}", str(value))]
    return ["train", "--recipe", "paper", "--run", str(run), "--data.root", str(root), *short, *more]


@pytest.mark.slow
def test_the_paper_trains_resumes_bitwise_and_predicts(root, files, tmp_path, capsys):
    assert main(words(root, tmp_path / "whole", *files)) == 0
    said = capsys.readouterr().out
    assert said.count("UNI weights: CC BY-NC-ND 4.0") == said.count("CONCH weights: CC BY-NC-ND 4.0") == 1
    config = load_saved(tmp_path / "whole" / "config.yaml")
    assert config.method.prompt_set == "demo"  # of the recipe for this set
    losses = [line for line in read_metrics(tmp_path / "whole") if "loss" in line]
    assert len(losses) == 2
    assert all(np.isfinite(line["loss"]) and line["text_contrast"] > 0 for line in losses)

    train_until(1, config, tmp_path / "stopped")
    resume(tmp_path / "stopped", console=silent())
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")

    pixels = np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8)
    assert load_segmenter(tmp_path / "whole", "cpu").predict(pixels).shape == (70, 90)


def test_the_recipe_is_the_paper():
    """What the paper states, and the tables' assumptions where it is silent."""
    config = load_config("paper")
    model, method = config.model, config.method
    assert (model.encoder, model.decoder_width, model.decoder_channels) == ("uni", 512, [256, 128, 64, 16])
    assert (model.head_kernel, model.norm, config.data.crop) == (1, "batch", 256)
    assert (method.text_encoder, method.context_tokens, method.prompts) == ("conch", 1, "pathology")
    assert (method.prototypes, method.assignment, method.same_class_negatives) == (10, "nearest", False)
    assert (method.weight_labelled, method.weight_unlabelled, method.weight_prototype) == (0.5, 0.25, 0.25)
    assert method.threshold == 0.95
    assert (config.data.batch, config.data.unlabelled_batch) == (1, 1)


def refused(capsys, asked):
    assert main(asked) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    return sentence


def test_without_files_one_sentence_names_both_options_and_both_terms(root, nothing_here, tmp_path, capsys):
    said = refused(capsys, words(root, tmp_path / "run"))
    assert (
        "model.encoder_weights: weights of uni are given on request: ask at https://huggingface.co/MahmoodLab/UNI"
        in said
    )
    assert "give --encoder_weights FILE" in said
    assert "method.text_weights: CONCH is chosen, and its checkpoint is given on request (MahmoodLab/conch" in said
    assert "give --text_weights FILE" in said
    assert "UNI weights: CC BY-NC-ND 4.0, for non-commercial" in said
    assert "CONCH weights: CC BY-NC-ND 4.0, for non-commercial" in said
    assert not (tmp_path / "run").exists()


def test_only_what_is_missing_is_asked_for(root, files, nothing_here, tmp_path, capsys):
    said = refused(capsys, words(root, tmp_path / "run", *files[:2]))
    assert "--text_weights FILE" in said
    assert "UNI" not in said
    said = refused(capsys, words(root, tmp_path / "run", *files[:3], str(tmp_path / "nope.bin")))
    assert f"method.text_weights: {tmp_path / 'nope.bin'}: no such checkpoint file; give --text_weights FILE" in said
    said = refused(capsys, words(root, tmp_path / "run", "--encoder_weights", str(tmp_path / "no.bin"), *files[2:]))
    assert f"model.encoder_weights: {tmp_path / 'no.bin'}: no such checkpoint file; give --encoder_weights FILE" in said
    assert "CONCH" not in said


def test_who_is_logged_in_is_not_asked_for_unis_file(root, files, nothing_here, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_of_a_user")
    said = refused(capsys, words(root, tmp_path / "run", *files[2:]))
    assert "'hf-hub:MahmoodLab/UNI' could not be fetched" in said  # the hub is out of reach here


@pytest.mark.parametrize(
    ("prepared", "prompts"),
    [
        ("glas-gland", "glas"),
        ("ebhi-seg-gland", "ebhi-seg-gland"),
        ("ebhi-seg-cancer", "ebhi-seg-cancer"),
        ("ebhi-seg-weak", "ebhi-seg-classes"),
        ("kpi", "kpi"),
        ("somebody's folder", None),
    ],
)
def test_the_descriptions_are_those_of_the_recipe_for_the_data(prepared, prompts):
    assert prompt_set_for(prepared) == prompts
