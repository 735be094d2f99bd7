"""Distance of every pixel to the nearest prototype of every class."""

import torch
from torch import Tensor

from mpamatch.ops import checks
from mpamatch.ops.unit import unit, without_autocast, working


@without_autocast
def prototype_distance(
    embedding: Tensor,  # (N, D) any floating dtype
    prototypes: Tensor,  # (C, K, D) f32 or f64
) -> tuple[Tensor, Tensor]:
    """1 − max_k cos(z_i, p_ck), in [0, 2], and that k.

    Returns distance (N, C) f32 (f64 where an input is) and nearest (N, C) i32 in [0, K); of equal cosines the lowest k.
    A zero vector has cosine 0 with everything. The gradient runs through the chosen prototype, to both inputs.
    Raises TypeError or ValueError naming the argument. Source: ProtoSeg (CVPR 2022), section 3.
    """
    pixels, classes, per_class, width = checks.pixels_and_prototypes(embedding, prototypes)
    z, p = unit(working(embedding)), unit(prototypes).reshape(-1, width)
    z, p = z.to(torch.promote_types(z.dtype, p.dtype)), p.to(torch.promote_types(z.dtype, p.dtype))
    cosine = (z @ p.T).reshape(pixels, classes, per_class)
    highest, nearest = cosine.max(-1)  # the first index of equals
    return 1 - highest, nearest.to(torch.int32)
