"""UniMatch (CVPR 2023): two strong views and one feature-dropped view learn from the weak view's pseudo-label."""

from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mpamatch.batch import Batch
from mpamatch.methods.base import METHODS
from mpamatch.methods.consistency import cutmix, cutmix_targets, inside
from mpamatch.methods.losses import share, unlabelled_loss
from mpamatch.methods.pseudo_labels import Opinion, PseudoLabelling, Targets, TeacherSettings, softmax
from mpamatch.models.layers import ChannelDropout
from mpamatch.models.network import Network, Prediction
from mpamatch.models.transunet import TransUNet
from mpamatch.settings import Fraction, NonNegative, settings


@settings("method")
class UniMatchConfig(TeacherSettings):
    """Settings of UniMatch, those of its pseudo-labels among them.

    Attributes:
        feature_dropout: share of encoder channels dropped in the feature-perturbed view.
        weight_strong: of the two strong views together.
        weight_feature: of the feature-perturbed view.
    """

    name: Literal["unimatch"] = "unimatch"
    feature_dropout: Fraction = 0.5
    weight_strong: NonNegative = 0.5
    weight_feature: NonNegative = 0.5

    def opinions(self) -> dict[str, bool]:
        return {"dropped": True, **super().opinions()}


class Views(NamedTuple):
    """What the network predicts for each view, in one pass over the batch."""

    labelled: Prediction
    weak: Prediction  # its logits are read as pseudo-labels only
    strong1: Tensor  # (B, C, H, W) logits
    strong2: Tensor  # (B, C, H, W)
    dropped: Tensor  # (B, C, H, W), of the weak view with channels dropped
    mixed1: Tensor  # (B, H, W) bool: the pixels of strong1 that CutMix takes from the neighbour
    mixed2: Tensor  # (B, H, W)


@METHODS.register
class UniMatch(PseudoLabelling):
    """UniMatch (CVPR 2023): loss (L_labelled + ½·weight_strong·(s1 + s2) + weight_feature·fp)/2.

    s1 and s2 are the terms of the strong views, fp that of the weak view with channels dropped (`unlabelled_loss`).
    """

    name = "unimatch"
    configuration: ClassVar[type] = UniMatchConfig
    model: TransUNet
    config: UniMatchConfig
    strong_views = 2
    feature_dropout = True
    mixes = True
    losses: ClassVar[tuple[str, ...]] = ("labelled", "strong", "feature")
    shares = ("confident",)
    borders = True

    def __init__(self, model: Network, config: UniMatchConfig, **towers: nn.Module | None):
        super().__init__(model, config, **towers)
        self.drop = ChannelDropout(model.encoder.channels, config.feature_dropout)

    def forward(self, batch: Batch, step: Tensor) -> dict[str, Tensor]:
        assert batch.unlabelled is not None
        seen = self.see(batch)
        targets = self.pseudo_labels(batch, seen.weak.logits, self.opinions(seen))
        supervised, parts = self.supervised(seen.labelled, batch.labelled)
        strong, feature = self.consistency(seen, targets)
        unlabelled = self.config.weight_strong * strong + self.config.weight_feature * feature
        return {
            "loss": (supervised + self.grown(step) * unlabelled) / 2,
            "labelled": supervised.detach(),
            "strong": strong.detach(),
            "feature": feature.detach(),
            **parts,
            "confident": share(targets.weight, targets.valid),
        }

    def see(self, batch: Batch) -> Views:
        """Predicts all views in one pass, the weak view twice: as it is and with channels of the encoder dropped.

        One pass, so that a batch norm normalises in training by the mixture whose statistics it predicts with.
        """
        x, u = batch.labelled.image, batch.unlabelled
        assert u is not None
        assert u.strong2 is not None
        assert u.box2 is not None
        assert u.channel_noise is not None
        n, m = len(x), len(u.weak)
        mixed1, mixed2 = (inside(box, *u.valid.shape[1:]) for box in (u.box1, u.box2))
        images = torch.cat([x, u.weak, cutmix(u.strong1, mixed1), cutmix(u.strong2, mixed2)])
        maps = self.model.encode(images)
        dropped = self.drop(tuple(level[n : n + m] for level in maps), u.channel_noise)
        maps = tuple(torch.cat(pair) for pair in zip(maps, dropped, strict=True))
        clean, pseudo, *rest = self.model.decode(maps, (x.shape[-2], x.shape[-1])).split([n, m, m, m, m])
        strong1, strong2, feature = (one.logits for one in rest)
        return Views(clean, pseudo, strong1, strong2, feature, mixed1, mixed2)

    def opinions(self, seen: Views) -> dict[str, Opinion]:
        """Collects the opinion of the view with channels dropped, if it is asked."""
        return {"dropped": Opinion(softmax(seen.dropped.detach()))} if "dropped" in self.asked else {}

    def consistency(self, seen: Views, targets: Targets) -> tuple[Tensor, Tensor]:
        """Computes the mean of the two strong terms, and the term of the feature-dropped view."""
        kind = self.config.unlabelled_loss
        strong1 = unlabelled_loss(seen.strong1, *cutmix_targets(targets, seen.mixed1), kind)
        strong2 = unlabelled_loss(seen.strong2, *cutmix_targets(targets, seen.mixed2), kind)
        return (strong1 + strong2) / 2, unlabelled_loss(seen.dropped, *targets, kind)
