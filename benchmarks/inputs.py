"""Inputs of a case: random directions and logits, never zeros, 10 % of the pixels ignored, from a fixed seed."""

import torch
from torch import Tensor

from mpamatch.benchmarks.cases import BOTH, Case

IGNORE = 255
IGNORED_SHARE = 0.1


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def embedding(case: Case, device: str) -> Tensor:  # (N, D)
    rows = torch.randn(case.n, case.d, generator=generator(1)).to(device, getattr(torch, case.dtype))
    return rows.requires_grad_(case.direction == BOTH)


def prototypes(case: Case, device: str) -> Tensor:  # (C, K, D) unit vectors, as a bank holds them
    dtype = torch.float64 if case.dtype == "float64" else torch.float32
    start = torch.nn.functional.normalize(torch.randn(case.c, case.k, case.d, generator=generator(2)), dim=-1)
    return start.to(device, dtype).requires_grad_(case.direction == BOTH)


def label(case: Case, device: str, *shape: int) -> Tensor:  # u8
    drawn = torch.randint(0, case.c, shape, generator=generator(3), dtype=torch.uint8)
    ignored = torch.rand(shape, generator=generator(4)) < IGNORED_SHARE
    return torch.where(ignored, IGNORE, drawn).to(torch.uint8).to(device)


def assignment(case: Case, device: str) -> Tensor:  # (N,) i32, −1 where ignored
    own = label(case, "cpu", case.n).int()
    k = torch.randint(0, case.k, (case.n,), generator=generator(5), dtype=torch.int32)
    return torch.where(own == IGNORE, -1, own * case.k + k).int().to(device)


def logits(case: Case, device: str) -> Tensor:  # (B, C, H, W)
    batch, height, width = case.shape
    drawn = 2 * torch.randn(batch, case.c, height, width, generator=generator(6))
    return drawn.to(device, getattr(torch, case.dtype)).requires_grad_(case.direction == BOTH)


def incoming(case: Case, device: str, *shape: int) -> Tensor:
    """A gradient from above, in the working dtype: positive, about 1."""
    dtype = torch.float64 if case.dtype == "float64" else torch.float32
    return (0.5 + torch.rand(shape, generator=generator(7))).to(device, dtype)
