"""The deployed network as one graph: 8-bit RGB in, class probabilities out, scale and normalisation inside."""

import copy
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional

from mpamatch.inference.segmenter import Segmenter
from mpamatch.inference.settings import SegmenterSettings

FINEST = 1000  # the largest denominator of a scale: above it the window alone says what the scale is


@dataclass(frozen=True)
class Frame:
    """Which sizes of image the graph takes.

    Attributes:
        window: side of the window, in pixels of the image.
        inner: side of the window that the network sees, in pixels of the scaled image.
        step: height and width may be any multiples of it from twice on, as torch.export takes a map of one pixel for a
            constant; None: they are `window`.
    """

    window: int
    inner: int
    step: int | None = None

    @property
    def ratio(self) -> Fraction:
        """The factor on an image's size before the network sees it."""
        return Fraction(self.inner, self.window)


def frame_for(segmenter: Segmenter) -> Frame:
    """Finds the sizes for a network: free ones if it is no ViT, whose table of positions is made for one size.

    They are fixed, too, if the window is none of the multiples that network and scale ask for.
    """
    settings: SegmenterSettings = segmenter.settings
    encoder: Any = segmenter.model.encoder
    scale = Fraction(settings.scale).limit_denominator(FINEST)
    window = max(1, round(settings.window / scale))
    fixed = Frame(window, settings.window)
    if encoder.preset.family == "vit" or fixed.ratio != scale:
        return fixed
    step = scale.denominator * encoder.multiple // math.gcd(encoder.multiple, scale.numerator)
    return fixed if window % step or window < 2 * step else Frame(window, settings.window, step)


class Deployed(nn.Module):
    """The network of a Segmenter with all that comes before and after it, in float32 on the CPU.

    It scales and normalises as the Segmenter does; probabilities come back at the image's own size. A scaled image is
    rounded to 8 bits as there only if the scale is a half, a quarter, …: at others onnxruntime and torch may round a
    value to different sides.

    Attributes:
        frame: which sizes it takes.
        classes: C.
    """

    def __init__(self, segmenter: Segmenter, frame: Frame) -> None:
        super().__init__()
        settings = segmenter.settings
        network = copy.deepcopy(segmenter.model).float().to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.network = network.eval().requires_grad_(False)
        if frame.step is not None:
            fix_padding(self.network)
        self.frame, self.classes = frame, len(settings.class_names)
        up, down = frame.ratio.numerator, frame.ratio.denominator
        self.rounds = up == 1 < down and down & (down - 1) == 0
        self.centre: Tensor
        self.spread: Tensor
        self.register_buffer("centre", 255 * torch.tensor(settings.mean, dtype=torch.float32)[:, None, None])
        self.register_buffer("spread", 255 * torch.tensor(settings.std, dtype=torch.float32)[:, None, None])
        self.eval()

    def forward(
        self,
        image: Tensor,  # (B, 3, H, W) uint8, RGB
    ) -> Tensor:  # (B, C, H, W) float32
        """Computes class probabilities."""
        height, width = image.shape[-2], image.shape[-1]
        up, down = self.frame.ratio.numerator, self.frame.ratio.denominator
        x = image.float()
        if up != down:
            size = (height * up // down, width * up // down)
            if self.rounds:  # along rows, then along columns, as torch does with 8 bits
                x = _resized(_resized(x, (height, size[1])).add(0.5).floor(), size).add(0.5).floor()
            else:
                x = _resized(x, size, antialias=up < down)
        probability = self.network((x - self.centre) / self.spread).logits.float().softmax(dim=1)
        if up != down:
            probability = _resized(probability, (height, width), antialias=up > down)
        return probability


def _resized(x: Tensor, size: tuple[int, int], *, antialias: bool = True) -> Tensor:
    return functional.interpolate(x, size=size, mode="bilinear", antialias=antialias)


def fix_padding(network: nn.Module) -> None:
    """Writes out the padding of TensorFlow's "same" convolutions, which timm computes from the size of each map.

    Sides that every stride divides are always padded by kernel − stride. Left symbolic, torch.export of
    tf_efficientnet_lite0 at free sizes had not ended after five minutes.
    """
    for name, module in network.named_children():
        if isinstance(module, Conv2dSame):
            setattr(network, name, PaddedConv(module))
        else:
            fix_padding(module)


class PaddedConv(nn.Module):
    """A "same" convolution of maps whose sides are multiples of its stride."""

    def __init__(self, conv: Conv2dSame) -> None:
        super().__init__()
        self.conv = conv
        reach = [d * (k - 1) + 1 - s for k, s, d in zip(conv.kernel_size, conv.stride, conv.dilation, strict=True)]
        (top, bottom), (left, right) = ((max(0, r) // 2, max(0, r) - max(0, r) // 2) for r in reach)
        self.pads = left, right, top, bottom

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, O, H / stride, W / stride)
        conv = self.conv
        x = functional.pad(x, self.pads)
        return functional.conv2d(x, conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)
