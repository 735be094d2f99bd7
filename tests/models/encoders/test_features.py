"""Backbones of timm with feature maps: any family, its own constants, no chance in a step, weights layer by layer."""

import pytest
import timm
import torch
from torch import nn

from mpamatch.errors import InputError
from mpamatch.models import TransUNetConfig, build_model
from mpamatch.models.encoders import build_encoder
from mpamatch.models.encoders.features import FeaturesEncoder
from tests.models.narrow import add_variants

# Name → channels and strides of its maps.
FAMILIES = {
    "tf_efficientnet_lite0": ((16, 24, 40, 112), (2, 4, 8, 16)),
    "resnet10t": ((64, 64, 128, 256), (2, 4, 8, 16)),
    "convnext_atto": ((40, 80, 160), (4, 8, 16)),
    "regnetx_002": ((32, 24, 56, 152), (2, 4, 8, 16)),
    "mobilenetv3_small_050": ((16, 8, 16, 24), (2, 4, 8, 16)),
    "ghostnet_050": ((8, 12, 20, 40), (2, 4, 8, 16)),
    "edgenext_xx_small": ((24, 48, 88), (4, 8, 16)),
    "pvt_v2_b0": ((32, 64, 160), (4, 8, 16)),
    "mambaout_femto": ((48, 96, 192), (4, 8, 16)),  # gives (B, H, W, C)
    "hrnet_w18_small": ((64, 128, 256, 512), (2, 4, 8, 16)),
}
LARGE = {
    "swin_tiny_patch4_window7_224": ((96, 192, 384), (4, 8, 16)),
    "swinv2_tiny_window8_256": ((96, 192, 384), (4, 8, 16)),
    "densenet121": ((64, 256, 512, 1024), (2, 4, 8, 16)),
    "vit_small_patch16_dinov3_qkvb": ((384,), (16,)),
}
every_family = pytest.mark.parametrize(
    "name", [*FAMILIES, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)]
)


def image(side: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, side, side + 32, generator=torch.Generator().manual_seed(0))


@every_family
def test_maps_are_as_stated_and_without_chance(name):
    encoder = build_encoder(name, None, "group")
    assert isinstance(encoder, FeaturesEncoder)
    assert (encoder.channels, encoder.strides) == (FAMILIES | LARGE)[name]
    published = timm.get_pretrained_cfg(name)
    assert (encoder.mean, encoder.std) == (published.mean, published.std)
    maps, again = encoder.train()(image(64)), encoder(image(64))
    for x, y, channels, stride in zip(maps, again, encoder.channels, encoder.strides, strict=True):
        assert x.shape == (2, channels, 64 // stride, 96 // stride)
        assert torch.equal(x, y), "dropout or stochastic depth"
    sum(x.square().mean() for x in encoder(image(64))).backward()
    idle = [key for key, parameter in encoder.named_parameters() if parameter.requires_grad and parameter.grad is None]
    assert not idle, "computed for nothing, and refused by DistributedDataParallel"


def test_it_is_built_where_gradients_are_off():
    """As in a script that loads a run to predict."""
    with torch.no_grad():
        encoder = build_encoder("tf_efficientnet_lite0", None, "batch")
    assert all(parameter.requires_grad for parameter in encoder.parameters())


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto", "tf_efficientnet_lite0", "mambaout_femto"])
def test_published_weights_arrive_in_the_layers_that_are_kept(name, tmp_path):
    torch.manual_seed(1)
    whole = timm.create_model(name)
    for buffer in whole.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    file = tmp_path / "weights.pt"
    torch.save(whole.state_dict(), file)
    encoder = build_encoder(name, str(file), "group").eval()
    with torch.no_grad():
        wanted = whole.eval().forward_intermediates(image(64), output_fmt="NCHW", intermediates_only=True)
        found = encoder(image(64))
    last = {x.shape[-2]: x for x in wanted}
    for x in found:
        torch.testing.assert_close(x, last[x.shape[-2]], atol=1e-5, rtol=1e-5)


def test_a_file_with_a_layer_missing_is_refused_even_behind_the_last_map(tmp_path):
    state = timm.create_model("resnet10t").state_dict()
    file = tmp_path / "weights.pt"
    torch.save({name: value for name, value in state.items() if name != "layer4.0.conv1.weight"}, file)
    with pytest.raises(InputError, match=r"weights\.pt: does not fit ResNet: layer4\.0\.conv1\.weight is missing"):
        build_encoder("resnet10t", str(file), "group")


def test_a_decoder_of_five_blocks_begins_at_stride_32():
    config = TransUNetConfig(encoder="resnet10t", decoder_width=8, decoder_channels=[8, 8, 6, 4, 4], norm="group")
    model = build_model(config, 2).eval()
    assert model.encoder.strides == (2, 4, 8, 16, 32)
    with torch.no_grad():
        logits, embedding, _ = model(image(64))
    assert logits.shape == (2, 2, 64, 96)
    assert embedding.shape == (2, 6, 16, 24)
    assert model.embedding_width == 6
    with pytest.raises(InputError, match=r"decoder_channels: 5 blocks begin at stride 32, small_conv ends at 16"):
        build_model(TransUNetConfig(encoder="small_conv", decoder_channels=[8] * 5), 2)


@pytest.mark.parametrize(
    ("norm", "statistics", "factors"), [("trained", True, True), ("running", False, True), ("frozen", False, False)]
)
def test_batch_norms_of_a_pretrained_encoder(norm, statistics, factors):
    config = {"encoder": "tf_efficientnet_lite0", "encoder_weights": "offline", "encoder_norm": norm}
    model = build_model(TransUNetConfig(**config, decoder_width=8, decoder_channels=[8] * 4, norm="batch"), 2)
    layer = model.encoder.net.bn1
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(image(64)).logits.square().mean().backward()
    optimizer.step()
    assert (not torch.equal(layer.running_mean, before["running_mean"])) == statistics
    assert (not torch.equal(layer.weight, before["weight"])) == factors
    of_decoder = model.decoder.first[1]
    assert of_decoder.training
    assert int(of_decoder.num_batches_tracked) == 1


def test_shallow_stages_stay_as_they_came():
    config = {"encoder": "tf_efficientnet_lite0", "encoder_weights": "offline", "frozen_stages": 2}
    config |= {"encoder_norm": "trained"}
    model = build_model(TransUNetConfig(**config, decoder_width=8, decoder_channels=[8] * 4), 2).train()
    model(image(64)).logits.square().mean().backward()
    trained = {name for name, p in model.encoder.net.named_parameters() if p.grad is not None}
    still = {name for name, _ in model.encoder.net.named_parameters()} - trained
    assert {name.split(".")[0] + "." + name.split(".")[1] for name in still if name.startswith("blocks")} == {
        "blocks.0",
        "blocks.1",
    }
    assert {"conv_stem.weight", "bn1.weight"} <= still
    assert not model.encoder.net.bn1.training
    assert model.encoder.net.blocks[2][0].bn1.training


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"encoder_norm": "running"}, "model.encoder_norm: convnext_atto has no batch norms"),
        ({"frozen_stages": 4}, "model.frozen_stages: 4 of convnext_atto, which has 3"),
        ({"skips": [1]}, "model.skips: convnext_atto has maps at several strides"),
    ],
)
def test_what_would_do_nothing_is_refused(fields, words, tmp_path):
    file = tmp_path / "w.pt"
    torch.save(timm.create_model("convnext_atto").state_dict(), file)
    with pytest.raises(InputError) as caught:
        build_model(TransUNetConfig(encoder="convnext_atto", encoder_weights=str(file), **fields), 2)
    assert words in str(caught.value)


