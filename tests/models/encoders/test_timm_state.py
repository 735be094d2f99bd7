"""Files with the names of transformers and DINOv2, against transformers' own computation with the same weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTModel,
)

from mpamatch.errors import InputError
from mpamatch.models.encoders import build_encoder
from tests.models.narrow import narrow

WIDTH, SIDE = 48, 4  # the position table has SIDE² places
COMMON = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "attn_implementation": "eager"}


def vit() -> ViTModel:
    return ViTModel(ViTConfig(**COMMON, intermediate_size=4 * WIDTH, image_size=16 * SIDE, patch_size=16))


def dinov2() -> Dinov2Model:
    return Dinov2Model(Dinov2Config(**COMMON, image_size=16 * SIDE, patch_size=16))


def dinov2_with_registers() -> Dinov2WithRegistersModel:
    config = {**COMMON, "image_size": 14 * SIDE, "patch_size": 14, "num_register_tokens": 4}
    return Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**config, use_swiglu_ffn=True))


# Preset → the model of transformers that its authors publish it for.
THEIRS: dict[str, Callable[[], Any]] = {
    "phikon": vit,
    "phikon-v2": dinov2,
    "hibou-b": dinov2_with_registers,
    "hibou-l": dinov2_with_registers,
}
every_model = pytest.mark.parametrize("name", THEIRS)


def theirs(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """transformers' model with draws for weights, and the preset narrowed to its size."""
    model = THEIRS[name]().eval()
    g = torch.Generator().manual_seed(0)
    for key, parameter in model.named_parameters():
        nn.init.normal_(parameter, std=0.2, generator=g)
        if "norm" in key and key.endswith("weight"):
            parameter.data += 1
    narrow(monkeypatch, name, embed_dim=WIDTH, depth=2, num_heads=4, img_size=SIDE * model.config.patch_size)
    return model


def saved(model: Any, folder: Path) -> Path:
    """As save_pretrained writes it: under the names that published files have."""
    model.save_pretrained(folder)
    return folder / "model.safetensors"


def pickled(model: Any, folder: Path) -> Path:
    """As torch.save writes it: under the names that modules have in transformers 5."""
    torch.save(model.state_dict(), folder / "model.bin")
    return folder / "model.bin"


def fine_tuned(model: Any, folder: Path) -> Path:
    """As a classifier's file has it: with a prefix, and layers behind."""
    state = {f"vit.{key}": value for key, value in load_file(saved(model, folder)).items()}
    torch.save({**state, "classifier.weight": torch.zeros(2, WIDTH)}, folder / "classifier.bin")
    return folder / "classifier.bin"


def of_dinov2(model: Any, folder: Path) -> Path:
    """Under DINOv2's own names, as training leaves it."""
    names = {
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "embeddings.": "",
        "encoder.layer.": "blocks.",
        "layernorm.": "norm.",
        "attention.output.dense": "attn.proj",
        "layer_scale1.lambda1": "ls1.gamma",
        "layer_scale2.lambda1": "ls2.gamma",
        "mlp.weights_in": "mlp.w12",
        "mlp.weights_out": "mlp.w3",
    }
    given, state = load_file(saved(model, folder)), {}
    for key, value in given.items():
        renamed = key
        for old, new in names.items():
            renamed = renamed.replace(old, new)
        if "attention.attention.query" in key:
            three = [given[key.replace("query", part)] for part in ("query", "key", "value")]
            state[renamed.replace("attention.attention.query", "attn.qkv")] = torch.cat(three)
        elif "attention.attention" not in key:
            state[renamed] = value
    torch.save({"model": state}, folder / "teacher.pth")
    return folder / "teacher.pth"


def image(model: Any, rows: int = SIDE, columns: int = SIDE) -> Tensor:
    patch = model.config.patch_size
    return torch.randn(2, 3, rows * patch, columns * patch, generator=torch.Generator().manual_seed(1))


def map_of(model: Any, x: Tensor, **how: Any) -> Tensor:
    """transformers' tokens of the image's places, as a map."""
    patch = model.config.patch_size
    rows, columns = x.shape[-2] // patch, x.shape[-1] // patch
    with torch.no_grad():
        tokens = model(pixel_values=x, **how).last_hidden_state[:, -rows * columns :]
    return tokens.transpose(1, 2).reshape(len(x), -1, rows, columns)


def ours(name: str, file: Path, x: Tensor) -> Tensor:
    encoder = build_encoder(name, str(file), "batch").eval()
    with torch.no_grad():
        return encoder(x)[0]


