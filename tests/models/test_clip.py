"""CLIP's checkpoints: those that want another activation, or leave it open, are refused."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mpamatch.errors import InputError
from mpamatch.models.clip import OpenClipModel, open_clip_names
from mpamatch.models.image_encoder import build_image_encoder
from mpamatch.models.text_encoders import build_text_encoder

NARROW = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
NAME = "open_clip:mpamatch-narrow"
QUICK = f"{NAME}-quickgelu"
# The entries that only OpenAI's archives have beside the weights.
BESIDE = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(24), "vocab_size": torch.tensor(49408)}
both_kinds = pytest.mark.parametrize("kind", ["text encoder", "image encoder"])


@pytest.fixture(scope="module", autouse=True)
def architectures(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A narrow CLIP in both of its forms, known to open_clip by name."""
    folder = tmp_path_factory.mktemp("configs")
    for name, config in ((NAME, NARROW), (QUICK, NARROW | {"quick_gelu": True})):
        (folder / f"{name.removeprefix('open_clip:')}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


@pytest.fixture(scope="module")
def quick() -> nn.Module:
    """A whole model with QuickGELU, as OpenAI trained."""
    torch.manual_seed(3)
    return open_clip.create_model("mpamatch-narrow-quickgelu").eval()


@pytest.fixture(scope="module")
def openai(quick, tmp_path_factory) -> Path:
    """Its weights in OpenAI's own format: state_dict() of the archive, in half precision."""
    file = tmp_path_factory.mktemp("openai") / "ViT.pt"
    torch.save({name: value.half() for name, value in quick.state_dict().items()} | BESIDE, file)
    return file


def build(kind: str, name: str, weights: Path | None) -> nn.Module:
    given = None if weights is None else str(weights)
    return build_text_encoder(name, given) if kind == "text encoder" else build_image_encoder(name, given)


@both_kinds
def test_openais_weights_under_a_name_without_quickgelu_are_refused(kind, openai):
    with pytest.raises(InputError) as refusal:
        build(kind, NAME, openai)
    assert str(refusal.value) == (
        f"{openai}: holds OpenAI's weights, whose activation is QuickGELU: give them to {QUICK}."
    )


@both_kinds
@pytest.mark.parametrize("entry", list(BESIDE))
def test_each_entry_of_openais_format_is_enough(kind, entry, quick, tmp_path):
    torch.save({**quick.state_dict(), entry: BESIDE[entry]}, tmp_path / "some.pt")
    with pytest.raises(InputError, match="holds OpenAI's weights"):
        build(kind, NAME, tmp_path / "some.pt")


def test_the_right_name_gives_what_openai_trained(quick, openai):
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(x)[:, None, None] for x in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    text = build_text_encoder(QUICK, openai)
    tokens = text.tokenize(["a gland", "stroma"])
    with torch.no_grad():
        torch.testing.assert_close(text.encode(tokens), quick.encode_text(tokens), atol=2e-2, rtol=1e-2)
        seen = build_image_encoder(QUICK, str(openai))(image)
        torch.testing.assert_close(seen, quick.encode_image((image - mean) / std), atol=2e-2, rtol=1e-2)


@both_kinds
def test_a_folder_must_say_quick_gelu_in_its_configuration(kind, openai, tmp_path):
    """As a repository of the hub must: its configuration alone tells the activation."""
    weights = torch.load(openai)
    torch.save(weights, tmp_path / "open_clip_pytorch_model.bin")
    name = f"open_clip:local-dir:{tmp_path}"
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": NARROW}))
    with pytest.raises(InputError, match=f'{name} must say "quick_gelu": true in its configuration'):
        build(kind, name, None)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": NARROW | {"quick_gelu": True}}))
    assert build(kind, name, None).width == 16


@both_kinds
def test_names_of_transformers_are_refused_with_the_encoder_for_plip(kind, tmp_path):
    save_file({"text_model.final_layer_norm.bias": torch.zeros(32)}, tmp_path / "plip.safetensors")
    with pytest.raises(InputError, match=f"leave the activation open: PLIP's file goes with the {kind} plip"):
        build(kind, QUICK, tmp_path / "plip.safetensors")


@both_kinds
def test_an_archive_of_torchscript_is_called_so(kind, tmp_path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "ViT-B-32.pt")
    with pytest.raises(InputError, match=r"is a TorchScript archive.* save its state_dict\(\), or take the tag openai"):
        build(kind, NAME, tmp_path / "ViT-B-32.pt")


@pytest.mark.parametrize(
    ("model", "tag", "expected"),
    [("ViT-B-32", "openai", True), ("ViT-B-32", "laion2b_s34b_b79k", False), ("ViT-B-32-quickgelu", "openai", True)]
    + [("roberta-ViT-B-32", "laion2b_s12b_b32k", True)],  # its tag is silent
)
def test_a_tag_brings_its_activation_whatever_the_name(model, tag, expected):
    entry = open_clip.get_pretrained_cfg(model, tag)
    config = open_clip.get_model_config(model)
    assert OpenClipModel(config, entry, Path(), {}).quick_gelu is expected


def test_query_key_and_value_are_one_matrix_in_this_order():
    attention = "text_model.encoder.layers.0.self_attn."
    parts: dict[str, Tensor] = {f"{attention}{x}_proj.weight": torch.full((2, 2), ord(x)) for x in "vkq"}
    merged = open_clip_names(parts)
    assert list(merged) == ["transformer.resblocks.0.attn.in_proj_weight"]
    assert merged["transformer.resblocks.0.attn.in_proj_weight"][:, 0].tolist() == [ord(x) for x in "qqkkvv"]
    del parts[f"{attention}v_proj.weight"]
    assert "transformer.resblocks.0.attn.q_proj.weight" in open_clip_names(parts)  # so that a strict load names it
