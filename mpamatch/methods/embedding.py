"""Pixel embeddings in the prototypes' space from the decoder's map at stride 4, and the label of each of them."""

import torch
from torch import Tensor, nn


def projection(inner: int, width: int) -> nn.Sequential:
    """Builds the MLP that projects a pixel's `inner` channels to the prototypes' space of `width` numbers."""
    return nn.Sequential(nn.Linear(inner, inner), nn.ReLU(inplace=True), nn.Linear(inner, width), nn.LayerNorm(width))


def pixel_embeddings(project: nn.Module, embedding: Tensor) -> Tensor:  # (B, D', h, w) -> (B·h·w, D)
    """Projects every cell of the decoder's map to the prototypes' space."""
    return project(embedding.movedim(1, -1).flatten(0, 2))


def centre_sample(x: Tensor, size: tuple[int, int]) -> Tensor:  # (B, H, W) -> (B·h·w,)
    """Takes the pixel at the centre of each cell of an h×w grid: x[:, 2::4, 2::4] at stride 4."""
    row, column = (
        ((torch.arange(cells, device=x.device) + 0.5) * (side / cells)).long()
        for cells, side in zip(size, x.shape[-2:], strict=True)
    )
    return x[:, row][:, :, column].flatten()
