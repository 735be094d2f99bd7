"""Which sizes a graph takes, and that what is rewritten for the exporter computes the same."""

from types import SimpleNamespace

import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn

from mpamatch.inference.export.graph import Deployed, Frame, PaddedConv, fix_padding, frame_for
from mpamatch.inference.segmenter import Segmenter, prepare_image
from mpamatch.inference.settings import SegmenterSettings


class Toy(nn.Module):
    """A network that an encoder of `family` with sides of `multiple` stands for."""

    name = "transunet"

    def __init__(self, family: str = "small", multiple: int = 4, gain: float = 1.0) -> None:
        super().__init__()
        self.encoder = SimpleNamespace(preset=SimpleNamespace(family=family), multiple=multiple)
        self.layer = nn.Conv2d(3, 2, 3, padding=1, bias=False)
        self.gain = gain
        with torch.no_grad():
            self.layer.weight.copy_(torch.linspace(-1, 1, 54).view(2, 3, 3, 3))

    def forward(self, image):
        return SimpleNamespace(logits=self.gain * self.layer(image))


def segmenter(window: int = 16, scale: float = 1.0, **toy) -> Segmenter:
    classes, colours = ("background", "gland"), ((0, 0, 0), (0, 200, 83))
    return Segmenter(Toy(**toy), SegmenterSettings(classes, colours, (0.5,) * 3, (0.25,) * 3, window, scale, 0.5))


@pytest.mark.parametrize(
    ("window", "scale", "multiple", "expected"),
    [
        (112, 0.5, 16, Frame(224, 112, 32)),
        (256, 1.0, 16, Frame(256, 256, 16)),
        (192, 0.75, 16, Frame(256, 192, 64)),
        (224, 2.0, 16, Frame(112, 224, 8)),
        (32, 1.0, 32, Frame(32, 32)),  # one step alone: a map of one pixel
        (100, 1.0, 16, Frame(100, 100)),  # the encoder resizes it, to one size
        (112, 0.37, 16, Frame(303, 112)),
        (128, 0.25, 16, Frame(512, 128, 64)),
    ],
)
def test_sizes_are_free_if_scale_and_window_allow_it(window, scale, multiple, expected):
    assert frame_for(segmenter(window, scale, multiple=multiple)) == expected


def test_a_vit_has_one_size():
    assert frame_for(segmenter(224, 1.0, family="vit", multiple=16)) == Frame(224, 224)


@pytest.mark.parametrize(("scale", "side", "most"), [(0.5, 16, 0.0), (0.25, 32, 0.0), (0.4, 20, 1.01), (2.0, 4, 1.01)])
def test_scale_and_normalisation_are_those_of_prediction(scale, side, most):
    """Bit by bit at a half and a quarter; at other scales without the rounding of two passes to 8 bits."""
    of = segmenter(8, scale)
    draws = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (1, 3, side, side), generator=draws, dtype=torch.uint8)
    seen = []
    deployed = Deployed(of, Frame(side, 8))
    deployed.network.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    probability = deployed(image)
    assert probability.shape == (1, 2, side, side)
    assert torch.allclose(probability.sum(1), torch.ones(1, side, side), atol=1e-6)
    expected = prepare_image(image[0].permute(1, 2, 0).numpy(), scale, (0.5,) * 3, (0.25,) * 3)
    step = 1 / (255 * 0.25)
    assert (seen[0][0] - expected).abs().max() <= most * step + 1e-6


def test_the_segmenters_own_network_stays_as_it_is():
    of = segmenter()
    Deployed(of, Frame(16, 16, 4))
    assert all(one.requires_grad for one in of.model.parameters())
    assert of.model.training


@pytest.mark.parametrize("kernel", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_padding_written_out_is_timms(kernel, stride):
    torch.manual_seed(0)
    conv = Conv2dSame(4, 4, kernel, stride=stride, groups=2)
    x = torch.randn(1, 4, 16, 24)
    assert torch.equal(PaddedConv(conv)(x), conv(x))


def test_padding_is_written_out_wherever_it_stands():
    whole = nn.Sequential(nn.Sequential(Conv2dSame(3, 4, 3, stride=2)), nn.ReLU())
    fix_padding(whole)
    assert isinstance(whole[0][0], PaddedConv)