@every_model
@pytest.mark.parametrize("written", [saved, pickled, fine_tuned])
def test_a_file_of_transformers_gives_its_map(name, written, tmp_path, monkeypatch):
    """Norms of ViTModel add 1e-12 to the variance, timm's 1e-6: within the tolerance."""
    model = theirs(name, monkeypatch)
    x = image(model)
    torch.testing.assert_close(ours(name, written(model, tmp_path), x), map_of(model, x), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", ["hibou-b", "hibou-l"])
def test_a_file_of_dinov2_gives_the_same_map(name, tmp_path, monkeypatch):
    model = theirs(name, monkeypatch)
    x = image(model)
    torch.testing.assert_close(ours(name, of_dinov2(model, tmp_path), x), map_of(model, x), atol=2e-5, rtol=2e-5)


def test_registers_at_another_size_have_transformers_positions(tmp_path, monkeypatch):
    """Both resample the table bicubically with antialiasing."""
    model = theirs("hibou-b", monkeypatch)
    for rows, columns in ((3, 3), (7, 5)):
        x = image(model, rows, columns)
        torch.testing.assert_close(ours("hibou-b", saved(model, tmp_path), x), map_of(model, x), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(("name", "how"), [("phikon", {"interpolate_pos_encoding": True}), ("phikon-v2", {})])
def test_another_size_differs_from_transformers_in_the_resampled_positions_alone(name, how, tmp_path, monkeypatch):
    """ViTModel and Dinov2Model resample without antialiasing; with timm's table in its place, the maps are equal."""
    model = theirs(name, monkeypatch)
    file, x = saved(model, tmp_path), image(model, 7, 5)
    found = ours(name, file, x)
    assert not torch.allclose(found, map_of(model, x, **how), atol=1e-3)
    table = resample_abs_pos_embed(model.embeddings.position_embeddings.detach(), [7, 5], num_prefix_tokens=1)
    monkeypatch.setattr(model.embeddings, "interpolate_pos_encoding", lambda *_: table)
    torch.testing.assert_close(found, map_of(model, x, **how), atol=2e-5, rtol=2e-5)


@every_model
def test_pieces_that_make_no_whole_are_named(name, tmp_path, monkeypatch):
    state = load_file(saved(theirs(name, monkeypatch), tmp_path))
    key = "encoder.layer.1.attention.attention.key.weight"
    file = tmp_path / "model.bin"
    for wrong in (None, torch.zeros(3, 8)):
        torch.save({k: v for k, v in {**state, key: wrong}.items() if v is not None}, file)
        with pytest.raises(InputError) as caught:
            build_encoder(name, str(file), "batch")
        assert "blocks.1.attn.qkv.weight is missing" in str(caught.value)
        assert "encoder.layer.1.attention.attention.query.weight is unknown to the model" in str(caught.value)


L14 = {"embed_dim": 32, "depth": 1, "num_heads": 4}


def table_of(name: str, state: dict[str, Tensor], folder: Path) -> Tensor:
    torch.save(state, folder / "weights.bin")
    return build_encoder(name, str(folder / "weights.bin"), "batch").backbone.pos_embed.detach()


def test_positions_of_37_by_37_come_in_as_they_are_and_others_resampled(tmp_path, monkeypatch):
    narrow(monkeypatch, "kaiko-l14", **L14)
    encoder = build_encoder("kaiko-l14", None, "batch").eval()
    state = encoder.backbone.state_dict()
    state["pos_embed"] = torch.randn(1, 37 * 37, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(table_of("kaiko-l14", state, tmp_path), state["pos_embed"])
    with torch.no_grad():
        assert encoder(torch.zeros(1, 3, 224, 224))[0].shape == (1, 32, 16, 16)
        assert encoder(torch.zeros(1, 3, 518, 518))[0].shape == (1, 32, 37, 37)
    smaller = resample_abs_pos_embed(state["pos_embed"], [16, 16], num_prefix_tokens=0)
    wanted = resample_abs_pos_embed(smaller, [37, 37], num_prefix_tokens=0)
    assert torch.equal(table_of("kaiko-l14", {**state, "pos_embed": smaller}, tmp_path), wanted)
    narrow(monkeypatch, "kaiko-l14", img_size=224)
    assert torch.equal(table_of("kaiko-l14", state, tmp_path), smaller)


def test_a_table_with_a_class_token_is_resampled_around_it(tmp_path, monkeypatch):
    narrow(monkeypatch, "kaiko-s16", **L14)
    state = build_encoder("kaiko-s16", None, "batch").backbone.state_dict()
    larger = torch.randn(1, 1 + 24 * 24, 32, generator=torch.Generator().manual_seed(0))
    found = table_of("kaiko-s16", {**state, "pos_embed": larger}, tmp_path)
    assert torch.equal(found, resample_abs_pos_embed(larger, [14, 14], num_prefix_tokens=1))
    assert torch.equal(found[:, 0], larger[:, 0])
