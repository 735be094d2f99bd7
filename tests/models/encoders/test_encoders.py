"""Encoders: maps as stated, prefix tokens dropped, names refused with the nearest."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from mpamatch.errors import InputError
from mpamatch.models.encoders import Encoder, build_encoder
from mpamatch.models.encoders.hybrid import HybridViTEncoder
from mpamatch.models.encoders.vit import ViTEncoder
from tests.models.narrow import add_variants, narrow


@pytest.fixture(autouse=True)
def variants(monkeypatch):
    add_variants(monkeypatch)


def image(height: int, width: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def assert_maps_as_stated(encoder: Encoder) -> None:
    height, width = 2 * encoder.multiple, 3 * encoder.multiple
    with torch.no_grad():
        maps = encoder.eval()(image(height, width))
    assert len(maps) == len(encoder.channels) == len(encoder.strides)
    assert list(encoder.strides) == sorted(encoder.strides)
    for x, channels, stride in zip(maps, encoder.channels, encoder.strides, strict=True):
        assert x.shape == (2, channels, height // stride, width // stride)
        assert x.isfinite().all()


@pytest.mark.parametrize(
    ("name", "channels", "strides"),
    [
        ("small_conv", (16, 32, 64, 128), (2, 4, 8, 16)),
        ("small_hybrid", (16, 32, 64, 128), (2, 4, 8, 16)),
        ("vit_tiny_patch16_224", (192,), (16,)),
        ("narrow16", (32,), (16,)),
        ("narrow8", (32,), (8,)),
        ("narrow32", (32,), (32,)),
        ("narrow14_reg", (32,), (14,)),
        ("narrow16_no_prefix", (32,), (16,)),
        ("narrow_hybrid", (64, 256, 512, 32), (2, 4, 8, 16)),
    ],
)
def test_maps_have_the_stated_channels_and_strides(name, channels, strides):
    encoder = build_encoder(name, None, "batch")
    assert (encoder.channels, encoder.strides, encoder.multiple) == (channels, strides, strides[-1])
    assert_maps_as_stated(encoder)


@pytest.mark.parametrize("name", ["narrow_hybrid_s32", "narrow_hybrid_stem"])
def test_other_hybrids_of_timm_fit_or_are_refused(name):
    """vit_large_r50_s32_224 and vit_tiny_r_s16_p8_224 have other stages than the hybrid of TransUNet."""
    refused = ""
    try:
        encoder = build_encoder(name, None, "batch")
    except InputError as error:
        refused = str(error)
    if refused:
        assert "model.encoder" in refused
    else:
        assert_maps_as_stated(encoder)


@pytest.mark.parametrize("name", ["narrow16", "narrow14_reg", "narrow16_no_prefix"])
def test_a_vit_map_is_its_tokens_in_place_without_the_prefix(name):
    encoder = build_encoder(name, None, "batch").eval()
    assert isinstance(encoder, ViTEncoder)
    patch, prefix = encoder.multiple, {"narrow16": 1, "narrow14_reg": 5, "narrow16_no_prefix": 0}[name]
    x = image(2 * patch, 3 * patch)
    with torch.no_grad():
        tokens, (features,) = encoder.vit.forward_features(x), encoder(x)
    assert tokens.shape[1] == prefix + 6
    for row in range(2):
        for column in range(3):
            assert torch.equal(features[:, :, row, column], tokens[:, prefix + 3 * row + column])


def test_what_changes_in_a_patch_changes_there_most(monkeypatch):
    """The uni preset's layer scale of 1e-5 leaves a fresh token almost to its own patch."""
    narrow(monkeypatch, "narrow16", init_values=1e-5)
    encoder = build_encoder("narrow16", None, "batch").eval()
    x = image(32, 48, 1)
    y = x.clone()
    y[:, :, 16:32, 32:48] += 1
    with torch.no_grad():
        change = (encoder(y)[0] - encoder(x)[0]).abs().sum(dim=(0, 1))
    assert change[1, 2] > 1000 * change.flatten()[:5].max()


def test_the_hybrid_runs_timms_own_layers_and_its_skips_lie_on_the_way():
    encoder = build_encoder("narrow_hybrid", None, "batch").eval()
    assert isinstance(encoder, HybridViTEncoder)
    x = image(32, 48, 1).requires_grad_()
    maps = encoder(x)
    with torch.no_grad():
        tokens = encoder.vit.forward_features(x)
    assert torch.allclose(maps[-1].flatten(2).transpose(1, 2), tokens[:, 1:], atol=1e-6)
    for shallow, deep in pairwise(maps[:-1]):
        (gradient,) = torch.autograd.grad(deep.square().mean(), shallow, retain_graph=True)
        assert gradient.abs().max() > 0


def test_the_small_hybrid_sees_far_and_the_small_conv_does_not():
    """Attention at stride 16 carries a change from one corner to the other; convolutions reach 61 pixels."""
    for name, reaches in (("small_hybrid", True), ("small_conv", False)):
        torch.manual_seed(0)
        encoder = build_encoder(name, None, "group").eval()
        for module in encoder.modules():  # the statistics of a GroupNorm would carry it too
            if isinstance(module, nn.Sequential) and len(module) == 3 and isinstance(module[1], nn.GroupNorm):
                module[1] = nn.Identity()
        x = image(160, 160, 1)
        y = x.clone()
        y[:, :, :16, :16] += 1
        with torch.no_grad():
            changed = (encoder(y)[-1] - encoder(x)[-1]).abs()[..., -1, -1].max() > 0
        assert bool(changed) == reaches, name


def test_the_norm_of_the_small_encoders_is_chosen():
    for norm, there, absent in (("batch", nn.BatchNorm2d, nn.GroupNorm), ("group", nn.GroupNorm, nn.BatchNorm2d)):
        kinds = [type(module) for module in build_encoder("small_conv", None, norm).modules()]
        assert there in kinds
        assert absent not in kinds
    with pytest.raises(InputError, match=r"unknown model\.norm 'grup': did you mean 'group'"):
        build_encoder("small_conv", None, "grup")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("small_conf", "unknown model.encoder 'small_conf': did you mean 'small_conv'?"),
        ("vit_bas_patch16_224", "did you mean 'vit_base_patch16_224'?"),
        ("uni2", "did you mean 'uni"),
        ("resnet19", "did you mean 'resnet18'?"),
        ("vit_relpos_small_patch16_224", "'vit_relpos_small_patch16_224' takes no other image size than its own"),
        ("levit_128s", "'levit_128s' takes no other image size"),
        ("inception_v3", "'inception_v3' takes no other image size than its own (its maps are"),
    ],
)
def test_a_name_that_gives_no_maps_is_refused(name, words):
    with pytest.raises(InputError) as caught:
        build_encoder(name, None, "batch")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
