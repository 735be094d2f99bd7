"""PLIP, KEEP, QuiltNet and BiomedCLIP: their published entries load strictly, and their towers are the authors'."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import pytest
import timm
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import save_file
from torch import Tensor, nn

from mpamatch.errors import InputError
from mpamatch.models import published, towers
from mpamatch.models.image_encoder import build_image_encoder
from mpamatch.models.licences import licence_of
from mpamatch.models.published import PUBLISHED, cached, fetched
from mpamatch.models.text_encoders import TextEncoder, build_text_encoder, text_encoders
from mpamatch.models.weights import load_checked, sha256
from tests.models.published import (
    Shapes,
    biomedclip_shapes,
    keep_shapes,
    plip_shapes,
    quiltnet_shapes,
    write_vocabulary,
)

transformers: Any = pytest.importorskip("transformers", reason="extra text-offline is not installed")

TEXTS = ["a gland", "stroma", "Loose connective tissue, with fibroblasts and a few small vessels."]
WORDS = ["gland", "stroma", "loose", "connective", "tissue", "with", "few", "small", "vessels", "fibro", "##blasts"]
SHAPES: dict[str, Shapes] = {
    "plip": plip_shapes(),
    "keep": keep_shapes(),
    "quiltnet": quiltnet_shapes(),
    "biomedclip": biomedclip_shapes(),
}
OF_BERT = ("keep", "biomedclip")
every_model = pytest.mark.parametrize("name", SHAPES)
both_halves = pytest.mark.parametrize("half", ["text", "image"])
CLIP_COLOURS = (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
# The same architectures, narrow and of two layers.
BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VISION = {"image_size": 224, "layers": 2, "width": 64, "head_width": 32, "patch_size": 32}
CLIP_TEXT = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 128}
CLIP_VISION = {**CLIP_TEXT, "hidden_size": 64, "intermediate_size": 256, "image_size": 224, "patch_size": 32}


# Names and shapes


def loaded(name: str, half: str, shapes: Shapes) -> nn.Module:
    """A tower of full size with such a checkpoint, without memory for its numbers."""
    state = {entry: torch.empty(shape, device="meta") for entry, shape in shapes.items()}
    tower = getattr(PUBLISHED[name], half)
    with torch.device("meta"):
        module = tower.build()
    load_checked(module, tower.part(state), "published")
    return module


@every_model
@both_halves
def test_what_is_published_loads_strictly(name, half):
    tower = loaded(name, half, SHAPES[name])
    assert sum(value.numel() for value in tower.parameters()) > 30_000_000


def test_each_entry_is_of_one_tower():
    """So what the towers leave out is the logits' scale and older libraries' buffers alone."""
    for name, shapes in SHAPES.items():
        numbers = sum(torch.Size(shape).numel() for entry, shape in shapes.items() if "position_ids" not in entry)
        held = sum(value.numel() for half in ("text", "image") for value in loaded(name, half, shapes).parameters())
        assert numbers == held + 1, name


@pytest.mark.parametrize(
    ("name", "half", "entry", "ours"),
    [
        ("plip", "text", "text_model.encoder.layers.3.mlp.fc1.weight", "transformer.resblocks.3.mlp.c_fc.weight"),
        ("plip", "text", "text_model.encoder.layers.3.self_attn.k_proj.bias", "resblocks.3.attn.in_proj_bias"),
        ("plip", "image", "vision_model.pre_layrnorm.bias", "ln_pre.bias"),
        ("plip", "image", "visual_projection.weight", "proj"),
        ("keep", "text", "text.pooler.dense.weight", "transformer.pooler.dense.weight"),
        ("keep", "image", "visual_head.2.bias", "visual_head.2.bias"),
        ("keep", "image", "visual.blocks.23.ls2.gamma", "visual.blocks.23.ls2.gamma"),
        ("quiltnet", "text", "ln_final.bias", "ln_final.bias"),
        ("biomedclip", "text", "text.proj.2.weight", "proj.2.weight"),
        ("biomedclip", "image", "visual.head.proj.weight", "head.proj.weight"),
    ],
)
def test_what_is_missing_or_misshapen_is_named(name, half, entry, ours):
    shapes = {key: shape for key, shape in SHAPES[name].items() if key != entry}
    with pytest.raises(InputError, match=f"{ours} is missing"):
        loaded(name, half, shapes)
    with pytest.raises(InputError, match=rf"{ours} is \(3, 5\)|{ours} is \(5, 3\)|{ours} is missing; .*is unknown"):
        loaded(name, half, shapes | {entry: (3, 5)})


# Numbers, narrow


def clip_whole() -> Any:
    """transformers' CLIPModel, which PLIP is, its activation as transformers takes it."""
    config = transformers.CLIPConfig(text_config=CLIP_TEXT, vision_config=CLIP_VISION, projection_dim=16)
    return lively(transformers.CLIPModel(config))


