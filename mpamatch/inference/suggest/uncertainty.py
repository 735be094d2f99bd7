"""How sure a model is of each image, and what it sees there: what `suggest` ranks and spreads by."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpamatch.inference.segmenter import Segmenter
from mpamatch.inference.tiles import most_probable

By = Literal["entropy", "disagreement"]
WAYS: tuple[By, ...] = ("entropy", "disagreement")
FLIPS: tuple[tuple[int, ...], ...] = ((), (0,), (1,), (0, 1))  # axes of (H, W, 3)

Pixels = NDArray[np.uint8]  # (H, W, 3)
Views = Callable[[Pixels], Sequence[Pixels]]


@dataclass(frozen=True)
class Look:
    """A model's look at an image.

    Attributes:
        label: (H, W) uint8, the most probable class of each pixel.
        uncertainty: (H, W) float32 of each pixel, 0 to 1.
        score: its mean.
        feature: (D,) float32 of length 1, the encoder's deepest map averaged over the image.
    """

    label: NDArray[np.uint8]
    uncertainty: NDArray[np.float32]
    score: float
    feature: NDArray[np.float32]


def look_at_each(
    segmenter: Segmenter,
    images: Iterable[Pixels],  # of any sizes
    by: By = "entropy",
    strong_views: Views | None = None,
) -> Iterator[Look]:
    """Looks at each image several times and measures how little the looks settle on one class.

    Views of one image after the other fill the batches, so small images cost what their pixels do, and no more images
    are held than fill the batches under way.

    Args:
        segmenter: the model.
        images: one after the other.
        by: entropy: of the class probabilities averaged over the image and its flips, as a share of the largest there
            can be, 4 passes; disagreement: in how many of the strong views the class is another than in the image
            itself, as a share, 1 pass and one for each view.
        strong_views: makes recoloured views of an image, for disagreement.

    Yields:
        A look at each image, in order.

    Raises:
        InputError: an image is not (H, W, 3) uint8, or the network has no encoder whose maps could be taken.
    """
    measure = _Entropy() if by == "entropy" else _Disagreement(strong_views)
    counts: deque[int] = deque()  # of the views of the images under way

    def views() -> Iterator[Pixels]:
        for image in images:
            found = measure.views(image)
            counts.append(len(found))
            yield from found

    seen = segmenter.probabilities_and_features(views())
    for probability, feature in seen:
        rest = [next(seen)[0] for _ in range(counts.popleft() - 1)]
        label, uncertainty = measure.of([probability, *rest])
        found = uncertainty.float().cpu().numpy()
        yield Look(label.cpu().numpy(), found, float(found.mean(dtype=np.float64)), _unit(feature))


def features_of(segmenter: Segmenter, images: Iterable[Pixels]) -> Iterator[NDArray[np.float32]]:
    """Computes the feature of each image, (D,) of length 1, as a Look has it, in 1 pass."""
    return (_unit(feature) for _, feature in segmenter.probabilities_and_features(images))


def entropy(
    probability: Tensor,  # (C, H, W)
) -> Tensor:  # (H, W)
    """Computes the entropy of each pixel's class probabilities as a share of ln C; 0 to 1."""
    return torch.special.entr(probability).sum(0).div_(math.log(max(2, probability.shape[0]))).clamp_(0, 1)


class _Entropy:
    """Entropy of the mean over flips."""

    def views(self, image: Pixels) -> list[Pixels]:
        return [np.flip(image, axes) if axes else image for axes in FLIPS]

    def of(self, probabilities: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        total = torch.zeros_like(probabilities[0])
        for one, axes in zip(probabilities, FLIPS, strict=True):
            total += torch.flip(one, [axis + 1 for axis in axes]) if axes else one
        total /= len(FLIPS)
        return most_probable(total), entropy(total)


class _Disagreement:
    """Share of the strong views whose class is another than the image's own."""

    def __init__(self, strong_views: Views | None) -> None:
        assert strong_views is not None, "disagreement is that with strong views"
        self._strong = strong_views

    def views(self, image: Pixels) -> list[Pixels]:
        return [image, *self._strong(image)]

    def of(self, probabilities: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        label = most_probable(probabilities[0])
        return label, torch.stack([(most_probable(one) != label).float() for one in probabilities[1:]]).mean(0)


def _unit(feature: Tensor) -> NDArray[np.float32]:
    found = feature.double().cpu().numpy()
    length = float(np.linalg.norm(found))
    return (found / length if length else found).astype(np.float32)
