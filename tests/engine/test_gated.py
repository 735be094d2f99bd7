"""Gated foundation models through the whole engine, narrowed and with made-up weights: UNI2-h and CONCH."""

import io

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from mpamatch.data.cache import ImageCache
from mpamatch.engine import loop
from mpamatch.engine.evaluation import evaluate
from mpamatch.inference.checkpoint import load_segmenter
from mpamatch.models import conch_image
from mpamatch.models.encoders import build_encoder
from mpamatch.models.text_encoders import conch as conch_text
from mpamatch.models.weights import sha256
from tests.models.narrow import narrow as narrow_preset
from tests.models.published import conch_image_shapes, conch_text_shapes, filled, write_conch_tokenizer
from tests.tiny import make_set, read_checkpoint, read_metrics, tiny_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("set") / "tissue")


@pytest.fixture
def narrow(monkeypatch):
    """UNI2-h and CONCH as the loaders know them, but narrow and of one block."""
    narrow_preset(monkeypatch, "uni2-h", embed_dim=48, depth=1, num_heads=4)
    conch = conch_text.CONCH_TEXT | {"width": 32, "heads": 2, "layers": 1, "output_dim": 16}
    monkeypatch.setattr(conch_text, "CONCH_TEXT", conch)


@pytest.fixture
def uni2(narrow, tmp_path):
    torch.manual_seed(5)
    state = build_encoder("uni2-h", None, "batch").vit.state_dict()
    save_file(state, tmp_path / "uni2-h.safetensors")
    return tmp_path / "uni2-h.safetensors"


@pytest.fixture
def conch(narrow, tmp_path):
    write_conch_tokenizer(tmp_path / "words.json", ["gland stroma"])
    torch.save(filled(conch_text_shapes(1, 32, 16)), tmp_path / "conch.bin")
    return tmp_path / "conch.bin"


def train(config, run):
    """Trains; what the run said."""
    said = Console(file=io.StringIO(), width=1000)
    loop.train(config, run, console=said)
    return said.file.getvalue()


@pytest.mark.parametrize("crop", [256, 224])
def test_uni2_h_trains_evaluates_and_predicts_at_any_crop(prepared, uni2, tmp_path, crop):
    """256 is no multiple of its patch of 14, 224 is."""
    fields = {
        "model.encoder": "uni2-h",
        "model.encoder_weights": uni2,
        "model.norm": "group",
        "data.crop": crop,
        "data.batch": 1,
        "data.unlabelled_batch": 1,
    }
    said = train(tiny_config(prepared.root, "mpamatch", fields), tmp_path / "run")
    assert said.count("UNI2-h weights: CC BY-NC-ND 4.0") == 1
    losses = [line["loss"] for line in read_metrics(tmp_path / "run") if "loss" in line]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    segmenter = load_segmenter(tmp_path / "run", "cpu")
    trained = segmenter.model.encoder.vit.patch_embed.proj.weight
    assert not torch.equal(trained, build_encoder("uni2-h", str(uni2), "group").vit.patch_embed.proj.weight)
    pixels = np.random.default_rng(0).integers(0, 255, (300, 260, 3), dtype=np.uint8)
    assert segmenter.predict(pixels).shape == (300, 260)
    scores = evaluate(segmenter, ImageCache(prepared, cache_mb=0), "test", objects=False)
    assert 0 <= scores["mdice"] <= 1


def test_conch_teaches_through_context_tokens_and_stays_out_of_the_run(prepared, conch, tmp_path):
    fields = {
        "method.text_encoder": "conch",
        "method.text_weights": conch,
        "method.text_tokenizer": tmp_path / "words.json",
        "method.context_tokens": 2,
        "method.prompts": "generic",
    }
    said = train(tiny_config(prepared.root, "mpamatch", fields), tmp_path / "run")
    assert said.count("CONCH weights: CC BY-NC-ND 4.0") == 1
    assert any(line.get("text_contrast", 0) > 0 for line in read_metrics(tmp_path / "run"))
    tensors, about = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.safetensors")
    assert about["frozen"]["text"] == {
        "name": "conch",
        "source": str(conch),
        "sha256": sha256(conch),
        "tokenizer": sha256(tmp_path / "words.json"),
    }
    assert not any("cls_emb" in name or "resblocks" in name for name in tensors)
    assert tensors["method/text.context"].shape == (2, 32)


def test_conch_sees_what_lpds_maps_cut_out(prepared, monkeypatch, tmp_path):
    monkeypatch.setattr(conch_image, "CONCH_IMAGE", {"embed_dim": 32, "depth": 1, "num_heads": 2})
    torch.save(filled(conch_image_shapes(1, 32)), tmp_path / "conch.bin")
    fields = {
        "method.image_encoder": "conch",
        "method.image_weights": tmp_path / "conch.bin",
        "model.prototype_width": 512,
    }
    said = train(tiny_config(prepared.root, "lpd", fields), tmp_path / "run")
    assert said.count("CONCH weights: CC BY-NC-ND 4.0") == 1
    losses = [line["foreground"] for line in read_metrics(tmp_path / "run") if "loss" in line]
    assert losses
    assert np.isfinite(losses).all()
    tensors, about = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.safetensors")
    assert about["frozen"]["image"]["sha256"] == sha256(tmp_path / "conch.bin")
    assert not any("attn_pool" in name for name in tensors)


def test_no_terms_are_shown_where_no_gated_weights_are_used(prepared, narrow, tmp_path):
    said = train(tiny_config(prepared.root, "supervised", {"model.encoder": "uni2-h"}), tmp_path / "run")
    assert "CC BY-NC-ND" not in said