def lively(model: nn.Module, noise: float = 0.3) -> Any:
    """Adds noise to a fresh model: its own start is so small that inputs, and activations, hardly differ."""
    for value in model.parameters():
        value.data = value + noise * torch.randn(value.shape)
    return model.eval()


@pytest.fixture
def narrow(monkeypatch):
    """The published models as the table makes them, but narrow."""
    real: Callable[[str], Any] = open_clip.get_model_config

    def config(model: str) -> dict[str, Any]:
        return {**real(model), "embed_dim": 16, "text_cfg": TEXT, "vision_cfg": VISION}

    monkeypatch.setattr(open_clip, "get_model_config", config)
    monkeypatch.setattr(published, "PUBMEDBERT", published.PUBMEDBERT | BERT)
    monkeypatch.setattr(published, "BIOMEDCLIP_IMAGE", "vit_tiny_patch16_224")
    monkeypatch.setattr(
        published, "KEEP_IMAGE", {**published.KEEP_IMAGE, "model_name": "vit_tiny_patch16_224", "depth": 2}
    )


class Whole:
    """A model's checkpoint, and what its authors' own libraries make of it."""

    def __init__(self, name: str):
        self.name = name
        self.bert = self.vit = None
        torch.manual_seed(7)
        if name == "plip":
            self.clip = clip_whole()
            self.state = self.clip.state_dict()
        elif name == "quiltnet":
            config = open_clip.get_model_config("ViT-B-32")
            self.clip = lively(open_clip.CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"]))
            self.state = self.clip.state_dict()
        else:
            pooled = name == "keep"
            config = transformers.BertConfig(**published.PUBMEDBERT)
            self.bert = lively(transformers.BertModel(config, add_pooling_layer=pooled))
            layers = {"init_values": 1e-5, "depth": 2} if pooled else {}
            self.vit = lively(timm.create_model("vit_tiny_patch16_224", num_classes=0, **layers), 0.05)
            self.heads = {
                "keep": {"visual_head.0.weight": (32, 192), "visual_head.0.bias": (32,)}
                | {"visual_head.2.weight": (32, 32), "visual_head.2.bias": (32,)},
                "biomedclip": {"visual.head.proj.weight": (512, 192)}
                | {"text.proj.0.weight": (272, 32), "text.proj.2.weight": (512, 272)},
            }[name]
            self.heads = {entry: 0.1 * torch.randn(shape) for entry, shape in self.heads.items()}
            inner = ("text.", "visual.") if pooled else ("text.transformer.", "visual.trunk.")
            self.state = {inner[0] + entry: value for entry, value in self.bert.state_dict().items()}
            self.state |= {inner[1] + entry: value for entry, value in self.vit.state_dict().items()} | self.heads
        self.state = {entry: value.detach().clone().contiguous() for entry, value in self.state.items()}

    def words(self) -> nn.Embedding:
        if self.bert is not None:
            return self.bert.get_input_embeddings()
        return self.clip.text_model.embeddings.token_embedding if self.name == "plip" else self.clip.token_embedding

    @torch.no_grad()
    def text(self, tokens: Tensor) -> Tensor:
        if self.name == "plip":
            return self.clip.text_projection(self.clip.text_model(input_ids=tokens).pooler_output)
        if self.name == "quiltnet":
            return self.clip.encode_text(tokens)
        out = self.bert(input_ids=tokens, attention_mask=(tokens != 0).long())
        if self.name == "keep":
            return out.pooler_output
        inner = nn.functional.gelu(out.last_hidden_state[:, 0] @ self.heads["text.proj.0.weight"].T)
        return inner @ self.heads["text.proj.2.weight"].T

    @torch.no_grad()
    def image(self, image: Tensor) -> Tensor:
        if self.name == "plip":
            return self.clip.visual_projection(self.clip.vision_model(pixel_values=image).pooler_output)
        if self.name == "quiltnet":
            return self.clip.encode_image(image)
        x = self.vit(image)
        if self.name == "biomedclip":
            return x @ self.heads["visual.head.proj.weight"].T
        x = nn.functional.gelu(x @ self.heads["visual_head.0.weight"].T + self.heads["visual_head.0.bias"])
        return x @ self.heads["visual_head.2.weight"].T + self.heads["visual_head.2.bias"]


@pytest.fixture
def whole(name, narrow) -> Whole:
    return Whole(name)


@pytest.fixture
def file(whole, tmp_path) -> Path:
    """The checkpoint, with a vocabulary beside it."""
    write_vocabulary(tmp_path / "vocab.txt", WORDS)
    save_file(whole.state, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.fixture
def encoder(name, file) -> TextEncoder:
    return build_text_encoder(name, file)


@every_model
def test_the_text_tower_is_its_authors(name, whole, encoder):
    tokens = encoder.tokenize(TEXTS)
    expected = whole.text(tokens)
    assert nn.functional.cosine_similarity(expected[:1], expected[1:]).max() < 0.9999
    torch.testing.assert_close(encoder.encode(tokens), expected, atol=1e-5, rtol=1e-4)
    assert (encoder.width, encoder.token_width) == (expected.shape[1], 32)


@every_model
def test_context_takes_the_place_of_a_word(name, whole, encoder):
    """The authors' model with that vector in its table at the word that keeps the place."""
    tokens = encoder.tokenize(TEXTS, 1)
    context = torch.randn(1, 32, generator=torch.Generator().manual_seed(1))
    assert int((tokens == encoder.filler).sum()) == len(TEXTS)  # no text has that word
    before = whole.text(tokens)
    with torch.no_grad():
        whole.words().weight[encoder.filler] = context
    expected = whole.text(tokens)
    assert (expected - before).abs().max() > 1e-3
    torch.testing.assert_close(encoder.encode(tokens, context), expected, atol=1e-5, rtol=1e-4)


@every_model
def test_the_image_tower_is_its_authors(name, whole, file):
    encoder = build_image_encoder(name, str(file))
    image = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    mean, std = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) if name == "keep" else CLIP_COLOURS
    expected = whole.image((image - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None])
    assert (expected[0] - expected[1]).abs().max() > 1e-3
    torch.testing.assert_close(encoder(image), expected, atol=1e-5, rtol=1e-4)
    assert encoder.identity == {"name": name, "source": str(file), "sha256": sha256(file)}


@pytest.mark.parametrize("name", ["plip", "quiltnet"])
def test_the_activation_is_the_published_one(name, whole, encoder):
    """QuickGELU and GELU differ here by more than the agreement above allows."""
    other = "ViT-B-32" if name == "plip" else "ViT-B-32-quickgelu"
    tower = published.clip_text(other)
    load_checked(tower, PUBLISHED[name].text.part(whole.state), "whole")
    tokens = encoder.tokenize(TEXTS)
    with torch.no_grad():
        assert (tower.eval()(tokens) - encoder.encode(tokens)).abs().max() > 1e-3


@every_model
def test_only_the_context_learns_and_no_value_is_read_back(name, encoder):
    context = nn.Parameter(torch.zeros(2, 32))
    encoder.encode(encoder.tokenize(TEXTS, 2), context).square().sum().backward()
    assert context.grad is not None
    assert context.grad.abs().sum() > 0
    assert all(not value.requires_grad and value.grad is None for value in encoder.parameters())


@pytest.mark.parametrize("name", OF_BERT)
def test_padding_is_left_out_of_the_work_and_changes_nothing(name, encoder):
    tokens = encoder.tokenize(TEXTS)
    assert tokens.shape[1] == int((tokens != 0).sum(dim=1).max()) < 40
    full = nn.functional.pad(tokens, (0, 256 - tokens.shape[1]))
    torch.testing.assert_close(encoder.encode(full), encoder.encode(tokens), atol=1e-5, rtol=1e-4)
    assert encoder.length == 256


# Words


@pytest.mark.parametrize("name", OF_BERT)
def test_ids_are_those_of_transformers_own_tokenizer(name, encoder, file):
    (file.parent / "tokenizer_config.json").write_text('{"do_lower_case": true, "tokenizer_class": "BertTokenizer"}')
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent)
    texts = [*TEXTS, "H&E: Glánd  (round) of 12\tµm, 腺 fibroblasts"]
    theirs = tokenizer(texts, padding="longest", return_tensors="pt").input_ids
    assert torch.equal(encoder.tokenize(texts), theirs)
    assert encoder.identity["tokenizer"] == sha256(file.parent / "vocab.txt")


