"""Layers that encoders, decoders and methods share."""

import torch
from torch import Tensor, nn

from mpamatch.errors import unknown


def conv_norm(inputs: int, outputs: int, norm: str, *, stride: int = 1) -> nn.Sequential:
    """Builds a 3×3 convolution, norm (`batch` or `group`) and ReLU. Raises InputError for another norm."""
    layer: nn.Module
    if norm == "batch":
        layer = nn.BatchNorm2d(outputs)
    elif norm == "group":
        layer = nn.GroupNorm(groups_of(outputs), outputs)
    else:
        raise unknown("model.norm", norm, ("batch", "group"))
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), layer, nn.ReLU(inplace=True))


def groups_of(channels: int) -> int:
    """Chooses the number of groups of a group norm: the largest of 8, 4, 2 and 1 that divides `channels`.

    Groups of at least 4 channels instead cost supervised training 1.8 and UniMatch 2.8 validation mDice (EBHI-Seg
    gland, four labelled patients, one seed).
    """
    return next(groups for groups in (8, 4, 2, 1) if channels % groups == 0)


class ChannelDropout(nn.Module):
    """Drops whole channels of all maps: the feature perturbation of UniMatch (CVPR 2023).

    The random numbers come with the batch, so that a resumed run drops the same channels.
    """

    def __init__(self, channels: tuple[int, ...], p: float):
        super().__init__()
        self.channels, self.p = channels, p

    def forward(
        self,
        maps: tuple[Tensor, ...],  # each (B, channels[i], h, w)
        noise: Tensor,  # (B, sum(channels)) uniform in [0, 1)
    ) -> tuple[Tensor, ...]:
        """Sets the channels whose draw is below p to 0 and divides the others by 1 − p."""
        keep = (noise >= self.p).to(maps[0].dtype) / (1 - self.p)
        parts = torch.split(keep, list(self.channels), dim=1)
        return tuple(x * part[:, :, None, None] for x, part in zip(maps, parts, strict=True))


class ComplementaryDropout(nn.Module):
    """Drops channels of two views of an image: what one view lacks the other has, doubled (UniMatch V2, 2410.10777).

    Every second image is left as it is: in the public code half of a batch is. The random numbers come with the batch.
    """

    def __init__(self, channels: tuple[int, ...]):
        super().__init__()
        self.channels = channels

    def forward(
        self,
        first: tuple[Tensor, ...],  # each (B, channels[i], h, w)
        second: tuple[Tensor, ...],
        noise: Tensor,  # (B, sum(channels)) uniform in [0, 1)
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Multiplies the first view by 2 where the draw is at least .5, else by 0, and the second by 2 minus that."""
        factor = 2 * (noise >= 0.5).to(first[0].dtype)
        whole = torch.arange(len(noise), device=noise.device)[:, None] % 2 == 1
        masks = (torch.where(whole, 1.0, one) for one in (factor, 2 - factor))
        parts = [torch.split(mask, list(self.channels), dim=1) for mask in masks]
        found = [
            tuple(x * part[:, :, None, None] for x, part in zip(maps, of, strict=True))
            for maps, of in zip((first, second), parts, strict=True)
        ]
        return found[0], found[1]
