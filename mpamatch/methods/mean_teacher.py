"""Mean teacher (Tarvainen and Valpola, NeurIPS 2017): agree with an average of past selves."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from mpamatch.batch import Batch
from mpamatch.errors import InputError
from mpamatch.methods.base import Method
from mpamatch.methods.losses import labelled_loss, weighted_mean
from mpamatch.models.transunet import TransUNet


@dataclass
class MeanTeacherConfig:
    """Mean teacher.

    Attributes:
        decay: EMA decay of the teacher once past its start, min(1 − 1/(t+1), decay).
        weight: of the consistency term after the ramp.
        ramp: steps of the ramp-up exp(−5(1 − t/ramp)²).
    """

    name: str = "mean_teacher"
    decay: float = 0.99
    weight: float = 1.0
    ramp: int = 200


class MeanTeacher(Method):
    """L_labelled + weight · ramp · MSE(student on strong view, teacher on weak view). The teacher predicts."""

    strong_views = 1

    def __init__(self, model: TransUNet, config: MeanTeacherConfig):
        super().__init__(model)
        if not 0 <= config.decay < 1 or config.ramp < 1:
            raise InputError(
                f"method.decay, method.ramp: expected 0 <= decay < 1, ramp >= 1, got {config.decay}, {config.ramp}."
            )
        self.config = config
        self.teacher = copy.deepcopy(model).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "MeanTeacher":
        super().train(mode)
        self.teacher.eval()
        return self

    @property
    def deployed(self) -> TransUNet:
        return self.teacher

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
    """teacher ← m·teacher + (1−m)·student, m = min(1 − 1/(t+1), decay), buffers too; integer counters are copied."""
    m = (1 - 1 / (step + 1)).clamp(max=decay)
    for mine, theirs in zip(
        [*teacher.parameters(), *teacher.buffers()], [*student.parameters(), *student.buffers()], strict=True
    ):
        if mine.is_floating_point():
            mine.lerp_(theirs.to(mine.dtype), (1 - m).to(mine.dtype))
        else:
            mine.copy_(theirs)
