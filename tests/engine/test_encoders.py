"""Runs with backbones of timm and weights from caches: trained, resumed bitwise, predicted, all from the run folder."""

import json

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from mpamatch.engine.loop import resume, train
from mpamatch.errors import InputError
from mpamatch.inference.checkpoint import load_segmenter
from mpamatch.models.encoders import build_encoder, presets, sources
from tests.models.encoders.hub import empty_cache, put
from tests.models.narrow import WIDTH, add_variants, narrow
from tests.models.published import PUBLISHED, filled
from tests.tiny import assert_same_run, make_set, read_checkpoint, silent, tiny_config, train_until

FAMILIES = [
    "tf_efficientnet_lite0",
    "resnet10t",
    "convnext_atto",
    "regnetx_002",
    "mobilenetv3_small_050",
    "ghostnet_050",
    "edgenext_xx_small",
    "pvt_v2_b0",
    "mambaout_femto",
    "repvit_m0_9",
    "swin_tiny_patch4_window7_224",
    "densenet121",
]
OTHER = {"mean": [0.7, 0.6, 0.5], "std": [0.1, 0.2, 0.3]}  # a publisher's own, no one's default
SHORT = {"engine.steps": 3, "engine.save_every": 1, "engine.validate_every": 1}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("set") / "tissue").root


@pytest.fixture
def cache(monkeypatch, tmp_path):
    return empty_cache(monkeypatch, tmp_path / "caches")


def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)


def forget(cache) -> None:
    """No hub, and its cache gone: what is needed now must be in the run."""
    cache.rename(cache.with_name("gone"))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.slow
def test_a_backbone_by_its_name_trains_resumes_bitwise_and_predicts(name, root, tmp_path):
    fields = {"model.encoder": name, "engine.steps": 2, "engine.save_every": 1, "engine.validate_every": 1}
    config = tiny_config(root, "unimatch", fields)
    train(config, tmp_path / "whole", console=silent())
    train_until(1, config, tmp_path / "stopped")
    resume(tmp_path / "stopped", console=silent())
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    segmenter = load_segmenter(tmp_path / "whole", "cpu")
    assert segmenter.predict(pixels()).shape == (50, 70)
    assert segmenter.settings.mean == timm.get_pretrained_cfg(name).mean
    _, about = read_checkpoint(tmp_path / "whole" / "checkpoints" / "best.safetensors")
    assert about["encoder"]["arguments"]["model_name"] == name


@pytest.mark.slow
def test_a_repository_s_weights_and_constants_are_in_the_run(root, tmp_path, cache, monkeypatch):
    """Its architecture is not that of the name; resumed and predicted with neither hub nor cache."""
    add_variants(monkeypatch)
    torch.manual_seed(3)
    whole = timm.create_model("vit_small_patch8_224", num_classes=0, **WIDTH)
    config = {
        "architecture": "vit_small_patch8_224",
        "pretrained_cfg": {**OTHER, "num_classes": 0},
        "model_args": WIDTH,
    }
    put(cache, "someone/vit", whole.state_dict(), config)
    fields = {**SHORT, "model.encoder": "narrow16", "model.encoder_weights": "hf-hub:someone/vit"}
    config = tiny_config(root, "supervised", fields)
    train(config, tmp_path / "whole", console=silent())
    train_until(2, config, tmp_path / "stopped")
    forget(cache)
    resume(tmp_path / "stopped", console=silent())
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    segmenter = load_segmenter(tmp_path / "whole", "cpu")
    assert segmenter.settings.mean == tuple(OTHER["mean"])
    assert segmenter.model.encoder.multiple == 8
    assert segmenter.predict(pixels()).shape == (50, 70)


@pytest.mark.slow
def test_timm_s_weights_resume_bitwise_without_the_cache(root, tmp_path, cache):
    name = "tf_efficientnet_lite0.in1k"  # mean and std of one half
    torch.manual_seed(3)
    put(cache, timm.get_pretrained_cfg(name).hf_hub_id, timm.create_model(name).state_dict())
    config = tiny_config(root, "unimatch", {**SHORT, "model.encoder": name, "model.encoder_weights": "timm"})
    train(config, tmp_path / "whole", console=silent())
    train_until(2, config, tmp_path / "stopped")
    forget(cache)
    resume(tmp_path / "stopped", console=silent())
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    assert load_segmenter(tmp_path / "whole", "cpu").settings.mean == (0.5, 0.5, 0.5)


