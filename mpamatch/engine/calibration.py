"""Calibration: does a pixel predicted with probability .9 turn out right nine times out of ten?

ECE is the expected calibration error of Guo et al., "On calibration of modern neural networks", ICML 2017.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpamatch.images import IGNORE

BINS = 20  # of the reliability diagram and of ECE, of equal width
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999)


@dataclass(frozen=True)
class Confidence:
    """Pixels counted by confidence, the probability of the predicted class. Ignored pixels are left out.

    Attributes:
        edges: of the N bins, rising, N + 1 from 0 to 1; a bin holds its lower edge, the last one both.
        pixels: (N,) int64, in each bin.
        correct: (N,) int64, of these the rightly predicted ones.
        total: (N,) float64, the sum of their confidences.
    """

    edges: tuple[float, ...]
    pixels: NDArray[np.int64]
    correct: NDArray[np.int64]
    total: NDArray[np.float64]

    @classmethod
    def count(
        cls,
        edges: Sequence[float],
        confidence: Tensor,  # (H, W), 0 to 1
        predicted: Tensor,  # (H, W) class index
        label: NDArray[np.uint8],  # (H, W) class index, 255 ignored
    ) -> "Confidence":
        """Counts the pixels of an image."""
        true = torch.as_tensor(label).long()
        counted = true != IGNORE
        right = (predicted.cpu() == true)[counted]
        value = confidence.cpu().double()[counted]
        last = len(edges) - 2
        place = torch.bucketize(value, torch.tensor(edges, dtype=torch.float64), right=True).sub_(1).clamp_(0, last)
        pixels = torch.bincount(place, minlength=last + 1)
        correct = torch.bincount(place[right], minlength=last + 1)
        total = torch.bincount(place, weights=value, minlength=last + 1)
        return cls(tuple(edges), pixels.numpy(), correct.numpy(), total.numpy())

    def sums(self) -> NDArray[np.float64]:  # (3·N,)
        """Returns pixels, correct and total one behind the other; those of several images may be added up."""
        return np.concatenate([self.pixels, self.correct, self.total]).astype(np.float64)


def edges_with(threshold: float | None) -> tuple[float, ...]:
    """Lists the edges that reliability, ECE and every threshold need, a run's own among them."""
    own = () if threshold is None else (float(threshold),)
    return tuple(sorted({*(i / BINS for i in range(BINS + 1)), *THRESHOLDS, *own}))


def reliability(
    edges: Sequence[float],  # N + 1
    sums: NDArray[np.float64],  # (…, 3·N) of `Confidence.sums`, added up over images
) -> NDArray[np.float64]:  # (…, 3, BINS): pixels, accuracy, mean confidence
    """Computes accuracy and mean confidence in bins of equal width; NaN in a bin without pixels."""
    of_bin = [min(BINS - 1, int(np.floor(edge * BINS + 1e-9))) for edge in edges[:-1]]
    starts = [of_bin.index(number) for number in range(BINS)]
    pixels, correct, total = np.split(sums, 3, axis=-1)
    pixels, correct, total = (np.add.reduceat(each, starts, axis=-1) for each in (pixels, correct, total))
    with np.errstate(invalid="ignore"):
        return np.stack([pixels, correct / pixels, total / pixels], axis=-2)


def expected_calibration_error(
    edges: Sequence[float],
    sums: NDArray[np.float64],  # (…, 3·N)
) -> NDArray[np.float64]:  # (…,)
    """Computes ECE: the mean over pixels of the distance between accuracy and confidence of their bin, 0 to 1."""
    pixels, accuracy, confidence = np.moveaxis(reliability(edges, sums), -2, 0)
    share = pixels / pixels.sum(-1, keepdims=True)
    return np.nansum(share * np.abs(accuracy - confidence), axis=-1)


def above(
    edges: Sequence[float],
    sums: NDArray[np.float64],  # (…, 3·N)
    threshold: float,  # one of `edges`
) -> NDArray[np.float64]:  # (…, 2): share, accuracy
    """Computes which share of the pixels has at least this confidence and which share of those is right (NaN: none)."""
    first = list(edges).index(threshold)
    pixels, correct, _ = np.split(sums, 3, axis=-1)
    chosen = pixels[..., first:].sum(-1)
    with np.errstate(invalid="ignore"):
        return np.stack([chosen / pixels.sum(-1), correct[..., first:].sum(-1) / chosen], axis=-1)


def bins() -> list[tuple[float, float]]:
    """Lists lower and upper edge of the bins of `reliability`."""
    return list(pairwise(i / BINS for i in range(BINS + 1)))
