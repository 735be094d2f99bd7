"""Adapters and recomputed activations: what trains, what is kept, and that values stay what they were."""

import copy
import dataclasses
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from mpamatch.errors import InputError
from mpamatch.models.adapters import MARK, merge_adapters
from mpamatch.models.build import build_model
from mpamatch.models.transunet import TransUNet, TransUNetConfig
from tests.methods.cases import assert_same_numbers

pytestmark = pytest.mark.slow

VIT = "vit_tiny_patch16_224"
SMALL = {"decoder_width": 16, "decoder_channels": [16, 8, 8, 8], "norm": "group"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    vit = timm.create_model(VIT, num_classes=0, dynamic_img_size=True)
    save_file(vit.state_dict(), path)
    return path


def network(weights: Path | None, encoder: str = VIT, **fields) -> TransUNet:
    torch.manual_seed(0)
    given = None if weights is None else str(weights)
    return build_model(TransUNetConfig(encoder=encoder, encoder_weights=given, **{**SMALL, **fields}), 3)


def image(n: int = 2) -> Tensor:
    return torch.randn(n, 3, 32, 48, generator=torch.Generator().manual_seed(3))


def learn(model: TransUNet, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        model(image()).logits.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_only_adapters_and_the_decoder_train(weights):
    model = network(weights, tuning="lora")
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    of_encoder = [name for name in trained if name.startswith("encoder.")]
    assert len(of_encoder) == 12 * 2 * 2  # blocks × (qkv, proj) × (A, B)
    assert all(MARK in name for name in of_encoder)
    assert {name for name in trained if not name.startswith("encoder.")} == {
        name for name, _ in model.named_parameters() if name.startswith("decoder.")
    }


def test_adapters_begin_as_nothing_and_then_learn(weights):
    model, plain = network(weights, tuning="lora").eval(), network(weights).eval()
    plain.decoder.load_state_dict(model.decoder.state_dict())
    assert torch.equal(model(image()).logits, plain(image()).logits)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    learn(model.train())
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert all(name.startswith("decoder.") or MARK in name for name in moved)
    assert any(MARK in name for name in moved)


def test_the_rank_is_that_of_the_adapters(weights):
    sizes = {
        rank: sum(p.numel() for n, p in network(weights, tuning="lora", lora_rank=rank).named_parameters() if MARK in n)
        for rank in (2, 4)
    }
    # qkv: 192 → 576, proj: 192 → 192, in twelve blocks
    assert sizes == {rank: 12 * rank * (192 + 576 + 192 + 192) for rank in (2, 4)}


def test_merged_adapters_predict_the_same(weights):
    model = network(weights, tuning="lora")
    learn(model)
    model.eval()
    with torch.no_grad():
        before = model(image()).logits
        merge_adapters(model.encoder)
        after = model(image()).logits
    assert_same_numbers({"logits": after}, {"logits": before}, tolerance=1e-5)


@pytest.mark.parametrize("encoder", ["small_conv", "small_hybrid"])
def test_an_encoder_without_attention_to_adapt(encoder, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(network(None, encoder).encoder.state_dict(), path)
    if encoder == "small_hybrid":  # has two blocks of attention
        assert any(MARK in name for name in network(path, encoder, tuning="lora").state_dict())
        return
    with pytest.raises(InputError, match="lora fits ViT encoders only; take full or frozen"):
        network(path, encoder, tuning="lora")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"tuning": "lora"}, "model.tuning: lora needs model.encoder_weights"),
        ({"tuning": "frozen"}, "model.tuning: frozen needs model.encoder_weights"),
        ({"tuning": "lroa"}, "unknown model.tuning 'lroa': did you mean 'lora'?"),
        ({"lora_rank": 0}, "model.lora_rank: expected at least 1, got 0."),
    ],
)
def test_wrong_tuning(fields, says):
    with pytest.raises(InputError, match=says.replace("?", r"\?")):
        network(None, **fields)


def test_without_peft_the_extra_is_named(weights, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(InputError, match=r"pip install mpamatch\[lora\]"):
        network(weights, tuning="lora")


def both(encoder: str, norm: str) -> tuple[TransUNet, TransUNet]:
    """The same network, its activations kept and recomputed."""
    kept = network(None, encoder, norm=norm)
    recomputing = build_model(dataclasses.replace(kept.config, checkpointing=True), 3)
    recomputing.load_state_dict(kept.state_dict())
    return kept.double().train(), recomputing.double().train()


def gradients(model: TransUNet) -> dict[str, Tensor]:
    prediction = model(image().double())
    (prediction.logits.square().mean() + prediction.embedding.mean()).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("encoder", ["small_conv", "small_hybrid", VIT, "vit_base_r50_s16_224"])
def test_recomputed_activations_give_the_same_gradients_and_statistics(encoder, norm):
    kept, recomputing = both(encoder, norm)
    assert_same_numbers(gradients(recomputing), gradients(kept))
    for (name, one), (_, other) in zip(kept.named_buffers(), recomputing.named_buffers(), strict=True):
        assert torch.allclose(one.double(), other.double(), rtol=1e-12, atol=0), name


@pytest.mark.parametrize("encoder", ["small_hybrid", VIT])
def test_recomputing_keeps_fewer_activations(encoder):
    sizes = []
    for model in both(encoder, "group"):
        kept = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += tensor.numel() if not isinstance(tensor, torch.nn.Parameter) else 0
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(image().double())
        sizes.append(kept)
    assert sizes[1] < 0.6 * sizes[0]


def test_nothing_is_recomputed_without_gradient():
    kept, recomputing = both("small_conv", "group")
    with torch.no_grad():
        assert torch.equal(kept(image().double()).logits, recomputing(image().double()).logits)


def test_a_copy_recomputes_its_own(weights):
    _, recomputing = both("small_conv", "group")
    other = copy.deepcopy(recomputing)
    gradients(other)
    assert all(p.grad is None for p in recomputing.parameters())
