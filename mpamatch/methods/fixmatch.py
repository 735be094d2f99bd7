"""FixMatch (NeurIPS 2020) for segmentation: weak view → pseudo-label → one strong view."""

from typing import Literal

import torch
from torch import Tensor

from mpamatch.batch import Batch
from mpamatch.methods.base import METHODS, Method
from mpamatch.methods.consistency import UnlabelledLoss, cutmix, cutmix_targets, inside, pseudo_targets
from mpamatch.methods.losses import labelled_loss, share, unlabelled_loss
from mpamatch.settings import Share, settings


@settings("method")
class FixMatchConfig:
    """Settings of FixMatch.

    Attributes:
        threshold: least confidence of a pseudo-label that counts.
        unlabelled_loss: ce, dice (of confident pixels) or both.
    """

    name: Literal["fixmatch"] = "fixmatch"
    threshold: Share = 0.95
    unlabelled_loss: UnlabelledLoss = "ce"


@METHODS.register
class FixMatch(Method):
    """FixMatch (NeurIPS 2020): loss (L_labelled + L_strong)/2, as in UniMatch's repository."""

    name = "fixmatch"
    configuration = FixMatchConfig
    config: FixMatchConfig
    strong_views = 1
    mixes = True
    losses = ("labelled", "strong")
    shares = ("confident",)

    def forward(self, batch: Batch, step: Tensor) -> dict[str, Tensor]:
        assert batch.unlabelled is not None
        x, u = batch.labelled, batch.unlabelled
        m = len(u.weak)
        mixed = inside(u.box1, *u.valid.shape[1:])
        logits = self.model(torch.cat([x.image, u.weak, cutmix(u.strong1, mixed)])).logits
        labelled, weak, strong1 = logits.split([len(x.image), m, m])
        clean = pseudo_targets(weak, u.valid, self.config.threshold)

        supervised = labelled_loss(labelled, x.label)
        strong = unlabelled_loss(strong1, *cutmix_targets(clean, mixed), self.config.unlabelled_loss)
        return {
            "loss": (supervised + strong) / 2,
            "labelled": supervised.detach(),
            "strong": strong.detach(),
            "confident": share(clean.weight, u.valid),
        }
