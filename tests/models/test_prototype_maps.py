"""LPD's network: maps against plain numpy, prediction from maps, known labels, test-time augmentation, MiT."""

import numpy as np
import pytest
import torch

from mpamatch.errors import InputError
from mpamatch.models.build import build_model
from mpamatch.models.encoders import build_encoder
from mpamatch.models.prototype_maps import PrototypeMaps, PrototypeMapsConfig, normalised
from tests.methods.cases import lpd_network


def model_of(**fields) -> PrototypeMaps:
    model = lpd_network(**fields).double().eval()
    assert isinstance(model, PrototypeMaps)
    return model


def image(height: int = 32, width: int = 48, n: int = 2) -> torch.Tensor:
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@torch.no_grad()
@pytest.mark.parametrize("weighting", ["pixel", "image"])
def test_class_maps_are_those_of_plain_numpy(weighting):
    model = model_of(map_weights=[0.0, 0.0, 2.0], prototype_weighting=weighting)
    decoder = model.decoder
    cosine = decoder.cosines(model.encode(image()))
    each = cosine[2].numpy() * float(decoder.factors[2])
    mean = each.mean((3, 4))
    share = np.exp(mean) / np.exp(mean).sum(2, keepdims=True)
    found = decoder.class_maps(cosine)
    np.testing.assert_allclose(found.score, (share * mean).sum(2), rtol=1e-9)
    size = found.map.shape[-2:]
    assert tuple(size) == tuple(cosine[0].shape[-2:])
    of_pixel = np.exp(each) / np.exp(each).sum(2, keepdims=True)
    wanted = torch.from_numpy(((of_pixel if weighting == "pixel" else share[..., None, None]) * each).sum(2))
    wanted = torch.nn.functional.interpolate(wanted, size=size, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(found.map, wanted, rtol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize(("weighting", "share"), [("pixel", 0.75), ("image", 0.5)])
def test_prototypes_are_weighted_by_a_softmax_in_each_pixel_or_by_one_of_the_image(weighting, share):
    """Two pixels, each of which one of two prototypes sees with ln 3 and the other with 0: softmaxes of (¾, ¼) in each
    pixel, and of (½, ½) from the means, which are equal."""
    decoder = model_of(prototypes=2, prototype_weighting=weighting, map_weights=[1.0, 0.0, 0.0]).decoder
    decoder.factors.fill_(1)
    cosine = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]], dtype=torch.float64).expand(1, 2, 2, 1, 2) * np.log(3)
    found = decoder.class_maps([cosine, cosine, cosine])
    torch.testing.assert_close(found.map, torch.full((1, 2, 1, 2), share * np.log(3), dtype=torch.float64))
    torch.testing.assert_close(found.score, torch.full((1, 2), 0.5 * np.log(3), dtype=torch.float64))


@torch.no_grad()
def test_the_published_scoring_by_hand():
    """One prototype a class; of class 1 the scales 2 and 3 become (0, 0, ½, 1), scale 4 is below 0 and becomes 0; of
    class 2 each scale sees one pixel. Weights .3, .3, .4, background (1 − the highest)¹⁰."""
    model = model_of(prototypes=1, scoring="published", test_flips="none")
    model.decoder.factors.fill_(1)
    scales = [
        [[-1, 0, 2, 4], [2, 0, 0, 0]],
        [[1, 1, 3, 5], [0, 1, 0, 0]],
        [[-3, -2, -1, -4], [0, 0, 1, 0]],
    ]
    given = [torch.tensor(one, dtype=torch.float64).reshape(1, 2, 1, 2, 2) for one in scales]
    model.decoder.cosines = lambda maps: given
    score = model(image(2, 2, 1), torch.tensor([0.0, 1.0, 1.0])).logits.exp()[0].flatten(1)
    wanted = [[0.7**10, 0.7**10, 0.6**10, 0.4**10], [1e-4, 1e-4, 0.3, 0.6], [0.3, 0.3, 0.4, 1e-4]]
    torch.testing.assert_close(score, torch.tensor(wanted, dtype=torch.float64))
    alone = model(image(2, 2, 1), torch.tensor([0.0, 1.0, 0.0])).logits.exp()[0].flatten(1)
    wanted = [[1.0, 1.0, 0.7**10, 0.4**10], [1e-4, 1e-4, 0.3, 0.6], [1e-4] * 4]
    torch.testing.assert_close(alone, torch.tensor(wanted, dtype=torch.float64))


