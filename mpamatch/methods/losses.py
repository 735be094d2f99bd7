"""Normalises the sums of `mpamatch.ops` to losses, the same over one rank and over many.

Every function returns the value over the batch of all ranks; its gradient is this rank's part of it.
DistributedDataParallel averages gradients, so the engine multiplies the loss by the number of ranks before backward.
"""

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from mpamatch import ops
from mpamatch.ops.unit import working
from mpamatch.ranks import all_ranks
from mpamatch.settings import settings

SMOOTH = 1e-5
LabelledLoss = Literal["ce", "ce_dice"]


@settings("method")
class LabelledSettings:
    """Settings of what every method learns from masks.

    Attributes:
        labelled_loss: of labelled images: ce_dice, (CE + Dice)/2 as in UniMatch's medical code, or ce as in its natural
            one.
    """

    labelled_loss: LabelledLoss = "ce_dice"


def over_ranks(local: Tensor) -> Tensor:
    """Sums over all ranks; the gradient is that of this rank's `local`."""
    group = all_ranks()
    if group is None:
        return local
    total = local.detach().clone()
    dist.all_reduce(total, group=group)
    return local + (total - local.detach())


def weighted_mean(total: Tensor, weight: Tensor) -> Tensor:
    """Computes Σ w·l / max(Σ w, 1) over all ranks from this rank's Σ w·l and Σ w, both ()."""
    both = over_ranks(torch.stack([total, weight.to(total.dtype)]))
    return both[0] / both[1].detach().clamp(min=1)


def dice(overlap: Tensor) -> Tensor:  # (3, C): Σ w p y, Σ w p², Σ w y over all ranks -> ()
    """Averages 1 − (2 Σwpy + ε)/(Σwp² + Σwy + ε), ε = 1e-5, over the classes that occur; 0 if none does."""
    shared, predicted, true = overlap
    loss = 1 - (2 * shared + SMOOTH) / (predicted + true + SMOOTH)
    occurs = (true > 0).to(loss.dtype)
    return (loss * occurs).sum() / occurs.sum().clamp(min=1)


def labelled_loss(
    logits: Tensor,  # (B, C, H, W)
    label: Tensor,  # (B, H, W) u8, 255 = ignore
    kind: LabelledLoss = "ce_dice",
) -> Tensor:
    """Computes (CE + Dice)/2 over the labelled pixels, or CE alone for "ce"."""
    cross_entropy, overlap = ops.segmentation_loss(logits, label)
    mean = weighted_mean(cross_entropy, (label != ops.IGNORE).sum())
    return mean if kind == "ce" else (mean + dice(over_ranks(overlap))) / 2


def border_loss(
    logit: Tensor,  # (B, 1, H, W)
    border: Tensor,  # (B, H, W) u8: 1 on a border, 0 elsewhere, 255 = ignore
) -> Tensor:
    """Computes (BCE + Dice)/2 of the border over the pixels that are not ignored."""
    known = border != ops.IGNORE
    x, true = working(logit[:, 0]), (border == 1).to(working(logit).dtype)
    cross_entropy = functional.binary_cross_entropy_with_logits(x, true, weight=known.to(x.dtype), reduction="sum")
    probability = x.sigmoid() * known
    overlap = torch.stack([(probability * true).sum(), probability.square().sum(), true.sum()])[:, None]
    return (weighted_mean(cross_entropy, known.sum()) + dice(over_ranks(overlap))) / 2


def unlabelled_loss(
    logits: Tensor,  # (B, C, H, W)
    label: Tensor,  # (B, H, W) u8 pseudo-label
    weight: Tensor,  # (B, H, W) 1 if it is confident and valid
    valid: Tensor,  # (B, H, W) bool
    kind: str,  # "ce", "dice" or "both"
) -> Tensor:
    """Computes UniMatch's term (CVPR 2023), Σ CE·[confident ∧ valid] / Σ valid, or its medical variant.

    All valid pixels count in the denominator, not only the confident ones. `kind` "dice" is the Dice loss of the
    confident pixels, "both" the mean of the two.
    """
    cross_entropy, overlap = ops.segmentation_loss(logits, label, weight=weight)
    if kind == "dice":
        return dice(over_ranks(overlap))
    mean = weighted_mean(cross_entropy, valid.sum())
    return mean if kind == "ce" else (mean + dice(over_ranks(overlap))) / 2


def share(chosen: Tensor, among: Tensor) -> Tensor:
    """Computes Σ chosen / Σ among over all ranks, without gradient, such as the share of confident pixels."""
    return weighted_mean(chosen.detach().sum().float(), among.sum())
