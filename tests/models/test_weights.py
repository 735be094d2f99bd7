"""Checkpoints of strangers: all plain forms are read, nothing is executed, what does not fit is refused by name."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mpamatch.errors import InputError
from mpamatch.models.encoders import build_encoder
from mpamatch.models.weights import load_checked, read_state_dict, sha256
from tests.models.narrow import narrow
from tests.models.published import vit_shapes


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def assert_same_state(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert list(a) == list(b)
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_sha256_is_that_of_the_bytes(tmp_path):
    content = bytes(range(256)) * 5000  # more than one block of a MiB
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("form", ["plain", "state_dict", "model", "module.", "safetensors"])
def test_every_plain_form_is_read(tmp_path, form):
    state = net().state_dict()
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pth")
    if form == "safetensors":
        save_file(state, path)
        assert read_state_dict(path).keys() == state.keys()
        assert all(torch.equal(value, state[name]) for name, value in read_state_dict(path).items())
        return
    content = {
        "plain": state,
        "state_dict": {"state_dict": state, "epoch": 3},
        "model": {"model": state, "args": {"lr": 0.1}},
        "module.": {f"module.{name}": value for name, value in state.items()},
    }[form]
    torch.save(content, path)
    assert_same_state(read_state_dict(path), dict(state))


class Trap:
    """Unpickling it creates a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path):
    sprung, path = tmp_path / "sprung", tmp_path / "weights.pth"
    torch.save({"weight": torch.zeros(2), "extra": Trap(sprung)}, path)
    with pytest.raises(InputError, match="is no checkpoint of plain tensors") as caught:
        read_state_dict(path)
    assert str(caught.value).startswith(str(path))
    assert not sprung.exists()
    torch.load(path, weights_only=False)  # the trap works
    assert sprung.exists()


