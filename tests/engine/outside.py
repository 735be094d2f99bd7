"""A method as another package would bring it: its own settings, part of the loss and share."""

from typing import Literal

import torch
from torch import Tensor

from mpamatch.batch import Batch
from mpamatch.methods import Method
from mpamatch.methods.losses import labelled_loss, share
from mpamatch.settings import NonNegative, settings


@settings("method")
class ConfidentConfig:
    """Supervised training that likes to be sure.

    Attributes:
        weight_entropy: of the mean entropy of the unlabelled images.
    """

    name: Literal["confident"] = "confident"
    weight_entropy: NonNegative = 0.1


class Confident(Method):
    """L_labelled + weight_entropy·entropy of the weak view (Grandvalet and Bengio, NeurIPS 2004)."""

    name = "confident"
    configuration = ConfidentConfig
    strong_views = 1
    losses = ("labelled", "entropy")
    shares = ("sure",)

    def forward(self, batch: Batch, step: Tensor) -> dict[str, Tensor]:
        assert batch.unlabelled is not None
        n = len(batch.labelled.image)
        logits = self.model(torch.cat([batch.labelled.image, batch.unlabelled.weak])).logits
        supervised = labelled_loss(logits[:n], batch.labelled.label)
        p = logits[n:].softmax(1)
        entropy = -(p * p.clamp(min=1e-12).log()).sum(1).mean()
        sure = share((p.max(1).values > 0.9).float(), batch.unlabelled.valid)
        loss = supervised + self.config.weight_entropy * entropy
        return {"loss": loss, "labelled": supervised.detach(), "entropy": entropy.detach(), "sure": sure}
