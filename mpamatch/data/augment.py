"""Crops and colours of views, as the draws say; nothing here is random."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.io import decode_jpeg, encode_jpeg
from torchvision.transforms.v2 import functional as tv

from mpamatch.data.draws import UNLABELLED, ColourDraw, DrawSettings, Geometry, draw

# Optical densities of haematoxylin, eosin and their complement in RGB (Ruifrok and Johnston 2001), rows of unit length.
_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
STAINS = torch.tensor(_STAINS / np.linalg.norm(_STAINS, axis=1, keepdims=True), dtype=torch.float32)
UNMIX = torch.linalg.inv(STAINS)
DENSITY_FLOOR = 1 / 256  # keeps log finite at black


def cut(
    image: np.ndarray,  # (H, W, 3) u8
    label: np.ndarray | None,  # (H, W) u8, or (H, W, K) for K planes
    geometry: Geometry,
    crop: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Cuts a region out of image and label, resizes it to the crop, flips and turns it.

    A region larger than the image is filled up by reflection.

    Returns:
        image (3, crop, crop) u8; label (crop, crop) u8, or (K, crop, crop), ignore (255) outside the image or without a
        label; valid (crop, crop) bool, False outside the image.
    """
    height, width = image.shape[:2]
    top, left, side = geometry.region(height, width, crop, scale)
    x = torch.from_numpy(np.ascontiguousarray(image[top : top + side, left : left + side])).permute(2, 0, 1)
    y = torch.full((height, width), 255, dtype=torch.uint8) if label is None else torch.from_numpy(label)
    y = y if y.ndim == 2 else y.permute(2, 0, 1)
    y = y[..., top : top + side, left : left + side]
    inside = torch.ones(x.shape[1:], dtype=torch.uint8)
    below, right = side - x.shape[1], side - x.shape[2]
    if below or right:
        x = torch.from_numpy(np.pad(x.numpy(), ((0, 0), (0, below), (0, right)), mode="symmetric"))
        y = functional.pad(y, (0, right, 0, below), value=255)
        inside = functional.pad(inside, (0, right, 0, below), value=0)
    if side != crop:
        size = (crop, crop)
        x = functional.interpolate(x[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0]
        nearest = torch.from_numpy(nearest_pixels(side, crop))
        y, inside = (t[..., nearest, :][..., nearest] for t in (y, inside))

    def turn(t: Tensor) -> Tensor:
        t = t.flip(-1) if geometry.flip else t
        return torch.rot90(t, geometry.quarter_turns, (-2, -1)).contiguous()

    return turn(x), turn(y), turn(inside).bool()


def nearest_pixels(side: int, crop: int) -> np.ndarray:  # (crop,)
    """Computes which of `side` pixels each of `crop` takes its label from: ⌊(i + ½) · side / crop⌋.

    In integers, so that a centre between two pixels takes the same one in every feed.
    """
    return (2 * np.arange(crop) + 1) * side // (2 * crop)


def blur_radius(sigma: float) -> int:
    """Computes how many pixels a blur reaches on either side: 4σ, up to which its spread is σ within a thousandth.

    A kernel cut at 2σ has a spread of 1.85 for σ = 2.
    """
    return math.ceil(4 * sigma)


def recolour(image: Tensor, colour: ColourDraw) -> Tensor:  # (3, H, W) u8 -> (3, H, W) f32 in [0, 1]
    """Changes the colours of an image to those drawn for a view."""
    x = image.float() / 255
    if colour.stain != ColourDraw.stain:
        x = _restain(x, colour.stain)
    steps = (
        lambda x: tv.adjust_brightness(x, colour.brightness),
        lambda x: tv.adjust_contrast(x, colour.contrast),
        lambda x: tv.adjust_saturation(x, colour.saturation) if colour.saturation != 1 else x,
        lambda x: tv.adjust_hue(x, colour.hue) if colour.hue != 0 else x,
    )
    if (colour.brightness, colour.contrast, colour.saturation, colour.hue) != (1, 1, 1, 0):
        for index in colour.order:
            x = steps[index](x)
    if colour.grey:
        x = tv.rgb_to_grayscale(x, num_output_channels=3)
    if colour.blur:
        x = _blur(x, colour.blur)
    if colour.jpeg:
        x = decode_jpeg(encode_jpeg((x * 255).round().to(torch.uint8), quality=colour.jpeg)).float() / 255
    return x


def strong_views(image: np.ndarray, augment: str) -> list[np.ndarray]:  # (H, W, 3) u8 -> two of the same
    """Recolours an image in two strong ways, the same for every image: those that seed 0 draws first in training.

    `augment` is histology or natural, as in DataConfig.
    """
    settings = DrawSettings(augment, crop=16, zoom=(1.0, 1.0), weak_colour=0.0, channels=0)
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    colours = draw(settings, 0, UNLABELLED, 0, 0).strong
    views = (recolour(pixels, colour).mul(255).round_().to(torch.uint8) for colour in colours)
    return [view.permute(1, 2, 0).contiguous().numpy() for view in views]


def _blur(x: Tensor, sigma: float) -> Tensor:
    """Blurs columns, then rows, reflecting at the edges: 17 + 17 products for σ = 2 in place of 17²."""
    window = 2 * blur_radius(sigma) + 1
    x = tv.gaussian_blur(x, kernel_size=[1, window], sigma=[sigma, sigma])
    return tv.gaussian_blur(x, kernel_size=[window, 1], sigma=[sigma, sigma])


def _restain(x: Tensor, stain: tuple[float, float, float, float]) -> Tensor:
    """Changes the densities c of haematoxylin and eosin to α·c + β by Beer–Lambert; their complement stays."""
    alpha_h, beta_h, alpha_e, beta_e = stain
    concentration = UNMIX.T @ -torch.log(x.clamp(min=DENSITY_FLOOR)).flatten(1)  # (3, H·W)
    tissue = 1 - torch.exp(-concentration[:2].clamp(min=0) * 10)  # β moves stained pixels, not the bare slide
    concentration[0] = concentration[0] * alpha_h + beta_h * tissue[0]
    concentration[1] = concentration[1] * alpha_e + beta_e * tissue[1]
    return torch.exp(-(STAINS.T @ concentration)).clamp(0, 1).reshape(x.shape)
