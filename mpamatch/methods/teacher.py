"""A teacher: an average of the network's past weights (Tarvainen and Valpola, NeurIPS 2017)."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from mpamatch.methods.base import Method
from mpamatch.models.network import Network


class Taught(Method):
    """A method with a `teacher`, an average of the network's past weights, which predicts; always in eval mode.

    Attributes:
        teacher: None if the settings ask for none; then the trained network predicts.
    """

    teacher: Any

    def __init__(self, model: Network, config: Any, **towers: nn.Module | None):
        super().__init__(model, config, **towers)
        self.teacher = copy.deepcopy(model).requires_grad_(False).eval() if self.has_teacher(config) else None

    @classmethod
    def has_teacher(cls, config: Any) -> bool:
        """Tells whether the settings ask for a teacher; yes unless overridden."""
        return True

    def train(self, mode: bool = True) -> "Taught":
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    @property
    def deployed(self) -> Network:
        return self.model if self.teacher is None else self.teacher


@torch.no_grad()
def ema_(teacher: nn.Module, student: nn.Module, step: Tensor, decay: float) -> None:
    """Moves the teacher: teacher ← teacher + (1−m)·(student − teacher), m = min(1 − 1/(t+1), decay).

    Buffers move too, and integer counters are copied. All tensors move in four calls, as a launch for each would cost
    more than the arithmetic.
    """
    mine, theirs = ([*network.parameters(), *network.buffers()] for network in (teacher, student))
    averaged = [index for index, tensor in enumerate(mine) if tensor.is_floating_point()]
    change = torch._foreach_sub([theirs[i] for i in averaged], [mine[i] for i in averaged])
    torch._foreach_mul_(change, 1 - (1 - 1 / (step + 1)).clamp(max=decay))
    torch._foreach_add_([mine[i] for i in averaged], change)
    for tensor, other in zip(mine, theirs, strict=True):
        if not tensor.is_floating_point():
            tensor.copy_(other)
