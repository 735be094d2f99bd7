"""The contract between feeds and methods: what one training step sees."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Labelled(NamedTuple):
    """The labelled images of a step: one view each, with its label or image-level label.

    Attributes:
        image: normalised for the encoder.
        label: class of each pixel, 255 = ignore; 255 everywhere for a method that learns from image-level labels.
        present: image-level label for such a method: 1 if the image shows the class; column 0, the background, says
            nothing. None for other methods.
        border: 1 on the border of an object, 0 elsewhere, 255 = ignore; None unless the network learns it.
    """

    image: Tensor  # (B, 3, H, W) f32
    label: Tensor  # (B, H, W) u8
    present: Tensor | None = None  # (B, C) f32
    border: Tensor | None = None  # (B, H, W) u8


class Unlabelled(NamedTuple):
    """The unlabelled images of a step: views of the same crops; None for those that the method does not need.

    Attributes:
        weak: weakly augmented view, normalised for the encoder.
        strong1: strongly augmented view of the same crop, normalised too.
        strong2: another one.
        valid: False for pixels that were padded.
        box1: top, left, bottom, right of the CutMix box of strong1; an empty box mixes nothing.
        box2: that of strong2.
        channel_noise: uniform draws in [0, 1) for dropping channels of the encoder's maps.
    """

    weak: Tensor  # (B, 3, H, W) f32
    strong1: Tensor  # (B, 3, H, W) f32
    strong2: Tensor | None  # (B, 3, H, W) f32
    valid: Tensor  # (B, H, W) bool
    box1: Tensor  # (B, 4) i32
    box2: Tensor | None  # (B, 4) i32
    channel_noise: Tensor | None  # (B, channels) f32


class Batch(NamedTuple):
    """What a training step sees.

    Attributes:
        labelled: the labelled images.
        unlabelled: the unlabelled images; None for a method that learns from labelled images alone.
    """

    labelled: Labelled
    unlabelled: Unlabelled | None


def pieces(batch: Batch, count: int) -> Iterator[Batch]:
    """Cuts the batch into `count` batches of equal size; `count` must divide both numbers of images."""

    def cut(part, index):
        return type(part)(*(None if t is None else t.chunk(count)[index] for t in part))

    for index in range(count):
        unlabelled = None if batch.unlabelled is None else cut(batch.unlabelled, index)
        yield Batch(cut(batch.labelled, index), unlabelled)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Copies the tensors of the batch to `device`, without waiting for the copies from pinned memory."""

    def move(part):
        return type(part)(*(None if t is None else t.to(device, non_blocking=True) for t in part))

    return Batch(move(batch.labelled), None if batch.unlabelled is None else move(batch.unlabelled))
