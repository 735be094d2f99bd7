"""CutMix between neighbours, which FixMatch, UniMatch, UniMatch V2 and MPAMatch share."""

import torch
from torch import Tensor

from mpamatch.methods.pseudo_labels import Targets


def neighbours(x: Tensor) -> Tensor:  # (B, …) -> (B, …)
    """Returns each image's partner: slots 2i and 2i+1 swap, so pairs stay together if an even batch is cut over ranks.

    The last image of an odd batch takes the first; that of a batch of one is itself.
    """
    pairs = x.shape[0] // 2
    swapped = x[: 2 * pairs].unflatten(0, (pairs, 2)).flip(1).flatten(0, 1) if pairs else x[:0]
    return swapped if x.shape[0] % 2 == 0 else torch.cat([swapped, x[:1]])


def inside(box: Tensor, height: int, width: int) -> Tensor:  # (B, 4) i32 -> (B, H, W) bool
    """Marks the pixels of each box (top, left, bottom, right; the latter two are outside)."""
    row = torch.arange(height, device=box.device)[None, :, None]
    column = torch.arange(width, device=box.device)[None, None, :]
    top, left, bottom, right = (side[:, None, None] for side in box.unbind(1))
    return ((row >= top) & (row < bottom)) & ((column >= left) & (column < right))


def cutmix(
    x: Tensor,  # (B, 3, H, W) or (B, H, W)
    chosen: Tensor,  # (B, H, W) bool, of `inside`
) -> Tensor:
    """Replaces the chosen pixels of each image by its neighbour's (CutMix, ICCV 2019)."""
    return torch.where(chosen[:, None] if x.dim() == 4 else chosen, neighbours(x), x)


def cutmix_targets(targets: Targets, chosen: Tensor) -> Targets:
    """Mixes pseudo-label, weight and valid map as `cutmix` mixes the image."""
    return Targets(*(cutmix(x, chosen) for x in targets))
