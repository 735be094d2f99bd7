"""What the operations share: the unit vector, the working precision, the sum over ranks."""

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
    """Runs an operation in the precision it states. Autocast would turn its products into bfloat16, whose rounding is
    more than one step of a prototype at momentum .999."""

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
    """float64 stays, every other floating dtype is computed in float32."""
    return x if x.dtype == torch.float64 else x.float()


def unit(x: Tensor) -> Tensor:  # (…, D) -> (…, D)
    """x/‖x‖ over the last axis; where ‖x‖ < 1e-6 the result and its gradient are 0.

    A clamp of the norm at 1e-12 instead would hand on gradients of 1e12.
    """
    squared = (x * x).sum(-1, keepdim=True)
    alive = squared >= ZERO_NORM**2
    return torch.where(alive, x * torch.rsqrt(torch.where(alive, squared, 1.0)), 0.0)


def sum_over_ranks(x: Tensor, process_group: dist.ProcessGroup | None) -> Tensor:
    """The sum of `x` over the ranks of `process_group` (None: this process alone). No gradient flows through it."""
    if process_group is None:
        return x
    total = x.clone()
    dist.all_reduce(total, group=process_group)
    return total


def maximum_over_ranks(x: Tensor, process_group: dist.ProcessGroup | None) -> Tensor:
    """As `sum_over_ranks`, with the element-wise maximum."""
    if process_group is None:
        return x
    total = x.clone()
    dist.all_reduce(total, op=dist.ReduceOp.MAX, group=process_group)
    return total
