"""Training on labelled images alone: the baseline of every other method."""

from typing import Literal

from torch import Tensor

from mpamatch.batch import Batch
from mpamatch.methods.base import METHODS, Method
from mpamatch.methods.losses import labelled_loss
from mpamatch.settings import settings


@settings("method")
class SupervisedConfig:
    """Settings of supervised training: none of its own."""

    name: Literal["supervised"] = "supervised"


@METHODS.register
class Supervised(Method):
    """Supervised training: loss (CE + Dice)/2 on labelled images."""

    name = "supervised"
    configuration = SupervisedConfig

    def forward(self, batch: Batch, step: Tensor) -> dict[str, Tensor]:
        return {"loss": labelled_loss(self.model(batch.labelled.image).logits, batch.labelled.label)}