@torch.no_grad()
def test_the_published_test_time_augmentation_is_mirror_times_factors():
    """Six views; each is scaled to 0 … 1 by itself, scale by scale, and brought back before the mean."""
    model = model_of(scoring="published", test_flips="horizontal", test_factors=[0.9, 1, 1.1])
    x, views = image(32, 48), []
    for factor in (0.9, 1, 1.1):
        for mirrored in (False, True):
            cosines = model.decoder.cosines(model.encode((x.flip(-1) if mirrored else x) * factor))
            total = torch.zeros(2, 2, 32, 48, dtype=torch.float64)
            for cosine, scale, weight in zip(cosines, model.decoder.factors, (0.3, 0.3, 0.4), strict=True):
                each = (cosine * scale).numpy()
                of_pixel = np.exp(each) / np.exp(each).sum(2, keepdims=True)
                cam = np.maximum((of_pixel * each).sum(2), 0)
                low, high = cam.min((2, 3), keepdims=True), cam.max((2, 3), keepdims=True)
                cam = torch.from_numpy((cam - low) / np.maximum(high - low, 1e-4))
                total += weight * torch.nn.functional.interpolate(cam, size=(32, 48), mode="bilinear")
            views.append(total.flip(-1) if mirrored else total)
    mean = torch.stack(views).mean(0)
    told = torch.tensor([0.0, 1.0, 1.0])
    wanted = torch.cat([(1 - mean.amax(1, keepdim=True)) ** 10, mean], 1).clamp(min=1e-4)
    torch.testing.assert_close(model(x, told).logits.exp(), wanted)
    joint = model_of(test_flips="horizontal", test_factors=[0.9, 1, 1.1])
    assert (joint(x, told).logits.exp() - wanted).abs().max() > 0.05


@torch.no_grad()
def test_maps_are_means_over_factors_of_the_normalised_image():
    model, x = model_of(test_flips="none", test_factors=[0.5, 2.0]), image()
    one, two = (model.decoder(model.encode(x * factor)) for factor in (0.5, 2.0))
    found = model._augmented(x)
    torch.testing.assert_close(found.map, (one.map + two.map) / 2)
    torch.testing.assert_close(found.score, (one.score + two.score) / 2)
    assert not torch.allclose(found.map, model.decoder(model.encode(x)).map)


def test_former_values_of_test_flips_are_read():
    for former, now in ((True, "both"), (False, "none"), ("true", "both"), ("false", "none")):
        assert PrototypeMapsConfig(test_flips=former) == PrototypeMapsConfig(test_flips=now)
    assert PrototypeMapsConfig() == PrototypeMapsConfig(test_flips="both")


@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 32), (33, 47)])
def test_logits_are_scores_at_the_size_of_the_image(size):
    model = model_of(test_flips=False, background=0.4)
    logits = model(image(*size)).logits
    assert tuple(logits.shape) == (2, 3, *size)
    score = logits.exp()
    torch.testing.assert_close(score[:, 0], torch.full_like(score[:, 0], 0.4))
    assert float(score.max()) <= 1 + 1e-12
    if size == (32, 32):
        found = model.decoder(model.encode(image(*size)))
        gate = found.score.sigmoid() / found.score.sigmoid().amax(1, keepdim=True)
        cam = normalised(found.map) * gate[:, :, None, None]
        cam = torch.nn.functional.interpolate(cam, size=size, mode="bilinear", align_corners=False)
        torch.testing.assert_close(score[:, 1:], cam.clamp(min=1e-4))


@torch.no_grad()
def test_a_known_label_strikes_out_the_other_classes_and_is_forgotten():
    model = model_of()
    alone = model(image()).logits
    told = model(image(), torch.tensor([0.0, 0.0, 1.0])).logits.exp()
    assert float(told[:, 1].max()) == pytest.approx(1e-4)
    assert float(told[:, 2].amax((1, 2)).min()) > 0.5
    assert bool((model(image(), torch.zeros(3)).logits.argmax(1) == 0).all())
    assert torch.equal(model(image()).logits, alone)


