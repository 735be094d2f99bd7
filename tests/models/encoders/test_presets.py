"""Every preset of the table without its weights: maps as stated, and a checkpoint of its names and shapes is wanted
whole, by name and shape, with nothing beside."""

from functools import cache
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mpamatch.errors import InputError
from mpamatch.models import TransUNetConfig, build_model
from mpamatch.models.encoders import Encoder, build_encoder, preset, presets
from mpamatch.models.encoders.build import FAMILIES
from mpamatch.models.encoders.features import FeaturesEncoder
from mpamatch.models.encoders.timm_state import COUNTS
from mpamatch.models.licences import licence_of, short
from tests.models.encoders.hub import empty_cache
from tests.models.narrow import narrow
from tests.models.published import PUBLISHED, RENAMED, Shapes, filled, vit_shapes

MAHMOOD = (
    "{} weights: CC BY-NC-ND 4.0, for non-commercial academic research only (Mahmood Lab); do not redistribute them or "
    "models tuned from them."
)
KAIKO = "kaiko.ai weights: Kaiko non-commercial licence, for no commercial purpose and in no patent application."
NVIDIA = (
    "MiT weights as published with SegFormer: NVIDIA Source Code License, for research or evaluation only, not "
    "commercially."
)
every_preset = pytest.mark.parametrize("name", presets())


class Quickly(TorchFunctionMode):
    """On the meta device: leaves out random filling, which takes up to 50 ms a tensor and fills nothing, and keeps
    linspace on the CPU, whose numbers MiT reads while it is built."""

    SKIPPED = (Tensor.normal_, Tensor.uniform_, Tensor.erfinv_, Tensor.mul_, Tensor.add_, Tensor.clamp_)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in self.SKIPPED:
            return args[0]
        device = {"device": "cpu"} if func is torch.linspace else {}
        return func(*args, **{**(kwargs or {}), **device})


def build_whole(name: str, path: Path | None = None) -> Encoder:
    """All the names and shapes of the whole model, none of its memory."""
    with torch.device("meta"), Quickly():
        return build_encoder(name, None if path is None else str(path), "batch")


@cache
def whole(name: str) -> Encoder:
    """The same without a file; no test changes it."""
    return build_whole(name)


def shapes_of(name: str) -> Shapes:
    """What its checkpoint holds: as published, else as the encoder itself has it."""
    if name in PUBLISHED:
        return PUBLISHED[name]
    encoder = whole(name)
    if isinstance(encoder, FeaturesEncoder):  # its file also holds what lies behind the last map
        entire = timm.create_model(name, num_classes=0).state_dict()
        return {key: tuple(value.shape) for key, value in entire.items() if not key.endswith(COUNTS)}
    return {key: tuple(value.shape) for key, value in inner(encoder).state_dict().items()}


def inner(encoder: Encoder) -> nn.Module:
    """The module of another library that holds the published weights, if there is one."""
    return getattr(encoder, "vit", None) or getattr(encoder, "mit", None) or encoder


def spread(shapes: Shapes) -> dict[str, Tensor]:
    """One draw for each entry, spread over its shape: 2.7 GB of UNI2-h in a file of a few hundred kB."""
    g = torch.Generator().manual_seed(0)
    drawn = {name: torch.randn((), generator=g).expand(shape) for name, shape in shapes.items()}
    return {name: value.round() if name.endswith("num_batches_tracked") else value for name, value in drawn.items()}


@every_preset
def test_a_preset_is_of_a_family_and_says_how_images_are_normalised(name):
    entry = presets()[name]
    assert entry.name == name
    assert entry.family in FAMILIES
    for constants in (entry.mean, entry.std):
        assert len(constants) == 3
        assert all(0 < number < 1 for number in constants)
    encoder = whole(name)
    assert (encoder.mean, encoder.std) == (entry.mean, entry.std)


