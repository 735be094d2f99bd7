"""FixMatch (NeurIPS 2020) for segmentation: weak view → pseudo-label → one strong view."""

from typing import Literal

import torch
from torch import Tensor

from mpamatch.batch import Batch
from mpamatch.methods.base import METHODS
from mpamatch.methods.consistency import cutmix, cutmix_targets, inside
from mpamatch.methods.losses import share, unlabelled_loss
from mpamatch.methods.pseudo_labels import PseudoLabelling, TeacherSettings
from mpamatch.settings import settings


@settings("method")
class FixMatchConfig(TeacherSettings):
    """Settings of FixMatch: those of its pseudo-labels."""

    name: Literal["fixmatch"] = "fixmatch"


@METHODS.register
class FixMatch(PseudoLabelling):
    """FixMatch (NeurIPS 2020): loss (L_labelled + L_strong)/2, as in UniMatch's repository."""

    name = "fixmatch"
    configuration = FixMatchConfig
    config: FixMatchConfig
    strong_views = 1
    mixes = True
    losses = ("labelled", "strong")
    shares = ("confident",)
    borders = True

    def forward(self, batch: Batch, step: Tensor) -> dict[str, Tensor]:
        assert batch.unlabelled is not None
        x, u = batch.labelled, batch.unlabelled
        m = len(u.weak)
        mixed = inside(u.box1, *u.valid.shape[1:])
        sees = self.teacher is None or "student" in self.asked  # does the student see the weak view?
        views = [u.weak[: m * sees], cutmix(u.strong1, mixed)]
        labelled, weak, strong1 = self.model(torch.cat([x.image, *views])).split([len(x.image), m * sees, m])
        clean = self.pseudo_labels(batch, weak.logits)

        supervised, parts = self.supervised(labelled, x)
        strong = unlabelled_loss(strong1.logits, *cutmix_targets(clean, mixed), self.config.unlabelled_loss)
        return {
            "loss": (supervised + self.grown(step) * strong) / 2,
            "labelled": supervised.detach(),
            "strong": strong.detach(),
            **parts,
            "confident": share(clean.weight, u.valid),
        }
