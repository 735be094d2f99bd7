"""Mean teacher (Tarvainen and Valpola, NeurIPS 2017): consistency with an average of the network's past weights."""

from typing import Literal

import torch
from torch import Tensor

from mpamatch.batch import Batch
from mpamatch.methods.base import METHODS
from mpamatch.methods.losses import LabelledSettings, weighted_mean
from mpamatch.methods.teacher import Taught, ema_
from mpamatch.settings import Count, Fraction, NonNegative, settings


@settings("method")
class MeanTeacherConfig(LabelledSettings):
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


@METHODS.register
class MeanTeacher(Taught):
    """Mean teacher: loss L_labelled + weight · ramp · MSE(student on strong view, teacher on weak view)."""

    name = "mean_teacher"
    configuration = MeanTeacherConfig
    config: MeanTeacherConfig
    strong_views = 1
    losses = ("labelled", "consistency")
    borders = True

    def forward(self, batch: Batch, step: Tensor) -> dict[str, Tensor]:
        assert batch.unlabelled is not None
        x, u = batch.labelled, batch.unlabelled
        with torch.no_grad():
            wanted = self.teacher(u.weak).logits.float().softmax(1)
        labelled, strong = self.model(torch.cat([x.image, u.strong1])).split([len(x.image), len(u.strong1)])
        supervised, parts = self.supervised(labelled, x)
        difference = (strong.logits.float().softmax(1) - wanted).square().mean(1)
        consistency = weighted_mean((difference * u.valid).sum(), u.valid.sum())
        progress = (step / self.config.ramp).clamp(max=1)
        weight = self.config.weight * torch.exp(-5 * (1 - progress).square())
        loss = supervised + weight * consistency
        return {"loss": loss, "labelled": supervised.detach(), "consistency": consistency.detach(), **parts}

    def after_step(self, step: Tensor) -> None:
        ema_(self.teacher, self.model, step, self.config.decay)
