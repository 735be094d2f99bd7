"""CONCH's text tower without its weights: published names and shapes load strictly, and the forward pass is CONCH's."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mpamatch.errors import InputError
from mpamatch.models import towers
from mpamatch.models.prompt import TextPrototypes
from mpamatch.models.text_encoders import TextEncoder, build_text_encoder, conch
from mpamatch.models.text_encoders.conch import CONCH_TOKENIZER
from mpamatch.models.weights import sha256
from tests.models.published import BESIDE_TEXT, conch_text_shapes, filled, write_conch_tokenizer

pytestmark = pytest.mark.slow

TEXTS = ["a gland", "stroma", "loose connective tissue with fibroblasts and a few small vessels"]
LONGEST = ("cell " * 125).strip()  # with start and end all 127 places
NARROW = {"width": 32, "heads": 2, "layers": 3, "output_dim": 16}
PAD, START, END = 0, 1, 2


def narrow_state() -> dict[str, Tensor]:
    return filled(conch_text_shapes(3, 32, 16), scale=0.3)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    return write_conch_tokenizer(tmp_path_factory.mktemp("tokenizer") / "words.json", [*TEXTS, "cell"])


@pytest.fixture
def narrow(monkeypatch):
    """CONCH of three narrow layers, through the real loader."""
    monkeypatch.setattr(conch, "CONCH_TEXT", conch.CONCH_TEXT | NARROW)


@pytest.fixture
def encoder(narrow, tmp_path, tokenizer) -> TextEncoder:
    torch.save(narrow_state() | filled(BESIDE_TEXT), tmp_path / "pytorch_model.bin")
    return build_text_encoder("conch", tmp_path / "pytorch_model.bin", tokenizer)


def by_hand(
    state: dict[str, Tensor],
    ids: Tensor,  # (S, 127), padded
    heads: int,
    context: Tensor | None = None,  # (n, width), in the places behind the start token
) -> Tensor:  # (S, out)
    """CONCH's published forward pass in plain products: the class token last, pooled there.

    Its mask: causal; and the class token's row, alone, hides place j where the text has padding at j − 1 (off by one).
    """
    state = {name.removeprefix("text."): value for name, value in state.items()}
    texts, places = len(ids), 128

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(x: Tensor, name: str, separator: str = ".") -> Tensor:
        return x @ state[f"{name}{separator}weight"].T + state[f"{name}{separator}bias"]

    words = state["token_embedding.weight"][ids]
    if context is not None:
        words[:, 1 : 1 + len(context)] = context
    width = words.shape[-1]
    x = torch.cat([words, state["cls_emb"].expand(texts, 1, width)], dim=1) + state["positional_embedding"]
    seen = torch.ones(places, places).tril().bool().expand(texts, places, places).clone()
    seen[:, -1, 1:] &= ids != PAD
    layers = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("transformer."))
    for layer in (f"transformer.resblocks.{index}" for index in range(layers)):
        split = (texts, places, 3, heads, width // heads)
        q, k, v = linear(norm(x, f"{layer}.ln_1"), f"{layer}.attn.in_proj", "_").reshape(split).unbind(2)
        logits = torch.einsum("sqhd,skhd->shqk", q, k) / (width // heads) ** 0.5
        attention = logits.masked_fill(~seen[:, None], float("-inf")).softmax(-1)
        mixed = torch.einsum("shqk,skhd->sqhd", attention, v).reshape(texts, places, width)
        x = x + linear(mixed, f"{layer}.attn.out_proj")
        inner = linear(norm(x, f"{layer}.ln_2"), f"{layer}.mlp.c_fc")
        inner = inner * (1 + torch.erf(inner / 2**0.5)) / 2  # the exact GELU
        x = x + linear(inner, f"{layer}.mlp.c_proj")
    return norm(x[:, -1], "ln_final") @ state["text_projection"]


def padded(tokens: Tensor) -> Tensor:
    return nn.functional.pad(tokens, (0, 127 - tokens.shape[1]), value=PAD)


def test_the_whole_tower_loads_strictly_and_computes_what_conch_computes(tmp_path, tokenizer):
    """All twelve layers, by the published names and shapes, as a checkpoint that holds the other towers too."""
    state = filled(conch_text_shapes())
    assert len(state) == 6 + 12 * 12
    torch.save(state | filled(BESIDE_TEXT), tmp_path / "pytorch_model.bin")
    encoder = build_text_encoder("conch", tmp_path / "pytorch_model.bin", tokenizer)
    for name, value in encoder.tower.state_dict().items():
        published = name.replace("token_embedding.words.", "token_embedding.")
        assert torch.equal(value, state[f"text.{published}"]), name
    tokens = encoder.tokenize(TEXTS[:2])
    with torch.no_grad():
        ours, expected = encoder.encode(tokens), by_hand(state, padded(tokens), heads=12)
    assert (encoder.width, encoder.token_width, encoder.length) == (512, 768, 127)
    assert expected.std() > 0.1
    assert cosine_distance(expected[0], expected[1]) > 1e-3
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def cosine_distance(a: Tensor, b: Tensor) -> float:
    return 1 - float(nn.functional.cosine_similarity(a, b, dim=0))


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:1], [*TEXTS, LONGEST]], ids=["some", "one", "full"])
@pytest.mark.parametrize("n", [0, 2])
def test_any_length_and_context_agree_with_the_published_mask(encoder, texts, n):
    """Also where a text fills all places: the class token then sees itself, and no padding."""
    texts = [one.replace("cell " * n, "", 1) if n else one for one in texts]
    tokens = encoder.tokenize(texts, n)
    context = torch.randn(n, 32, generator=torch.Generator().manual_seed(1)) if n else None
    with torch.no_grad():
        ours = encoder.encode(tokens, context)
        expected = by_hand(narrow_state(), padded(tokens), heads=2, context=context)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    assert tokens.shape[1] == min(127, int((tokens != PAD).sum(1).max()) + 1)
    assert (tokens.shape[1] == 127) == (len(texts) == 4)


def test_the_hand_written_mask_matters(encoder):
    """Without the off-by-one of the weights' own mask the result is another, so the agreement above is no accident."""
    tokens = padded(encoder.tokenize(TEXTS))
    with torch.no_grad():
        ours = encoder.encode(tokens)
        encoder.tower.correct_cls_mask = True
        other = encoder.tower(tokens)
    assert (ours - other).abs().max() > 1e-3