@pytest.mark.slow
def test_frozen_weights_of_a_hub_that_have_changed_are_refused(root, tmp_path, cache, monkeypatch):
    narrow(monkeypatch, "uni", embed_dim=48, depth=2, num_heads=4)
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = build_encoder("uni", None, "group").backbone.state_dict()
        put(cache, "MahmoodLab/UNI", state)
        if seed == 1:
            fields = {**SHORT, "model.encoder": "uni", "model.encoder_weights": "hub", "model.tuning": "frozen"}
            config = tiny_config(root, "supervised", fields)
            train_until(2, config, tmp_path / "run")
            load_segmenter(tmp_path / "run", "cpu")
    with pytest.raises(InputError, match="was trained on another version of the weights 'hub'"):
        load_segmenter(tmp_path / "run", "cpu")
    with pytest.raises(InputError, match="was trained on other frozen weights"):
        resume(tmp_path / "run", console=silent())


@pytest.mark.slow
def test_uni_with_skips_trains_two_steps_and_predicts(root, tmp_path, monkeypatch):
    """UNI itself, every name and shape as published, made-up numbers."""
    file = tmp_path / "pytorch_model.bin"
    torch.save(filled(PUBLISHED["uni"], scale=0.02), file)
    fields = {"model.encoder": "uni", "model.encoder_weights": file, "model.skips": "[2, 9]", "model.norm": "group"}
    small = {"data.batch": 1, "data.unlabelled_batch": 1, "engine.steps": 2, "model.tuning": "frozen"}
    run = tmp_path / "run"
    train(tiny_config(root, "unimatch", {**fields, **small}), run, console=silent())
    losses = [json.loads(line).get("loss") for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite([loss for loss in losses if loss is not None]).all()
    segmenter = load_segmenter(run, "cpu")
    assert segmenter.model.encoder.channels == (1024, 1024, 1024)
    assert segmenter.predict(pixels()).shape == (50, 70)


def test_auto_is_settled_when_a_run_begins_and_stays_so(root, tmp_path, monkeypatch):
    fields = {**SHORT, "model.encoder": "tf_efficientnet_lite0", "model.encoder_weights": "auto"}
    said = Said()
    train(tiny_config(root, "supervised", fields), tmp_path / "with", console=said.console)
    assert said.first_line().startswith("encoder: tf_efficientnet_lite0 with ImageNet weights (Apache-2.0)")
    assert "encoder_weights: offline" in (tmp_path / "with" / "config.yaml").read_text()
    monkeypatch.setattr(sources, "_package_file", lambda offline: None)
    monkeypatch.setattr(sources, "_cached", lambda repository: False)
    resume(tmp_path / "with", console=silent())  # finished; the package is gone and not asked for
    load_segmenter(tmp_path / "with", "cpu")
    said = Said()
    train(tiny_config(root, "supervised", fields), tmp_path / "without", console=said.console)
    assert "from scratch, with random weights: pip install 'mpamatch[pretrained-offline]'" in said.first_line()
    assert "encoder_weights: null" in (tmp_path / "without" / "config.yaml").read_text()
    with pytest.raises(InputError, match=r"no weights of .* are at hand, but model\.tuning frozen needs"):
        train(tiny_config(root, "supervised", {**fields, "model.tuning": "frozen"}), tmp_path / "no", console=silent())
    assert not (tmp_path / "no").exists()


class Said:
    """A console that keeps what it was told."""

    def __init__(self) -> None:
        self.console = silent()
        self.console.width = 1000

    def first_line(self) -> str:
        return self.console.file.getvalue().splitlines()[0]


def test_a_local_file_is_predicted_with_the_constants_of_its_preset(root, tmp_path):
    file = tmp_path / "weights.safetensors"
    save_file(timm.create_model("tf_efficientnet_lite0").state_dict(), file)
    fields = {"model.encoder": "tf_efficientnet_lite0", "model.encoder_weights": file}
    train(tiny_config(root, "supervised", fields), tmp_path / "run", console=silent())
    assert load_segmenter(tmp_path / "run", "cpu").settings.mean == presets()["tf_efficientnet_lite0"].mean
