"""Pixel embeddings in the prototypes' space from the decoder's map at stride 4, and the label of each of them."""

import torch
from torch import Tensor, nn

from mpamatch.ops.unit import unit, working


def projection(inner: int, width: int) -> nn.Sequential:
    """Builds the MLP that projects a pixel's `inner` channels to the prototypes' space of `width` numbers."""
    return nn.Sequential(nn.Linear(inner, inner), nn.ReLU(inplace=True), nn.Linear(inner, width), nn.LayerNorm(width))


def pixel_embeddings(project: nn.Module, embedding: Tensor) -> Tensor:  # (B, D', h, w) -> (B·h·w, D)
    """Projects every cell of the decoder's map to the prototypes' space."""
    return project(embedding.movedim(1, -1).flatten(0, 2))


def cell_cosines(
    project: nn.Module,
    embedding: Tensor,  # (B, D', h, w)
    prototypes: Tensor,  # (C, K, D) unit vectors
) -> Tensor:  # (B, C, K, h, w)
    """Computes the cosine of every cell of the decoder's map with every prototype."""
    z = unit(working(pixel_embeddings(project, embedding))).unflatten(0, (len(embedding), *embedding.shape[-2:]))
    return torch.einsum("bhwd,ckd->bckhw", z, prototypes.to(z.dtype))


def centre_sample(x: Tensor, size: tuple[int, int]) -> Tensor:  # (B, H, W) -> (B·h·w,)
    """Takes the pixel at the centre of each cell of an h×w grid: x[:, 2::4, 2::4] at stride 4."""
    row, column = (
        ((torch.arange(cells, device=x.device) + 0.5) * (side / cells)).long()
        for cells, side in zip(size, x.shape[-2:], strict=True)
    )
    return x[:, row][:, :, column].flatten()
