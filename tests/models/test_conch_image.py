"""CONCH's image tower without its weights: published names and shapes load strictly; its pooling written out."""

import pytest
import torch
from torch import Tensor, nn

from mpamatch.errors import InputError
from mpamatch.models import conch_image as module
from mpamatch.models.conch_image import ConchImage, conch_image
from mpamatch.models.image_encoder import build_image_encoder
from tests.models.published import CAPTION, conch_image_shapes, filled

pytestmark = pytest.mark.slow

WIDTH, HEADS = 32, 2


@pytest.fixture
def narrow(monkeypatch) -> None:
    """One narrow block under the published pooling."""
    monkeypatch.setattr(module, "CONCH_IMAGE", {"embed_dim": WIDTH, "depth": 1, "num_heads": HEADS})


def image(side: int) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def narrow_state(side: int = 448) -> dict[str, Tensor]:
    return filled(conch_image_shapes(1, WIDTH, side=side), scale=0.2)


def by_hand(state: dict[str, Tensor], x: Tensor) -> Tensor:  # (B, 3, 448, 448) -> (B, 512)
    state = {name.removeprefix("visual."): value for name, value in state.items()}

    def norm(x: Tensor, name: str, eps: float) -> Tensor:
        scaled = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt()
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:  # (B, L, D) each
        q, k, v = (t.unflatten(-1, (heads, -1)) for t in (q, k, v))
        weights = (torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5).softmax(-1)
        return torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2)

    patches = x.unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    x = patches @ state["trunk.patch_embed.proj.weight"].flatten(1).T + state["trunk.patch_embed.proj.bias"]
    x = torch.cat([state["trunk.cls_token"].expand(len(x), 1, WIDTH), x], dim=1) + state["trunk.pos_embed"]
    block = "trunk.blocks.0"
    q, k, v = linear(norm(x, f"{block}.norm1", 1e-6), f"{block}.attn.qkv").chunk(3, dim=-1)
    x = x + linear(attend(q, k, v, HEADS), f"{block}.attn.proj")
    inner = nn.functional.gelu(linear(norm(x, f"{block}.norm2", 1e-6), f"{block}.mlp.fc1"))
    x = norm(x + linear(inner, f"{block}.mlp.fc2"), "trunk.norm", 1e-6)

    pool = "attn_pool_contrast"
    tokens = norm(x, f"{pool}.ln_k", 1e-5)
    query = norm(state[f"{pool}.query"], f"{pool}.ln_q", 1e-5).expand(len(x), 1, 512)
    bias = state[f"{pool}.attn.in_proj_bias"].chunk(3)
    parts = zip((query, tokens, tokens), "qkv", bias, strict=True)
    q, k, v = (t @ state[f"{pool}.attn.{part}_proj_weight"].T + b for t, part, b in parts)
    pooled = linear(attend(q, k, v, 8), f"{pool}.attn.out_proj")[:, 0]
    return norm(pooled, "ln_contrast", 1e-5) @ state["proj_contrast"]


def test_an_image_is_pooled_as_published(narrow, tmp_path):
    torch.save(narrow_state() | filled(CAPTION), tmp_path / "conch.bin")
    tower = conch_image(tmp_path / "conch.bin")
    with torch.no_grad():
        ours, expected = tower(image(448)), by_hand(narrow_state(), image(448))
        assert tower(image(224)).shape == (2, 512)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
    assert (expected[0] - expected[1]).abs().max() > 1e-2


def test_the_constants_are_those_of_conch():
    assert (module.ConchImage.side, module.ConchImage.width) == (448, 512)
    assert module.ConchImage.mean == (0.48145466, 0.4578275, 0.40821073)
    assert module.ConchImage.std == (0.26862954, 0.26130258, 0.27577711)


def test_the_gradient_reaches_the_image_and_nothing_of_the_tower(narrow, tmp_path):
    torch.save(narrow_state(), tmp_path / "conch.bin")
    tower, x = conch_image(tmp_path / "conch.bin"), image(64).requires_grad_()
    tower(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert not tower.training
    assert all(not p.requires_grad and p.grad is None for p in tower.parameters())


@pytest.mark.filterwarnings("ignore:.*no-op")
def test_the_whole_published_state_loads_strictly(tmp_path):
    g = torch.Generator().manual_seed(0)
    shapes = conch_image_shapes()
    state = {name: torch.randn((), generator=g).expand(shape) for name, shape in (shapes | CAPTION).items()}
    torch.save(state, tmp_path / "conch.bin")
    with torch.device("meta"):
        tower = conch_image(tmp_path / "conch.bin")
    assert {f"visual.{name}": tuple(value.shape) for name, value in tower.state_dict().items()} == shapes


@pytest.mark.parametrize("name", ["trunk.pos_embed", "trunk.blocks.0.attn.qkv.bias", "proj_contrast"])
def test_an_entry_that_is_missing_renamed_or_misshapen_is_named(narrow, tmp_path, name):
    for change, words in (
        ({}, f"{name} is missing"),
        ({f"visual.{name}_old": torch.zeros(1)}, f"{name}_old is unknown to the model"),
        ({f"visual.{name}": torch.zeros(1, 4, 7)}, f"{name} is (1, 4, 7), the model has"),
    ):
        state = {key: value for key, value in narrow_state().items() if key != f"visual.{name}"} | change
        torch.save(state, tmp_path / "conch.bin")
        with pytest.raises(InputError) as refusal:
            conch_image(tmp_path / "conch.bin")
        assert words in str(refusal.value)


def test_positions_of_another_grid_are_resampled(narrow, tmp_path):
    """A constant stays that constant at every place, and the class token keeps its own."""
    state = narrow_state(side=224)
    state["visual.trunk.pos_embed"] = torch.full((1, 197, WIDTH), 2.0)
    state["visual.trunk.pos_embed"][:, 0] = 5
    torch.save(state, tmp_path / "conch.bin")
    positions = conch_image(tmp_path / "conch.bin").trunk.pos_embed
    assert positions.shape == (1, 785, WIDTH)
    torch.testing.assert_close(positions[:, 0], torch.full((1, WIDTH), 5.0))
    torch.testing.assert_close(positions[:, 1:], torch.full((1, 784, WIDTH), 2.0))


def test_it_is_a_frozen_image_encoder_by_name(narrow, tmp_path):
    torch.save(narrow_state(), tmp_path / "conch.bin")
    encoder = build_image_encoder("conch", str(tmp_path / "conch.bin"))
    assert (encoder.side, encoder.width, encoder.identity["name"]) == (448, 512, "conch")
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    x = image(448).sigmoid()
    mean, std = (torch.tensor(value)[:, None, None] for value in (ConchImage.mean, ConchImage.std))
    torch.testing.assert_close(encoder(x), by_hand(narrow_state(), (x - mean) / std), rtol=1e-4, atol=1e-5)
    assert encoder(torch.rand(1, 3, 60, 50)).shape == (1, 512)


def test_without_its_file_it_says_where_that_comes_from():
    with pytest.raises(InputError, match=r"needs image_weights: .*MahmoodLab/conch on Hugging Face, CC BY-NC-ND 4\.0"):
        build_image_encoder("conch", None)