@pytest.mark.parametrize("name", ["keep"])
def test_a_vocabulary_may_lie_elsewhere(name, encoder, file, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    moved = (tmp_path / "vocab.txt").rename(tmp_path / "elsewhere" / "vocab.txt")
    for place in (moved, moved.parent):
        again = build_text_encoder(name, file, place)
        assert torch.equal(again.tokenize(TEXTS), encoder.tokenize(TEXTS))


@pytest.mark.parametrize("name", ["keep"])
def test_another_vocabulary_is_refused(name, file, tmp_path):
    special = ("[PAD]", *(f"[unused{number}]" for number in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    write_vocabulary(tmp_path / "bert.txt", WORDS, special)
    write_vocabulary(tmp_path / "short.txt", WORDS, size=1000)
    (tmp_path / "image.txt").write_bytes(b"\x89PNG\xff\xfe")
    for vocabulary, words in (
        ("nowhere.txt", "no such vocabulary"),
        ("bert.txt", r"\[CLS\] is 101, as BERT's"),
        ("short.txt", "of 30522 tokens: it has 1000"),
        ("image.txt", "image.txt: is no"),
    ):
        with pytest.raises(InputError, match=words) as refusal:
            build_text_encoder(name, file, tmp_path / vocabulary)
        assert str(tmp_path / vocabulary) in str(refusal.value)
        assert "\n" not in str(refusal.value)


# Fetching


@pytest.fixture
def hub(monkeypatch, tmp_path) -> dict[str, list]:
    """Hugging Face without network: `has` names the files of every repository, `asked` what was asked for."""
    known: dict[str, list] = {"has": [], "asked": [], "cached": []}

    def download(repository: str, file: str) -> str:
        known["asked"].append((repository, file))
        if known["has"] is None:
            raise LocalEntryNotFoundError("no route to the hub\nsecond line")
        if file not in known["has"]:
            raise EntryNotFoundError(f"{file}: 404")
        return str(tmp_path / file)

    def look(repository: str, file: str) -> str | None:
        return str(tmp_path / file) if file in known["cached"] else None

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", look)
    return known


@pytest.mark.parametrize("name", ["plip", "biomedclip"])
def test_weights_are_fetched_under_the_name_that_is_there(name, whole, file, hub, tmp_path):
    second = PUBLISHED[name].files[1]
    torch.save(whole.state, tmp_path / second)
    hub["has"] = [second, "vocab.txt"]
    encoder = build_text_encoder(name)
    assert hub["asked"][:2] == [(PUBLISHED[name].hub, file) for file in PUBLISHED[name].files]
    assert encoder.identity["source"] == PUBLISHED[name].hub
    assert encoder.identity["sha256"] == sha256(tmp_path / second)
    tokens = encoder.tokenize(TEXTS)
    torch.testing.assert_close(encoder.encode(tokens), whole.text(tokens), atol=1e-5, rtol=1e-4)
    assert build_image_encoder(name, None).identity["source"] == PUBLISHED[name].hub


def test_what_was_fetched_before_asks_no_network(hub, tmp_path):
    hub["cached"] = ["pytorch_model.bin"]
    assert fetched("plip", PUBLISHED["plip"].files, "it", "--flag") == tmp_path / "pytorch_model.bin"
    assert hub["asked"] == []


def test_a_cache_that_knows_a_file_is_not_there_holds_nothing(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: object())
    assert cached("someone/model", ("model.safetensors",)) is None


@every_model
def test_without_network_the_sentence_says_what_to_download_and_how_to_give_it(name, hub):
    hub["has"] = None
    model = PUBLISHED[name]
    for build, flag in (
        (lambda: build_text_encoder(name), "--method.text_weights FILE"),
        (lambda: build_image_encoder(name, None), "--method.image_weights FILE"),
    ):
        hub["asked"].clear()
        with pytest.raises(InputError) as refusal:
            build()
        for words in (repr(name), "no route to the hub", " or ".join(model.files), model.hub, flag):
            assert words in str(refusal.value)
        assert "\n" not in str(refusal.value)
        assert len(hub["asked"]) == 1  # the hub's client has waited long enough


def test_without_network_the_vocabulary_is_asked_for(hub, tmp_path):
    hub["has"] = None
    with pytest.raises(InputError, match=r"the vocabulary of text encoder 'keep': cannot be fetched") as refusal:
        build_text_encoder("keep", tmp_path / "keep.bin")
    for words in ("vocab.txt of Astaxanthin/KEEP", "--method.text_tokenizer FILE"):
        assert words in str(refusal.value)


# Lists


def test_the_list_says_what_is_here(hub):
    lacking = text_encoders()
    assert lacking["plip"] == (
        "weights not here: vinid/plip is fetched from Hugging Face on first use, or give --method.text_weights FILE"
    )
    hub["cached"] = ["model.safetensors"]
    assert text_encoders()["plip"] == ""
    assert text_encoders()["keep"].startswith("weights not here: Astaxanthin/KEEP")  # its vocabulary is not
    hub["cached"].append("vocab.txt")
    assert text_encoders()["keep"] == ""
    assert hub["asked"] == []


def test_the_list_says_which_package_is_missing(hub, monkeypatch, tmp_path):
    monkeypatch.setattr(towers, "has", lambda package: package != "tokenizers")
    hub["cached"] = ["model.safetensors", "open_clip_model.safetensors", "vocab.txt"]
    for name in SHAPES:
        expected = "pip install 'mpamatch[text-offline]'" if name in OF_BERT else ""
        assert text_encoders()[name] == expected
    with pytest.raises(InputError, match=r"'keep': pip install 'mpamatch\[text-offline\]'"):
        build_text_encoder("keep", tmp_path / "keep.bin")


@pytest.mark.parametrize(("wrong", "right"), [("pilp", "plip"), ("quilt-net", "quiltnet"), ("bioclip", "biomedclip")])
def test_the_nearest_name_is_said(wrong, right):
    for build in (lambda: build_text_encoder(wrong), lambda: build_image_encoder(wrong, None)):
        with pytest.raises(InputError, match=f"did you mean '{right}'"):
            build()


def test_terms_are_shown_where_there_are_some():
    assert "without a licence" in str(licence_of("plip"))
    assert [licence_of(name) for name in ("keep", "quiltnet", "biomedclip")] == [None] * 3
