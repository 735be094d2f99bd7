"""What the operations share: unit vectors, the working precision, reductions over ranks."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

ZERO_NORM = 1e-6
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def without_autocast(operation: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Turns autocast off for an operation; a decorator.

    Autocast would turn its products into bfloat16, whose rounding is more than one step of a prototype at momentum
    .999.
    """

    @wraps(operation)
    def exact(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        first = args[0] if args else next(iter(kwargs.values()), None)
        device = first.device.type if isinstance(first, Tensor) else "cpu"
        if device == "meta" or not torch.is_autocast_enabled(device):
            return operation(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return operation(*args, **kwargs)

    return exact


def working(x: Tensor) -> Tensor:
    """Converts every floating dtype but float64 to float32."""
    return x if x.dtype == torch.float64 else x.float()


def unit(x: Tensor) -> Tensor:  # (…, D) -> (…, D)
    """Normalises to x/‖x‖ over the last axis; if ‖x‖ < 1e-6 the result and its gradient are 0.

    A clamp of the norm at 1e-12 instead would pass on gradients of 1e12.
    """
    squared = (x * x).sum(-1, keepdim=True)
    alive = squared >= ZERO_NORM**2
    return torch.where(alive, x * torch.rsqrt(torch.where(alive, squared, 1.0)), 0.0)


def blank(x: Tensor, counts: Tensor, axis: int = -1) -> Tensor:
    """Sets the pixels of x that do not count to 0: NaN times a weight of 0 would be NaN, as would its gradient.

    `counts` is bool, in the shape of x without `axis`.
    """
    return torch.where(counts.unsqueeze(axis), x, 0.0)


def sum_over_ranks(x: Tensor, process_group: dist.ProcessGroup | None) -> Tensor:
    """Sums `x` over the ranks of `process_group` (None: this process alone), without gradient."""
    if process_group is None:
        return x
    total = x.clone()
    dist.all_reduce(total, group=process_group)
    return total


def maximum_over_ranks(x: Tensor, process_group: dist.ProcessGroup | None) -> Tensor:
    """Takes the element-wise maximum of `x` over the ranks of `process_group`, without gradient."""
    if process_group is None:
        return x
    total = x.clone()
    dist.all_reduce(total, op=dist.ReduceOp.MAX, group=process_group)
    return total