def test_blocks_of_a_vit_are_skips_at_strides_8_and_4(monkeypatch):
    add_variants(monkeypatch)
    config = {"encoder": "vit_tiny_patch16_224", "skips": [2, 9], "decoder_width": 8, "decoder_channels": [16, 8, 6, 4]}
    model = build_model(TransUNetConfig(**config, norm="group"), 3).eval()
    assert model.encoder.channels == (192, 192, 192)
    with torch.no_grad():
        maps = model.encode(image(32))
        _, wanted = model.encoder.vit.forward_intermediates(image(32), indices=[2, 9, 11], norm=True)
        assert all(torch.equal(x, y) for x, y in zip(maps, wanted, strict=True))
        base = model.decode(maps, (32, 64)).logits
        for place, block in ((0, 1), (1, 0)):  # the deeper one at stride 8, the first block's
            squeeze = model.decoder.blocks[block].squeeze
            assert squeeze.weight.shape[:2] == ((16, 8)[block], 192)
            without = tuple(torch.zeros_like(x) if i == place else x for i, x in enumerate(maps))
            assert not torch.equal(model.decode(without, (32, 64)).logits, base)
    assert [block.squeeze is None for block in model.decoder.blocks] == [False, False, True, True]
    off = build_model(TransUNetConfig(**{**config, "skips": []}, norm="group"), 3)
    assert off.encoder.channels == (192,)
    assert all(block.squeeze is None for block in off.decoder.blocks)


@pytest.mark.parametrize("skips", [[9, 2], [11], [2, 2], [12]])
def test_skips_that_are_no_blocks_in_rising_order_are_refused(skips):
    with pytest.raises(
        InputError, match=r"model\.skips: expected blocks of vit_tiny_patch16_224 in rising order, from 0 to 10"
    ):
        build_encoder("vit_tiny_patch16_224", None, "group", skips=skips)


def test_channels_last_on_a_cpu_changes_numbers_by_rounding_alone():
    config = TransUNetConfig(encoder="resnet10t", decoder_width=8, decoder_channels=[8] * 4, norm="group")
    model = build_model(config, 2).eval()
    with torch.no_grad():
        plain = model(image(64)).logits
        model.use_channels_last(encoder_alone=True)
        maps = model.encode(image(64))
        assert all(x.is_contiguous() for x in maps)
        assert next(m for m in model.encoder.modules() if isinstance(m, nn.Conv2d)).weight.is_contiguous(
            memory_format=torch.channels_last
        )
        torch.testing.assert_close(model(image(64)).logits, plain, atol=1e-4, rtol=1e-4)