@torch.no_grad()
def test_maps_are_means_over_the_image_and_its_mirror_images():
    model = model_of(test_flips=True)
    found = [model.decoder(model.encode(image().flip(dims) if dims else image())) for dims in ((), (-1,), (-2,))]
    wanted = (found[0].map + found[1].map.flip(-1) + found[2].map.flip(-2)) / 3
    torch.testing.assert_close(model._augmented(image()).map, wanted)
    assert not torch.allclose(wanted, found[0].map)


@torch.no_grad()
def test_maps_are_means_over_sizes():
    model = model_of(test_flips=False, test_scales=[2.0, 1.0])
    x = image()
    large = torch.nn.functional.interpolate(x, size=(64, 96), mode="bilinear", align_corners=False)
    one, two = (model.decoder(model.encode(each)) for each in (x, large))
    size = one.map.shape[-2:]
    two_map = torch.nn.functional.interpolate(two.map, size=size, mode="bilinear", align_corners=False)
    found = model._augmented(x)
    torch.testing.assert_close(found.map, (one.map + two_map) / 2)
    torch.testing.assert_close(found.score, (one.score + two.score) / 2)


def test_a_flat_map_is_background():
    assert torch.equal(normalised(torch.full((1, 2, 3, 3), -4.0)), torch.zeros(1, 2, 3, 3))
    found = normalised(torch.tensor([[[[-4.0, -2.0, -3.0]]]]))
    assert found.flatten().tolist() == [0, 1, 0.5]


@torch.no_grad()
def test_mit_has_maps_at_strides_4_8_16_and_16_and_no_randomness():
    torch.manual_seed(0)
    encoder = build_encoder("mit_b0", None, "group").train()
    x = torch.randn(1, 3, 64, 96)
    maps = encoder(x)
    assert [tuple(one.shape[1:]) for one in maps] == [(32, 16, 24), (64, 8, 12), (160, 4, 6), (256, 4, 6)]
    assert encoder.channels == (32, 64, 160, 256)
    assert all(torch.equal(a, b) for a, b in zip(maps, encoder(x), strict=True))
    torch.testing.assert_close(encoder(x.to(memory_format=torch.channels_last))[-1], maps[-1], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_mit_takes_its_weights_from_a_file_with_the_publishers_names(tmp_path):
    from safetensors.torch import save_file
    from segmentation_models_pytorch.encoders import get_encoder

    torch.manual_seed(3)
    source = get_encoder("mit_b0", weights=None)
    save_file(source.state_dict(), tmp_path / "mit.safetensors")
    encoder = build_encoder("mit_b0", str(tmp_path / "mit.safetensors"), "group")
    for name, value in source.state_dict().items():
        assert torch.equal(encoder.state_dict()[f"mit.{name}"], value)
    with pytest.raises(InputError, match="'timm' has no weights of 'mit_b0'"):
        build_encoder("mit_b0", "timm", "group")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"prototypes": 0}, "model.prototypes"),
        ({"map_weights": [1.0, 1.0]}, "model.map_weights: expected 3 values"),
        ({"map_weights": [0.0, 0.0, 0.0]}, "not all 0"),
        ({"test_scales": []}, "model.test_scales"),
        ({"background": 1.0}, "model.background"),
        ({"published_weights": [0.0, 0.0, 0.0]}, "model.published_weights: expected not all 0"),
        ({"test_flips": "vertical"}, "unknown model.test_flips 'vertical'"),
        ({"test_factors": []}, "model.test_factors"),
        ({"prototype_weighting": "pixels"}, "unknown model.prototype_weighting 'pixels': did you mean 'pixel'"),
        ({"scoring": "publish"}, "unknown model.scoring 'publish'"),
        ({"encoder": "vit_tiny_patch16_224"}, "gives 1 feature maps, the maps of prototypes need four"),
    ],
)
def test_settings_that_cannot_be(fields, says):
    with pytest.raises(InputError, match=says):
        build_model(PrototypeMapsConfig(**({"encoder": "small_conv"} | fields)), 3)