def test_open_clips_own_forward_pass_is_the_same(encoder):
    tokens = encoder.tokenize(TEXTS)
    with torch.no_grad():
        torch.testing.assert_close(encoder.encode(tokens), encoder.tower(padded(tokens)), atol=1e-5, rtol=1e-5)


def test_tokens_are_start_words_end_padding_and_no_word_is_lost(encoder):
    tokens = encoder.tokenize(TEXTS, 2)
    assert (tokens[:, 0] == START).all()
    for row in padded(tokens).tolist():
        used = row.index(END) + 1
        assert row[used:] == [PAD] * (127 - used)
        assert PAD not in row[:used]
    assert tokens[0].tolist()[:7] == [START, *[encoder.filler] * 2, *encoder.tokenize(TEXTS)[0].tolist()[1:4], PAD]
    assert torch.equal(encoder.tokenize(["A GLAND"]), encoder.tokenize(["a gland"]))  # lower case
    assert encoder.tokenize([LONGEST]).shape == (1, 127)
    with pytest.raises(InputError, match="longer than the 126 tokens that conch takes beside 1 context"):
        encoder.tokenize([LONGEST], 1)


@pytest.mark.parametrize("class_specific", [False, True])
def test_only_the_context_tokens_learn(encoder, class_specific):
    prototypes = TextPrototypes(encoder, [TEXTS[:2], TEXTS[2:]], context_tokens=2, class_specific=class_specific)
    value = prototypes()
    torch.testing.assert_close(value.norm(dim=1), torch.ones(2))
    (value[0] @ value[1]).backward()
    assert prototypes.context.grad.abs().flatten(0, -2).amax(1).min() > 0
    assert [name for name, _ in prototypes.named_parameters()] == ["context"]
    assert list(prototypes.state_dict()) == ["context"]
    assert all(not p.requires_grad and p.grad is None for p in encoder.parameters())


