"""Mean teacher (Tarvainen and Valpola, NeurIPS 2017): consistency with an average of the network's past weights."""

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mpamatch.batch import Batch
from mpamatch.methods.base import METHODS, Method
from mpamatch.methods.losses import labelled_loss, weighted_mean
from mpamatch.models.network import Network
from mpamatch.settings import Count, Fraction, NonNegative, settings


@settings("method")
class MeanTeacherConfig:
    """Settings of mean teacher.

    Attributes:
        decay: EMA decay of the teacher once past its start, min(1 − 1/(t+1), decay).
        weight: of the consistency term after the ramp.
        ramp: steps of the ramp-up exp(−5(1 − t/ramp)²).
    """

    name: Literal["mean_teacher"] = "mean_teacher"
    decay: Fraction = 0.99
    weight: NonNegative = 1.0
    ramp: Count = 200


class Taught(Method):
    """A method with a `teacher`, an average of the network's past weights, which predicts; always in eval mode."""

    def __init__(self, model: Network, config: Any, **towers: nn.Module | None):
        super().__init__(model, config, **towers)
        self.teacher = copy.deepcopy(model).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Taught":
        super().train(mode)
        self.teacher.eval()
        return self

    @property
    def deployed(self) -> Network:
        return self.teacher


@METHODS.register
class MeanTeacher(Taught):
    """Mean teacher: loss L_labelled + weight · ramp · MSE(student on strong view, teacher on weak view)."""

    name = "mean_teacher"
    configuration = MeanTeacherConfig
    config: MeanTeacherConfig
    strong_views = 1
    losses = ("labelled", "consistency")

    def forward(self, batch: Batch, step: Tensor) -> dict[str, Tensor]:
        assert batch.unlabelled is not None
        x, u = batch.labelled, batch.unlabelled
        with torch.no_grad():
            wanted = self.teacher(u.weak).logits.float().softmax(1)
        logits = self.model(torch.cat([x.image, u.strong1])).logits
        supervised = labelled_loss(logits[: len(x.image)], x.label)
        difference = (logits[len(x.image) :].float().softmax(1) - wanted).square().mean(1)
        consistency = weighted_mean((difference * u.valid).sum(), u.valid.sum())
        progress = (step / self.config.ramp).clamp(max=1)
        weight = self.config.weight * torch.exp(-5 * (1 - progress).square())
        loss = supervised + weight * consistency
        return {"loss": loss, "labelled": supervised.detach(), "consistency": consistency.detach()}

    @torch.no_grad()
    def after_step(self, step: Tensor) -> None:
        ema_(self.teacher, self.model, step, self.config.decay)


def ema_(teacher: torch.nn.Module, student: torch.nn.Module, step: Tensor, decay: float) -> None:
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
