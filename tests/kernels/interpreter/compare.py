"""The rule by which a kernel's result is judged."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpamatch.kernels import tiles
from mpamatch.kernels.common import parts
from tests.ops.cases import Pixels, array

HALVES = (torch.float16, torch.bfloat16)
DTYPES = (torch.float32, *HALVES)
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}


def assert_as_good(ours: Tensor, eager: Tensor, truth: Any, dtype: torch.dtype, *, size: float = 0.0) -> None:
    """|ours − truth| ≤ |eager − truth| + tolerance·scale, element by element, finite, in eager's shape and dtype.

    The tolerance is that of the input's dtype. The scale is max |truth|, or `size` if larger: that of the terms of an
    output that may cancel.
    """
    truth = np.asarray(truth)
    assert ours.shape == truth.shape == eager.shape
    assert ours.dtype == eager.dtype
    scale = max(float(np.abs(truth).max(initial=0.0)), size)
    allowed = np.abs(array(eager) - truth) + TOLERANCE[dtype] * scale
    away = np.abs(array(ours) - truth)
    assert (away <= allowed).all(), f"{(away - allowed).max()} beyond what is allowed, of {scale}"


def padded(x: Tensor) -> Tensor:
    """The same rows in a wider table, with NaN between them."""
    table = torch.full((x.shape[0], x.shape[1] + 5), torch.nan, dtype=x.dtype)
    table[:, : x.shape[1]] = x
    return table[:, : x.shape[1]]


def assert_it_goes_around(operation: str, case: Pixels) -> None:
    """With the tiles in use, the backward kernels go around their loops over pixels, prototypes and channels."""
    for direction in ("in_embedding", "in_prototypes"):
        plan = tiles.plan(f"{operation}.{direction}", case.embedding, case.prototypes)
        blocks = parts(len(case.embedding), plan.block_n)
        assert blocks > plan.programs // (plan.d_parts * plan.m_parts) > 1
        assert plan.m_parts > 1
        assert plan.d_parts > 1
