"""A small network with an encoder, to look at images with."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mpamatch.inference.segmenter import Segmenter
from mpamatch.inference.settings import SegmenterSettings
from mpamatch.models.network import Prediction

CLASSES = ("background", "gland", "stroma")


class Maps(nn.Module):
    """Two maps, the deeper at half the size."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 5, 3, padding=1, stride=2)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        first = torch.relu(self.first(image))
        return first, torch.relu(self.second(first))


class Looking(nn.Module):
    """Fixed random weights: sure of some pixels and not of others."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.encoder, self.head = Maps(), nn.Conv2d(6, len(CLASSES), 3, padding=1)
        self.requires_grad_(False)

    def forward(self, image: Tensor) -> Prediction:
        first, second = self.encoder(image)
        return Prediction(4 * self.head(first), second)


def looking(**changes: Any) -> Segmenter:
    settings: dict[str, Any] = {
        "class_names": CLASSES,
        "colours": ((0, 0, 0), (0, 200, 83), (0, 128, 255)),
        "mean": (0.7, 0.6, 0.7),
        "std": (0.2, 0.2, 0.2),
        "window": 32,
        "scale": 1.0,
        "microns_per_pixel": 2.0,
        "batch": 3,
    }
    return Segmenter(Looking().eval(), SegmenterSettings(**{**settings, **changes}))


def noise(seed: int, height: int = 32, width: int = 32) -> np.ndarray:
    """A picture of random blocks, light or dark by its seed."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3))
    return np.kron(coarse, np.ones((4, 4, 1)))[:height, :width].astype(np.uint8)
