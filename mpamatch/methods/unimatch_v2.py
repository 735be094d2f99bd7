"""UniMatch V2 (arXiv 2410.10777): a teacher's pseudo-labels, complementary channels for two strong views."""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from mpamatch.batch import Batch
from mpamatch.methods.base import METHODS
from mpamatch.methods.consistency import cutmix, cutmix_targets, inside
from mpamatch.methods.losses import share, unlabelled_loss
from mpamatch.methods.pseudo_labels import PseudoLabelling, PseudoLabelSettings
from mpamatch.models.layers import ComplementaryDropout
from mpamatch.models.network import Network
from mpamatch.models.transunet import TransUNet
from mpamatch.settings import Fraction, settings


@settings("method")
class UniMatchV2Config(PseudoLabelSettings):
    """Settings of UniMatch V2, those of its pseudo-labels among them.

    Attributes:
        complementary_dropout: whether the two strong views see complementary channels of the encoder.
        teacher_decay: EMA decay of the teacher once past its start, min(1 − 1/(t+1), decay).
    """

    teacher: ClassVar[bool] = True

    name: Literal["unimatch_v2"] = "unimatch_v2"
    complementary_dropout: bool = True
    teacher_decay: Fraction = 0.996

    def opinions(self) -> dict[str, bool]:
        return {"mirror": True}  # the student does not see the weak view


@METHODS.register
class UniMatchV2(PseudoLabelling):
    """UniMatch V2 (arXiv 2410.10777): loss (L_labelled + (s1 + s2)/2)/2.

    s1 and s2 are the terms of the strong views, whose pseudo-labels the teacher makes; the teacher predicts.
    """

    name = "unimatch_v2"
    configuration: ClassVar[type] = UniMatchV2Config
    model: TransUNet
    config: UniMatchV2Config
    strong_views = 2
    feature_dropout = True
    mixes = True
    losses: ClassVar[tuple[str, ...]] = ("labelled", "strong")
    shares = ("confident",)
    borders = True

    def __init__(self, model: Network, config: UniMatchV2Config, **towers: nn.Module | None):
        super().__init__(model, config, **towers)
        self.drop = ComplementaryDropout(model.encoder.channels)

    def forward(self, batch: Batch, step: Tensor) -> dict[str, Tensor]:
        x, u = batch.labelled, batch.unlabelled
        assert u is not None
        assert u.strong2 is not None
        assert u.box2 is not None
        assert u.channel_noise is not None
        n, m = len(x.image), len(u.weak)
        mixed1, mixed2 = (inside(box, *u.valid.shape[1:]) for box in (u.box1, u.box2))
        images = torch.cat([x.image, cutmix(u.strong1, mixed1), cutmix(u.strong2, mixed2)])
        maps = self.model.encode(images)
        if self.config.complementary_dropout:
            clean, first, second = (
                tuple(level[low:high] for level in maps) for low, high in ((0, n), (n, n + m), (n + m, n + 2 * m))
            )
            first, second = self.drop(first, second, u.channel_noise)
            maps = tuple(torch.cat(parts) for parts in zip(clean, first, second, strict=True))
        labelled, strong1, strong2 = self.model.decode(maps, (images.shape[-2], images.shape[-1])).split([n, m, m])
        targets = self.pseudo_labels(batch, None)

        supervised, parts = self.supervised(labelled, x)
        kind = self.config.unlabelled_loss
        s1 = unlabelled_loss(strong1.logits, *cutmix_targets(targets, mixed1), kind)
        s2 = unlabelled_loss(strong2.logits, *cutmix_targets(targets, mixed2), kind)
        strong = (s1 + s2) / 2
        return {
            "loss": (supervised + self.grown(step) * strong) / 2,
            "labelled": supervised.detach(),
            "strong": strong.detach(),
            **parts,
            "confident": share(targets.weight, u.valid),
        }