@every_preset
def test_a_preset_has_maps_as_it_states(name):
    encoder = whole(name)
    height, width = 2 * encoder.multiple, 3 * encoder.multiple
    maps = encoder(torch.empty(1, 3, height, width, device="meta"))
    stated = zip(encoder.channels, encoder.strides, strict=True)
    assert [tuple(x.shape) for x in maps] == [(1, count, height // by, width // by) for count, by in stated]


@pytest.mark.parametrize(("name", "shapes"), PUBLISHED.items(), ids=list(PUBLISHED))
def test_the_presets_have_the_published_names_and_shapes(name, shapes):
    found = inner(whole(name)).state_dict()
    assert {key: tuple(value.shape) for key, value in found.items()} == shapes


# Class token and registers, and heads, which no shape of a checkpoint tells.
INVISIBLE = {
    "kaiko-s16": (1, 6),
    "kaiko-s8": (1, 6),
    "kaiko-b16": (1, 12),
    "kaiko-b8": (1, 12),
    "kaiko-l14": (5, 16),
    "lunit-s16": (1, 6),
    "lunit-s8": (1, 6),
    "phikon": (1, 12),
    "phikon-v2": (1, 16),
    "uni": (1, 16),
    "uni2-h": (9, 24),
    "virchow2": (5, 16),
    "gigapath": (1, 24),
    "h-optimus-0": (5, 24),
    "h0-mini": (5, 12),
    "hibou-b": (5, 12),
    "hibou-l": (5, 16),
}
SWIGLU = ("uni2-h", "virchow2", "gigapath", "h-optimus-0", "h0-mini", "hibou-b", "hibou-l")


@pytest.mark.parametrize(("name", "prefix", "heads"), [(name, *numbers) for name, numbers in INVISIBLE.items()])
def test_pathology_vits_are_as_published_in_what_no_shape_tells(name, prefix, heads):
    vit = whole(name).vit
    assert vit.num_prefix_tokens == prefix
    assert vit.blocks[0].attn.num_heads == heads
    gated = getattr(vit.blocks[0].mlp, "gate_last", None)
    assert gated is (False if name in SWIGLU else None)
    assert isinstance(vit.blocks[0].mlp.act, nn.SiLU if name in SWIGLU else nn.GELU)


def test_every_preset_of_a_hub_is_of_the_pathology_vits():
    assert {name for name, entry in presets().items() if entry.hub} == set(INVISIBLE)
    assert {name for name, entry in presets().items() if entry.gated} == {*SWIGLU, "uni"}


@pytest.mark.parametrize("name", ["kaiko-s8", "kaiko-b8", "lunit-s8"])
def test_a_patch_of_8_leaves_three_blocks_to_the_decoder(name):
    with torch.device("meta"), Quickly():
        model = build_model(TransUNetConfig(encoder=name, decoder_width=8, decoder_channels=[16, 8, 6, 4]), 3)
    logits, embedding, _ = model(torch.empty(2, 3, 48, 64, device="meta"))
    assert len(model.decoder.blocks) == 3
    assert logits.shape == (2, 3, 48, 64)
    assert embedding.shape == (2, 8, 12, 16)


@pytest.mark.filterwarnings("ignore:.*no-op")
@every_preset
@pytest.mark.slow
def test_the_whole_published_state_loads_strictly(name, tmp_path):
    path, shapes = tmp_path / "pytorch_model.bin", shapes_of(name)
    torch.save(spread(shapes), path)
    build_whole(name, path)
    first, *_, last = shapes
    state = spread(shapes) | {"blocks.99.norm1.weight": torch.zeros(8), first: torch.zeros(1, 2, 8)}
    del state[last]
    torch.save(state, path)
    with pytest.raises(InputError) as refusal:
        build_whole(name, path)
    for words in (
        f"{last} is missing",
        "blocks.99.norm1.weight is unknown to the model",
        f"{first} is (1, 2, 8), the model has {shapes[first]}",
        str(path),
    ):
        assert words in str(refusal.value)


@pytest.mark.filterwarnings("ignore:.*no-op")
@pytest.mark.parametrize(("name", "number"), [(name, n) for name, files in RENAMED.items() for n in range(len(files))])
@pytest.mark.slow
def test_a_file_with_the_names_of_another_library_loads_strictly(name, number, tmp_path):
    path, shapes = tmp_path / "model.bin", RENAMED[name][number]
    torch.save(spread(shapes), path)
    build_whole(name, path)
    token = next(key for key in shapes if key.endswith("cls_token"))
    bias = next(key for key in shapes if key.endswith(("query.bias", "qkv.bias")))
    state = spread(shapes) | {token: torch.zeros(1, 2, 8)}
    state[f"{bias}es"] = state.pop(bias)
    torch.save(state, path)
    with pytest.raises(InputError) as refusal:
        build_whole(name, path)
    for words in (
        "blocks.0.attn.qkv.bias is missing",
        f"cls_token is (1, 2, 8), the model has (1, 1, {shapes[token][-1]})",
        str(path),
    ):
        assert words in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "terms"),
    [("uni", MAHMOOD.format("UNI")), ("uni2-h", MAHMOOD.format("UNI2-h")), ("conch", MAHMOOD.format("CONCH"))]
    + [(f"mit_b{size}", NVIDIA) for size in range(6)]
    + [(f"kaiko-{size}", KAIKO) for size in ("s16", "s8", "b16", "b8", "l14")]
    + [("h-optimus-0", "H-optimus-0 weights: Apache-2.0 (Bioptimus).")]
    + [(name, None) for name in ("small_hybrid", "small_conv", "vit_base_patch16_224", "none", "minilm")],
)
def test_terms_of_weights_that_not_everybody_may_use(name, terms):
    assert licence_of(name) == terms