def test_a_whole_pickled_module_is_refused(tmp_path):
    torch.save(net(), tmp_path / "model.pt")
    with pytest.raises(InputError, match="is no checkpoint of plain tensors"):
        read_state_dict(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.pth", b"", "is no checkpoint of plain tensors"),
        ("a.pth", b"no checkpoint at all" * 10, "is no checkpoint of plain tensors"),
        ("a.safetensors", b"", "is no readable safetensors file"),
        ("a.safetensors", b"\xff" * 100, "is no readable safetensors file"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        read_state_dict(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_truncated_checkpoints_are_refused(tmp_path, suffix):
    path = tmp_path / f"weights.{suffix}"
    state = {"weight": torch.randn(100, 100)}
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-10_000])
    with pytest.raises(InputError, match=path.name):
        read_state_dict(path)


@pytest.mark.parametrize("content", [[torch.zeros(2)], torch.zeros(2), {"epoch": 3}, {"state_dict": {"a": 1}}])
def test_content_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(InputError, match="holds no state dict of tensors"):
        read_state_dict(tmp_path / "weights.pth")


@pytest.mark.parametrize("path", ["missing.pth", "."])
def test_a_missing_file_is_named(tmp_path, path):
    with pytest.raises(InputError, match="no such checkpoint file"):
        read_state_dict(tmp_path / path)


def test_what_fits_is_loaded():
    source, target = net(), net()
    load_checked(target, source.state_dict(), "file")
    assert_same_state(dict(source.state_dict()), dict(target.state_dict()))


def test_differences_are_listed_and_nothing_is_loaded():
    module = net()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = {name: torch.full_like(value, 7) for name, value in before.items()}
    state["0.weight"] = torch.zeros(4, 5)
    state["0.offset"] = state.pop("0.bias")
    with pytest.raises(InputError) as caught:
        load_checked(module, state, "uni.pth")
    sentence = str(caught.value)
    assert sentence.startswith("uni.pth: does not fit Sequential: ")
    for words in ("0.weight is (4, 5), the model has (4, 3)", "0.bias is missing", "0.offset is unknown to the model"):
        assert words in sentence
    assert "more" not in sentence
    assert_same_state(before, dict(module.state_dict()))


def test_a_long_list_of_differences_is_cut_and_counted():
    with pytest.raises(InputError, match=r"0\.weight is missing.* and 4 more\.$") as caught:
        load_checked(net(), {"foreign": torch.zeros(1)}, "file")  # 7 missing, 1 unknown, 4 shown
    assert str(caught.value).count("is missing") == 4


@pytest.fixture
def small_uni(monkeypatch) -> dict[str, Tensor]:
    """A state dict of UNI's names for a UNI of two narrow blocks, which the preset then stands for."""
    narrow(monkeypatch, "uni", embed_dim=32, depth=2, num_heads=4)
    shapes = vit_shapes(32, 2, 128, 16) | {"cls_token": (1, 1, 32), "pos_embed": (1, 197, 32)}
    shapes |= {f"blocks.{block}.mlp.fc2.weight": (32, 128) for block in range(2)}
    g = torch.Generator().manual_seed(0)
    return {name: 0.3 * torch.randn(shape, generator=g) for name, shape in shapes.items()}


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_a_local_uni_is_loaded_whole_and_gives_its_own_features(tmp_path, small_uni, suffix):
    path = tmp_path / f"pytorch_model.{suffix}"
    content = small_uni | {"head.weight": torch.zeros(5, 32), "head.bias": torch.zeros(5)}  # a classifier is left out
    save_file(content, path) if suffix == "safetensors" else torch.save(content, path)
    encoder = build_encoder("uni", str(path), "batch").eval()
    for name, value in encoder.vit.state_dict().items():
        assert torch.equal(value, small_uni[name]), name
    image = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        (features,) = encoder(image)
        expected = uni_by_hand(small_uni, image)
    assert features.shape == (2, 32, 14, 14)
    assert torch.allclose(features, expected, atol=1e-4)


def uni_by_hand(state: dict[str, Tensor], image: Tensor) -> Tensor:
    """A pre-norm ViT with layer scale, written out: (B, 3, 224, 224) → (B, 32, 14, 14)."""

    def norm(x: Tensor, name: str) -> Tensor:
        return nn.functional.layer_norm(x, (32,), state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    patches = image.unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 1, 4, 5).reshape(2, 196, 768)
    x = patches @ state["patch_embed.proj.weight"].reshape(32, 768).T + state["patch_embed.proj.bias"]
    x = torch.cat([state["cls_token"].expand(2, 1, 32), x], dim=1) + state["pos_embed"]
    for block in ("blocks.0", "blocks.1"):
        q, k, v = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").reshape(2, 197, 3, 4, 8).unbind(2)
        weights = torch.einsum("bqhd,bkhd->bhqk", q, k).div(8**0.5).softmax(-1)
        mixed = torch.einsum("bhqk,bkhd->bqhd", weights, v).reshape(2, 197, 32)
        x = x + state[f"{block}.ls1.gamma"] * linear(mixed, f"{block}.attn.proj")
        hidden = nn.functional.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1"))
        x = x + state[f"{block}.ls2.gamma"] * linear(hidden, f"{block}.mlp.fc2")
    return norm(x, "norm")[:, 1:].transpose(1, 2).reshape(2, 32, 14, 14)


def test_a_uni_with_an_entry_missing_renamed_or_of_another_shape_is_refused(tmp_path, small_uni):
    path = tmp_path / "uni.bin"
    for change, words in (
        (lambda s: s.pop("blocks.1.ls1.gamma"), "blocks.1.ls1.gamma is missing"),
        (lambda s: s.update({"blocks.0.ls1.scale": s.pop("blocks.0.ls1.gamma")}), "blocks.0.ls1.scale is unknown"),
        (
            lambda s: s.update(pos_embed=torch.zeros(1, 257, 16)),
            "pos_embed is (1, 197, 16), the model has (1, 197, 32)",
        ),
    ):
        spoiled = dict(small_uni)
        change(spoiled)
        torch.save(spoiled, path)
        with pytest.raises(InputError) as caught:
            build_encoder("uni", str(path), "batch")
        assert words in str(caught.value)
        assert str(path) in str(caught.value)


def test_the_small_encoders_take_their_own_checkpoint_and_no_other(tmp_path):
    source = build_encoder("small_conv", None, "batch")
    save_file(source.state_dict(), tmp_path / "small.safetensors")
    loaded = build_encoder("small_conv", str(tmp_path / "small.safetensors"), "batch")
    assert_same_state(dict(source.state_dict()), dict(loaded.state_dict()))
    with pytest.raises(InputError, match=r"does not fit SmallEncoder: .*is missing"):
        build_encoder("small_hybrid", str(tmp_path / "small.safetensors"), "batch")


def test_counts_that_were_cast_with_the_rest_are_read_and_fractions_are_not():
    module = torch.nn.BatchNorm2d(3)
    module.num_batches_tracked.fill_(7)
    halved = {name: value.half() for name, value in module.state_dict().items()}
    load_checked(torch.nn.BatchNorm2d(3), halved, "a.pt")
    other = torch.nn.BatchNorm2d(3)
    load_checked(other, halved, "a.pt")
    assert other.num_batches_tracked == 7
    for state in (
        {**halved, "num_batches_tracked": torch.tensor(7.5)},
        {**halved, "num_batches_tracked": torch.tensor(float("nan"))},
        {**halved, "weight": torch.ones(3, dtype=torch.int8)},
    ):
        with pytest.raises(InputError, match=r"^a\.pt: does not fit BatchNorm2d: \w+ holds torch\."):
            load_checked(other, state, "a.pt")


def test_whole_numbers_are_no_weights(tmp_path):
    """Read as floats they would be numbers that nobody trained."""
    state = dict(build_encoder("small_conv", None, "batch").state_dict())
    name = next(name for name, value in state.items() if value.is_floating_point())
    save_file(state | {name: state[name].view(torch.int32)}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=rf"{name} holds torch.int32, the model torch.float32"):
        build_encoder("small_conv", str(tmp_path / "a.safetensors"), "batch")


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_a_damaged_archive_is_told_in_one_short_sentence(tmp_path, name):
    path = tmp_path / name
    torch.save({"weight": torch.zeros(3)}, path)
    whole = path.read_bytes()
    for spoilt in (whole[:-30], whole.replace(b"data.pkl", b"data\x85\xff\xff\xff"), b"", whole[:4], b"x" * 9000):
        path.write_bytes(spoilt)
        with pytest.raises(InputError, match=f"^{path}: ") as caught:
            read_state_dict(path)
        assert len(str(caught.value)) < len(str(path)) + 400
