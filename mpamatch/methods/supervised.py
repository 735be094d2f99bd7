"""Training on labelled images alone: the baseline of every other method."""

from typing import Literal

from torch import Tensor

from mpamatch.batch import Batch
from mpamatch.methods.base import METHODS, Method
from mpamatch.methods.losses import LabelledSettings
from mpamatch.settings import settings


@settings("method")
class SupervisedConfig(LabelledSettings):
    """Settings of supervised training."""

    name: Literal["supervised"] = "supervised"


@METHODS.register
class Supervised(Method):
    """Supervised training: loss (CE + Dice)/2 on labelled images, or CE (`labelled_loss`)."""

    name = "supervised"
    configuration = SupervisedConfig
    config: SupervisedConfig
    borders = True

    def forward(self, batch: Batch, step: Tensor) -> dict[str, Tensor]:
        loss, parts = self.supervised(self.model(batch.labelled.image), batch.labelled)
        return {"loss": loss, **parts}
