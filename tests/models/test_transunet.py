"""TransUNet and TransUNi: any size in, logits of that size out; skips used; what is frozen stays as it is."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from mpamatch.errors import InputError
from mpamatch.models.build import build_model, network_config
from mpamatch.models.encoders import build_encoder
from mpamatch.models.transunet import DecoderBlock, TransUNet, TransUNetConfig
from tests.models.narrow import add_variants

CLASSES = 3
TINY = TransUNetConfig(encoder="small_conv", decoder_width=16, decoder_channels=[16, 8, 8, 8])


@pytest.fixture(autouse=True)
def variants(monkeypatch):
    add_variants(monkeypatch)


def model_of(encoder: str = "small_conv", **changes) -> TransUNet:
    torch.manual_seed(0)
    return build_model(replace(TINY, encoder=encoder, **changes), CLASSES)


def image(height: int, width: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [(32, 48), (33, 47), (16, 16), (5, 7), (1, 1), (61, 18)])
@pytest.mark.parametrize("encoder", ["small_conv", "small_hybrid", "narrow16", "narrow8", "narrow14_reg"])
def test_logits_have_the_size_of_any_image(encoder, size):
    model = model_of(encoder).eval()
    with torch.no_grad():
        logits, embedding, _ = model(image(*size))
    assert logits.shape == (2, CLASSES, *size)
    assert logits.isfinite().all()
    multiple = model.encoder.multiple
    grid = [max(1, (side + multiple // 2) // multiple) for side in size]
    fine = 2 if encoder == "narrow8" else 4  # stride 4 is one block from a patch of 8, two from one of 14 or 16
    assert embedding.shape == (2, 8, fine * grid[0], fine * grid[1])
    assert len(model.decoder.blocks) == (3 if encoder == "narrow8" else 4)
    assert model.embedding_width == 8


def test_the_r50_hybrid_uses_three_skips():
    model = model_of("narrow_hybrid", norm="group").eval()  # an untrained BatchNorm fades its input in eval mode
    with torch.no_grad():
        maps = model.encode(image(37, 45, 1))
        logits, embedding, _ = model.decode(maps, (37, 45))
        assert [x.shape[1] for x in maps] == [64, 256, 512, 32]
        assert logits.shape == (1, CLASSES, 37, 45)
        assert embedding.shape == (1, 8, 8, 12)  # of an image resized to 32×48
        assert_every_map_counts(model, maps, (37, 45))
    inputs = [block.convs[0][0].in_channels for block in model.decoder.blocks]
    assert inputs == [16 + 512, 16 + 256, 8 + 64, 8]


def assert_every_map_counts(model: TransUNet, maps: tuple[Tensor, ...], size: tuple[int, int]) -> None:
    logits = model.decode(maps, size).logits
    for place in range(len(maps)):
        without = tuple(torch.zeros_like(x) if index == place else x for index, x in enumerate(maps))
        assert (model.decode(without, size).logits - logits).abs().max() > 1e-3, place


def test_the_small_encoder_skips_reach_logits_and_embedding():
    model = model_of(norm="group").eval()
    with torch.no_grad():
        maps = model.encode(image(32, 32))
        assert_every_map_counts(model, maps, (32, 32))
        embedding = model.decode(maps, (32, 32)).embedding
        for place, counts in enumerate([False, True, True, True]):  # stride 2 comes in after the embedding at stride 4
            without = tuple(torch.zeros_like(x) if index == place else x for index, x in enumerate(maps))
            changed = not torch.equal(model.decode(without, (32, 32)).embedding, embedding)
            assert changed == counts


def test_the_embedding_is_what_the_third_block_reads():
    model = model_of().eval()
    read: list[Tensor] = []
    model.decoder.blocks[2].register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    with torch.no_grad():
        embedding = model(image(32, 32)).embedding
    assert torch.equal(read[0], embedding)


@pytest.mark.parametrize(
    ("encoder", "size", "inner"),
    [
        ("small_hybrid", (33, 47), (32, 48)),
        ("small_hybrid", (5, 18), (16, 16)),
        ("narrow14_reg", (30, 40), (28, 42)),
        ("narrow14_reg", (256, 224), (252, 224)),
    ],
)
def test_an_image_between_two_grids_is_resized_to_the_nearest_and_its_logits_back(encoder, size, inner):
    model = model_of(encoder).eval()
    x = image(*size, 1)
    with torch.no_grad():
        resized = functional.interpolate(x, size=inner, mode="bilinear", align_corners=False)
        raw = model.decoder(model.encoder(resized))
        logits, embedding, _ = model(x)
    multiple = model.encoder.multiple
    assert raw.logits.shape[-2:] == tuple(16 * side // multiple for side in inner)
    assert torch.equal(embedding, raw.embedding)
    expected = functional.interpolate(raw.logits, size=size, mode="bilinear", align_corners=False)
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("side", [256, 250, 224, 100])
def test_patches_of_fourteen_share_the_image_evenly(side):
    """Each cell of a map then stands for the same share of the image, which is where methods read its label."""
    model = model_of("narrow14_reg").eval()
    patches: list[Tensor] = []
    model.encoder.register_forward_pre_hook(lambda _, inputs: patches.append(functional.avg_pool2d(inputs[0], 14)))
    column = (torch.arange(side) + 0.5).expand(1, 3, side, side)  # every pixel holds its own place
    with torch.no_grad():
        model(column)
    place = patches[0][0, 0, 0]
    even = (torch.arange(len(place)) + 0.5) * side / len(place)
    torch.testing.assert_close(place, even, atol=0.5, rtol=0)  # pixels


def test_a_patch_of_sixteen_is_not_resized():
    model = model_of("narrow16").eval()
    with torch.no_grad():
        maps = model.encode(image(32, 48))
        assert torch.equal(model.decode(maps, (32, 48)).logits, model.decoder(maps).logits)


def test_forward_is_encode_then_decode_and_trains_every_parameter():
    model = model_of()
    logits, embedding, _ = model(image(32, 32))
    (logits.square().mean() + embedding.square().mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    model.eval()
    with torch.no_grad():
        x = image(32, 40)
        assert torch.equal(model(x).logits, model.decode(model.encode(x), (32, 40)).logits)


def test_group_norm_treats_each_image_alone_and_batch_norm_does_not():
    x = image(32, 32)
    for norm, alone in (("group", True), ("batch", False)):
        model = model_of(norm=norm).train()
        kinds = {type(module) for module in model.modules()}
        assert (nn.BatchNorm2d in kinds) != alone
        assert (nn.GroupNorm in kinds) == alone
        with torch.no_grad():
            together, first = model(x).logits[:1], model(x[:1]).logits
        assert torch.allclose(together, first, atol=1e-5) == alone


def test_the_head_and_the_widths_are_chosen():
    model = model_of(head_kernel=3, decoder_width=24, decoder_channels=[20, 12, 8, 4])
    assert model.decoder.head.weight.shape == (CLASSES, 4, 3, 3)
    assert model_of().decoder.head.weight.shape == (CLASSES, 8, 1, 1)
    assert model.decoder.first[0].weight.shape == (24, 128, 3, 3)
    logits, embedding, _ = model(image(32, 32))
    assert logits.shape == (2, CLASSES, 32, 32)
    assert embedding.shape[1] == model.embedding_width == 12


BY_TWO = {  # a row 0, 3 doubled, and a column 0, 6
    True: ([0.0, 1, 2, 3], [0.0, 2, 4, 6]),  # the centres of the corner pixels stay
    False: ([0.0, 0.75, 2.25, 3], [0.0, 1.5, 4.5, 6]),  # each pixel stays on its quarter
}


@pytest.mark.parametrize("align_corners", [False, True])
def test_a_block_enlarges_as_the_configuration_says(align_corners):
    """Literal numbers; the resized skip of an intermediate map of a ViT as its neighbour."""
    block = DecoderBlock(1, 1, 1, "group", resized=True, align_corners=align_corners)
    block.convs = nn.Identity()
    assert block.squeeze is not None
    nn.init.ones_(block.squeeze.weight)
    nn.init.zeros_(block.squeeze.bias)
    x = torch.tensor([[0.0, 3.0], [6.0, 9.0]])[None, None]
    row, column = (torch.tensor(numbers) for numbers in BY_TWO[align_corners])
    with torch.no_grad():
        own, beside = block(x, x)[0]
    torch.testing.assert_close(own, row + column[:, None])
    torch.testing.assert_close(beside, own)


def doubled(length: int, align_corners: bool) -> np.ndarray:  # (2·length, length)
    """Linear interpolation: out of `length` points, of which each new one takes the two nearest by their distance."""
    matrix = np.zeros((2 * length, length))
    for out in range(2 * length):
        place = out * (length - 1) / (2 * length - 1) if align_corners else (out + 0.5) / 2 - 0.5
        place = min(max(place, 0), length - 1)
        low = min(int(place), length - 2)
        matrix[out, low : low + 2] = 1 - (place - low), place - low
    return matrix


@pytest.mark.parametrize("align_corners", [False, True])
def test_every_block_of_the_decoder_enlarges_so(align_corners):
    """Without convolutions the decoder is four doublings, here as products of matrices."""
    model = model_of("narrow16", align_corners=align_corners)
    decoder = model.decoder
    decoder.first, decoder.head = nn.Identity(), nn.Identity()
    for block in decoder.blocks:
        block.convs = nn.Identity()
    x = torch.randn(1, 32, 2, 3, generator=torch.Generator().manual_seed(0))
    rows, columns = np.eye(2), np.eye(3)
    for _ in range(4):
        rows = doubled(len(rows), align_corners) @ rows
        columns = doubled(len(columns), align_corners) @ columns
    with torch.no_grad():
        found = decoder((x,)).logits
    np.testing.assert_allclose(found[0], rows @ x[0].double().numpy() @ columns.T, rtol=1e-4, atol=1e-5)


def test_align_corners_is_kept_in_a_saved_configuration_and_off_in_former_ones():
    config = replace(TINY, align_corners=True)
    assert network_config("transunet", asdict(config)) == config
    former = {name: value for name, value in asdict(TINY).items() if name != "align_corners"}
    assert network_config("transunet", former) == TINY


def test_aligned_corners_recomputed_and_channels_last_give_the_same_numbers():
    x = image(32, 48).double()
    found = []
    for changes, last in (({}, False), ({"checkpointing": True}, False), ({}, True)):
        model = model_of(norm="group", align_corners=True, **changes).double()
        if last:
            model.use_channels_last()
        logits = model(x.contiguous(memory_format=torch.channels_last) if last else x).logits
        logits.square().mean().backward()
        found.append((logits.detach(), model.decoder.first[0].weight.grad, model.decoder.head.weight.grad))
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)
    apart = model_of(norm="group").double()(x).logits - found[0][0]
    assert apart.abs().max() > 0.01


@pytest.mark.slow
def test_aligned_corners_are_one_graph():
    torch._dynamo.reset()
    model, x = model_of(norm="group", align_corners=True).eval(), image(32, 32)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x).logits, model(x).logits)
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_file(build_encoder("small_conv", None, "batch").state_dict(), path)
    return str(path)


def test_a_frozen_encoder_has_no_gradient_and_never_moves(weights):
    model = model_of(encoder_weights=weights, tuning="frozen")
    assert not any(parameter.requires_grad for parameter in model.encoder.parameters())
    assert all(parameter.requires_grad for parameter in model.decoder.parameters())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        model.train()
        assert model.training
        assert model.decoder.training
        assert not any(module.training for module in model.encoder.modules())
        assert not any(x.requires_grad for x in model.encode(image(32, 32)))
        model(image(32, 32)).logits.square().mean().backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("encoder."), name
    assert not any(module.training for module in model.eval().modules())


def test_frozen_features_are_those_of_the_weights_in_training_too(weights):
    model = model_of(encoder_weights=weights, tuning="frozen").train()
    alone = build_encoder("small_conv", weights, "batch").eval()
    with torch.no_grad():
        for one, other in zip(model.encode(image(32, 32)), alone(image(32, 32)), strict=True):
            assert torch.equal(one, other)


def test_a_tuned_encoder_starts_at_its_weights_and_moves(weights):
    model = model_of(encoder_weights=weights, encoder_norm="trained").train()
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    alone = build_encoder("small_conv", weights, "batch")
    for one, other in zip(model.encoder.parameters(), alone.parameters(), strict=True):
        assert torch.equal(one, other)
    model(image(32, 32)).logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.encoder.parameters())


def test_gradients_stay_off_where_the_caller_turned_them_off():
    with torch.no_grad():
        assert not any(x.requires_grad for x in model_of().encode(image(32, 32)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tuning": "frozen"}, ["model.tuning", "needs model.encoder_weights"]),
        ({"tuning": "froze"}, ["unknown model.tuning 'froze'", "'frozen'"]),
        ({"norm": "bach"}, ["unknown model.norm 'bach'", "'batch'"]),
        ({"head_kernel": 2}, ["model.head_kernel", "1, 3", "2"]),
        ({"decoder_channels": [8, 8, 8]}, ["model.decoder_channels", "4 values", "[8, 8, 8]"]),
        ({"encoder": "smal_conv"}, ["unknown model.encoder 'smal_conv'", "'small_conv'"]),
        ({"encoder_weights": "/nowhere/weights.pth"}, ["/nowhere/weights.pth", "no such checkpoint file"]),
        ({"decoder_width": 0}, ["model.decoder_width"]),
        ({"decoder_channels": [8, 0, 8, 8]}, ["model.decoder_channels"]),
    ],
)
def test_a_field_that_does_not_fit_is_named(changes, words):
    with pytest.raises(InputError) as caught:
        model_of(**changes)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_seed_alone_decides_the_start():
    first, second = model_of("small_hybrid"), model_of("small_hybrid")
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