@every_preset
def test_terms_are_one_sentence(name):
    terms = licence_of(name)
    assert terms is None or (terms.endswith(".") and "\n" not in terms)


@pytest.mark.parametrize(
    ("name", "licence"),
    [
        ("uni", "CC BY-NC-ND 4.0"),
        ("mit_b0", "NVIDIA Source Code License"),
        ("kaiko-s16", "Kaiko non-commercial licence"),
        ("lunit-s8", "Lunit Public License"),
        ("phikon-v2", "Owkin non-commercial licence"),
        ("hibou-b", "Apache-2.0"),
        ("gigapath", "Prov-GigaPath terms"),
    ],
)
def test_the_name_of_a_licence_stands_in_its_sentence(name, licence):
    assert short(str(licence_of(name))) == licence


def test_an_entry_is_all_that_a_new_preset_needs(monkeypatch, tmp_path):
    """Built, normalised and named by the messages as it is written there; its layers are names."""
    table = tmp_path / "presets.yaml"
    table.write_text(
        "own:\n"
        "  family: vit\n"
        "  arguments: {model_name: vit_tiny_patch16_224, depth: 1, mlp_layer: SwiGLUPacked, act_layer: SiLU}\n"
        "  mean: [0.7, 0.6, 0.5]\n"
        "  std: [0.1, 0.2, 0.3]\n"
        "  hub: hf-hub:someone/own\n"
        "  licence: >-\n"
        "    Own weights: for\n"
        "    nobody.\n"
    )
    monkeypatch.setattr(preset, "TABLE", table)
    empty_cache(monkeypatch, tmp_path)
    presets.cache_clear()
    try:
        encoder = build_encoder("own", None, "batch")
        assert (encoder.mean, encoder.std) == ((0.7, 0.6, 0.5), (0.1, 0.2, 0.3))
        assert isinstance(encoder.vit.blocks[0].mlp.act, nn.SiLU)
        assert licence_of("own") == "Own weights: for nobody."
        with pytest.raises(InputError, match="did you mean 'own'"):
            build_encoder("owm", None, "batch")
        with pytest.raises(InputError, match="someone/own' could not be fetched for 'own'"):
            build_encoder("own", "hub", "batch")
    finally:
        presets.cache_clear()


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
    narrow(monkeypatch, "uni2-h", embed_dim=WIDTH, depth=2, num_heads=HEADS)
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
