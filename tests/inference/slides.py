"""A small network and small slides to predict."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from mpamatch.inference.segmenter import Segmenter
from mpamatch.inference.settings import SegmenterSettings
from tests.slides.files import write_slide

CLASSES = ("background", "gland", "stroma")


class Small(nn.Module):
    """Two convolutions with fixed random weights, so that windows disagree where they overlap."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 9, padding=4), nn.ReLU(), nn.Conv2d(8, len(CLASSES), 5, padding=2))
        self.layers.requires_grad_(False)

    def forward(self, windows: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=20 * self.layers(windows))


def small_segmenter(microns: float | None = 2.0, window: int = 32, scale: float = 1.0) -> Segmenter:
    settings = SegmenterSettings(
        class_names=CLASSES,
        colours=((0, 0, 0), (0, 200, 83), (0, 128, 255)),
        mean=(0.7, 0.6, 0.7),
        std=(0.2, 0.2, 0.2),
        window=window,
        scale=scale,
        microns_per_pixel=microns,
        batch=3,
    )
    return Segmenter(Small().eval(), settings)


def island(height: int = 300, width: int = 400) -> np.ndarray:
    """Two patches of stained tissue with some texture on glass."""
    random = np.random.default_rng(0)
    image = np.full((height, width, 3), 243, dtype=np.uint8)
    for rows, columns in ((slice(20, 140), slice(30, 180)), (slice(170, 280), slice(200, 380))):
        shape = image[rows, columns].shape
        stain = np.array([170, 90, 150]) + random.integers(-25, 26, (shape[0] // 5 + 1, shape[1] // 5 + 1, 3))
        image[rows, columns] = np.kron(stain, np.ones((5, 5, 1)))[: shape[0], : shape[1]]
    return image


def make_slide(path: Path, image: np.ndarray | None = None, mpp: float = 2.0) -> Path:
    return write_slide(path, island() if image is None else image, mpp=mpp, compression="deflate")
