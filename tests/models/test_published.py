"""UNI and UNI2-h without their weights: every published entry is wanted, by name and shape, and none beside."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mpamatch.errors import InputError
from mpamatch.models import encoder as encoder_module
from mpamatch.models.encoder import build_encoder
from tests.models.published import UNI, UNI2, Shapes, filled, vit_shapes

PUBLISHED = [("uni", UNI, 1), ("uni2-h", UNI2, 9)]


@pytest.mark.parametrize(("name", "shapes", "prefix"), [("uni", UNI, 1), ("uni2-h", UNI2, 9)])
def test_the_presets_have_the_published_names_and_shapes(name, shapes, prefix):
    with torch.device("meta"):
        encoder = build_encoder(name, None, "batch")
    assert {k: tuple(v.shape) for k, v in encoder.vit.state_dict().items()} == shapes
    assert encoder.vit.num_prefix_tokens == prefix
    assert encoder.channels == (shapes["norm.weight"][0],)
    assert encoder.multiple == shapes["patch_embed.proj.weight"][-1]
    if name == "uni2-h":
        assert isinstance(encoder.vit.blocks[0].mlp.act, nn.SiLU)


def spread(shapes: Shapes) -> dict[str, Tensor]:
    """One draw for each entry, spread over its shape: 2.7 GB of UNI2-h in a file of a few hundred kB."""
    g = torch.Generator().manual_seed(0)
    return {name: torch.randn((), generator=g).expand(shape) for name, shape in shapes.items()}


def build_whole(name: str, path: Path) -> nn.Module:
    with torch.device("meta"):  # all the names and shapes of the whole model, none of its memory
        return build_encoder(name, str(path), "batch")


@pytest.mark.filterwarnings("ignore:.*no-op")
@pytest.mark.parametrize(("name", "shapes", "prefix"), PUBLISHED)
def test_the_whole_published_state_loads_strictly(name, shapes, prefix, tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save(spread(shapes), path)
    build_whole(name, path)
    state = spread(shapes) | {"blocks.24.norm1.weight": torch.zeros(8), "cls_token": torch.zeros(1, 2, 8)}
    del state["blocks.23.mlp.fc2.weight"]
    torch.save(state, path)
    with pytest.raises(InputError) as refusal:
        build_whole(name, path)
    for words in (
        "blocks.23.mlp.fc2.weight is missing",
        "blocks.24.norm1.weight is unknown to the model",
        f"cls_token is (1, 2, 8), the model has {shapes['cls_token']}",
        str(path),
    ):
        assert words in str(refusal.value)


WIDTH, HEADS, HIDDEN = 48, 4, 256  # of SwiGLU's two halves together: int(48 · 2.66667 · 2)


def small_uni2() -> Shapes:
    shapes = vit_shapes(WIDTH, 2, HIDDEN, 14) | {
        "cls_token": (1, 1, WIDTH),
        "reg_token": (1, 8, WIDTH),
        "pos_embed": (1, 256, WIDTH),
    }
    return shapes | {f"blocks.{block}.mlp.fc2.weight": (WIDTH, HIDDEN // 2) for block in range(2)}


def test_a_local_uni2_h_gives_its_own_features(tmp_path, monkeypatch):
    """Narrowed to two blocks: registers and class token without positions, SwiGLU with SiLU, nine tokens dropped."""
    narrow = {"embed_dim": WIDTH, "depth": 2, "num_heads": HEADS}
    monkeypatch.setitem(encoder_module.PRESETS, "uni2-h", encoder_module.PRESETS["uni2-h"] | narrow)
    state = filled(small_uni2(), scale=0.3)
    torch.save(state, tmp_path / "pytorch_model.bin")
    encoder = build_encoder("uni2-h", str(tmp_path / "pytorch_model.bin"), "batch").eval()
    image = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        (features,) = encoder(image)
    assert features.shape == (2, WIDTH, 16, 16)
    torch.testing.assert_close(features, uni2_by_hand(state, image), atol=1e-4, rtol=1e-4)


def uni2_by_hand(state: dict[str, Tensor], image: Tensor) -> Tensor:  # (B, 3, 224, 224) -> (B, WIDTH, 16, 16)
    def norm(x: Tensor, name: str) -> Tensor:
        return nn.functional.layer_norm(x, (WIDTH,), state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    images = len(image)
    patches = image.unfold(2, 14, 14).unfold(3, 14, 14).permute(0, 2, 3, 1, 4, 5).reshape(images, 256, 588)
    x = patches @ state["patch_embed.proj.weight"].reshape(WIDTH, 588).T + state["patch_embed.proj.bias"]
    prefix = torch.cat([state["cls_token"], state["reg_token"]], dim=1).expand(images, 9, WIDTH)
    x = torch.cat([prefix, x + state["pos_embed"]], dim=1)
    for block in ("blocks.0", "blocks.1"):
        split = (images, 265, 3, HEADS, WIDTH // HEADS)
        q, k, v = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").reshape(split).unbind(2)
        weights = torch.einsum("bqhd,bkhd->bhqk", q, k).div((WIDTH // HEADS) ** 0.5).softmax(-1)
        mixed = torch.einsum("bhqk,bkhd->bqhd", weights, v).reshape(images, 265, WIDTH)
        x = x + state[f"{block}.ls1.gamma"] * linear(mixed, f"{block}.attn.proj")
        gate, value = linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1").chunk(2, dim=-1)
        inner = gate * gate.sigmoid() * value
        x = x + state[f"{block}.ls2.gamma"] * linear(inner, f"{block}.mlp.fc2")
    return norm(x, "norm")[:, 9:].transpose(1, 2).reshape(images, WIDTH, 16, 16)
