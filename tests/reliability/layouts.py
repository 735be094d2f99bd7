"""The same values elsewhere in memory: with gaps, turned, cut out of larger tensors, off the boundaries of vectors."""

from collections.abc import Callable

import torch
from torch import Tensor


def _gaps(value: Tensor) -> Tensor:
    """Each value is followed in memory by a NaN, or a 99 between integers."""
    wide = value.new_full((*value.shape, 2), float("nan") if value.is_floating_point() else 99)
    wide[..., 0] = value
    return wide[..., 0]


def _last_first(value: Tensor) -> Tensor:
    return value.movedim(-1, 0).contiguous().movedim(0, -1) if value.dim() else value


def _sliced(value: Tensor) -> Tensor:
    """Rows of a wider table, that begin off the boundaries of vectors."""
    filler = float("nan") if value.is_floating_point() else 99
    return torch.nn.functional.pad(value, (1, 2), value=filler)[..., 1:-2] if value.dim() else value


def _channels_last(value: Tensor) -> Tensor:
    return value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value


def _second(value: Tensor) -> Tensor:
    """Every second row of a table of twice as many."""
    if value.dim() == 0:
        return value
    wide = torch.stack([value, torch.zeros_like(value)], 1).flatten(0, 1)
    return wide[::2]


def _shifted(value: Tensor) -> Tensor:
    flat = value.new_empty(value.numel() + 1)
    flat[1:] = value.reshape(-1)
    return flat[1:].view(value.shape)


LAYOUTS: tuple[Callable[[Tensor], Tensor], ...] = (
    torch.clone, torch.clone, _gaps, _last_first, _sliced, _channels_last, _second, _shifted,
)  # fmt: skip