def test_a_prototype_is_the_mean_of_its_descriptions_unit_vectors(encoder):
    value = TextPrototypes(encoder, [TEXTS[:2], TEXTS[2:]], context_tokens=0)()
    with torch.no_grad():
        expected = nn.functional.normalize(by_hand(narrow_state(), padded(encoder.tokenize(TEXTS)), heads=2), dim=1)
    torch.testing.assert_close(value[0], nn.functional.normalize(expected[:2].mean(0), dim=0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(value[1], expected[2], atol=1e-5, rtol=1e-5)


def test_the_identity_names_both_files(encoder, tmp_path, tokenizer):
    assert encoder.identity == {
        "name": "conch",
        "source": str(tmp_path / "pytorch_model.bin"),
        "sha256": sha256(tmp_path / "pytorch_model.bin"),
        "tokenizer": sha256(tokenizer),
    }


def test_the_tokenizer_beside_the_checkpoint_is_taken(narrow, tmp_path, tokenizer):
    save_file(narrow_state(), tmp_path / "conch.safetensors")
    (tmp_path / CONCH_TOKENIZER).write_bytes(tokenizer.read_bytes())
    encoder = build_text_encoder("conch", tmp_path / "conch.safetensors")
    assert encoder.identity["tokenizer"] == sha256(tokenizer)


# What does not fit


@pytest.mark.parametrize("name", list(conch_text_shapes(1)))
def test_each_entry_that_is_missing_renamed_or_misshapen_is_named(name, narrow, tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(conch, "CONCH_TEXT", conch.CONCH_TEXT | {"layers": 1, "vocab_size": 512})
    whole = filled(conch_text_shapes(1, 32, 16, vocabulary=512))
    own = name.removeprefix("text.")
    for change, words in (
        ({}, f"{own} is missing"),
        ({f"{name}_old": whole[name]}, f"{own}_old is unknown to the model"),
        ({name: torch.zeros(3, 5, 7)}, f"{own} is (3, 5, 7), the model has {tuple(whole[name].shape)}"),
    ):
        torch.save({key: value for key, value in whole.items() if key != name} | change, tmp_path / "conch.bin")
        with pytest.raises(InputError) as refusal:
            build_text_encoder("conch", tmp_path / "conch.bin", tokenizer)
        assert words in str(refusal.value)
        assert str(tmp_path / "conch.bin") in str(refusal.value)


def test_places_for_one_token_more_are_refused(narrow, tmp_path, tokenizer):
    """What open_clip would build for a context of 128: one place more than CONCH has."""
    state = narrow_state() | {"text.positional_embedding": torch.zeros(129, 32)}
    torch.save(state, tmp_path / "conch.bin")
    with pytest.raises(InputError, match=r"positional_embedding is \(129, 32\), the model has \(128, 32\)"):
        build_text_encoder("conch", tmp_path / "conch.bin", tokenizer)


def test_missing_files_are_named_with_where_they_come_from(narrow, tmp_path):
    with pytest.raises(InputError, match=r"needs text_weights: .*MahmoodLab/conch on Hugging Face, CC BY-NC-ND 4\.0"):
        build_text_encoder("conch")
    with pytest.raises(InputError, match=r"nowhere\.bin: no such checkpoint file"):
        build_text_encoder("conch", tmp_path / "nowhere.bin")
    torch.save(narrow_state(), tmp_path / "conch.bin")
    with pytest.raises(InputError) as refusal:
        build_text_encoder("conch", tmp_path / "conch.bin")
    for words in (str(tmp_path / CONCH_TOKENIZER), "no such tokenizer file", "mahmoodlab/CONCH", "text_tokenizer"):
        assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_another_tokenizer_is_refused(narrow, tmp_path, tokenizer):
    torch.save(narrow_state(), tmp_path / "conch.bin")
    (tmp_path / "broken.json").write_text("{")
    write_conch_tokenizer(tmp_path / "swapped.json", TEXTS, ("<start_of_text>", "<pad>", "<end_of_text>"))
    bare = tokenizer.read_text().replace('"<start_of_text>"', '"<sot>"')
    (tmp_path / "bare.json").write_text(bare)
    for file, words in (
        ("broken.json", "is no tokenizer file"),
        ("swapped.json", "is not CONCH's tokenizer: it has"),
        ("bare.json", "'<start_of_text>': None"),
    ):
        with pytest.raises(InputError, match=words) as refusal:
            build_text_encoder("conch", tmp_path / "conch.bin", tmp_path / file)
        assert str(tmp_path / file) in str(refusal.value)
        assert "\n" not in str(refusal.value)


def test_a_tokenizer_that_adds_no_ends_is_refused(narrow, tmp_path, tokenizer):
    content = json.loads(tokenizer.read_text())
    content["post_processor"] = None
    (tmp_path / "open.json").write_text(json.dumps(content))
    torch.save(narrow_state(), tmp_path / "conch.bin")
    with pytest.raises(InputError, match=r"does not put .* around a text"):
        build_text_encoder("conch", tmp_path / "conch.bin", tmp_path / "open.json")


def test_other_towers_take_no_tokenizer(tokenizer):
    for name in ("minilm", "open_clip:ViT-B-32"):
        with pytest.raises(
            InputError, match=f"text_tokenizer: goes with conch, keep, biomedclip; {name} brings its own"
        ):
            build_text_encoder(name, None, tokenizer)


def test_conch_without_its_packages_says_what_to_install(monkeypatch):
    monkeypatch.setattr(towers, "has", lambda package: package != "tokenizers")
    with pytest.raises(InputError, match=r"'conch': pip install 'mpamatch\[text-offline\]'"):
        build_text_encoder("conch", "conch.bin")
