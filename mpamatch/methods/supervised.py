"""Labelled images alone: the floor every other method is measured from."""

from dataclasses import dataclass

from torch import Tensor

from mpamatch.batch import Batch
from mpamatch.methods.base import Method
from mpamatch.methods.losses import labelled_loss
from mpamatch.models.transunet import TransUNet


@dataclass
class SupervisedConfig:
    """Supervised training has no settings of its own."""

    name: str = "supervised"


class Supervised(Method):
    """(CE + Dice)/2 on labelled images."""

    def __init__(self, model: TransUNet, config: SupervisedConfig):
        super().__init__(model)

    def forward(self, batch: Batch, step: Tensor) -> dict[str, Tensor]:
        return {"loss": labelled_loss(self.model(batch.labelled.image).logits, batch.labelled.label)}
