"""MPAMatch (arXiv 2508.19574): UniMatch, and pixels contrasted with image prototypes and text prototypes."""

from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from mpamatch import ops
from mpamatch.batch import Batch, Labelled
from mpamatch.errors import InputError
from mpamatch.methods.base import METHODS
from mpamatch.methods.embedding import cell_cosines, centre_sample, pixel_embeddings, projection
from mpamatch.methods.losses import share, weighted_mean
from mpamatch.methods.pseudo_labels import Opinion, Targets, growth, softmax
from mpamatch.methods.towers import TEXT, TextSettings
from mpamatch.methods.unimatch import UniMatch, UniMatchConfig, Views
from mpamatch.models.network import Network
from mpamatch.models.prompt import TextPrototypes
from mpamatch.models.prototypes import PrototypeBank, mean_cosines
from mpamatch.ops.unit import unit
from mpamatch.ranks import all_ranks
from mpamatch.settings import Count, NonNegative, OnlyIf, Positive, Share, Whole, settings


@settings("method")
class MPAMatchConfig(TextSettings, UniMatchConfig):
    """Settings of MPAMatch; what the paper leaves open is an assumption with the default given here (docs/METHODS.md).

    Attributes:
        image_prototypes: contrast with image prototypes.
        prototypes: image prototypes per class, K.
        embedding_width: channels of the pixel embedding, D.
        assignment: sinkhorn or nearest.
        epsilon: Sinkhorn's entropy.
        iterations: Sinkhorn's iterations.
        temperature: of the contrast.
        momentum: of the prototypes once past their start.
        same_class_negatives: whether a class's other prototypes are negatives.
        weight_labelled: of the labelled loss.
        weight_unlabelled: of UniMatch's unlabelled terms.
        weight_prototype: of all prototype terms.
        weight_image: of the image prototypes' terms among them.
        weight_text: of the text prototypes' terms among them.
        weight_alignment: of alignment beside contrast.
        start: step at which prototypes, their terms and their opinions begin, once the classifier is better than
            random.
        ramp: steps over which they grow.
        weight_head: of the cross-entropy of cosine heads on labelled pixels: image and text prototypes as classifiers
            (UniSemAlign, arXiv 2604.09169); 0: no heads.
        head_share: of each head's logits, added to those that make the pseudo-labels. From `start` on.

    Raises:
        InputError: a value out of its range, or neither image nor text prototypes.
    """

    name: Literal["mpamatch"] = "mpamatch"  # type: ignore[assignment]
    image_prototypes: bool = True
    prototypes: Annotated[Count, OnlyIf("image_prototypes")] = 10
    embedding_width: Count = 256
    assignment: Annotated[Literal["sinkhorn", "nearest"], OnlyIf("image_prototypes")] = "sinkhorn"
    epsilon: Annotated[Positive, OnlyIf("assignment", ("sinkhorn",))] = 0.05
    iterations: Annotated[Count, OnlyIf("assignment", ("sinkhorn",))] = 3
    temperature: Positive = 0.1
    momentum: Annotated[Share, OnlyIf("image_prototypes")] = 0.999
    same_class_negatives: bool = True
    weight_labelled: NonNegative = 0.5
    weight_unlabelled: NonNegative = 0.25
    weight_prototype: NonNegative = 0.25
    weight_image: Annotated[NonNegative, OnlyIf("image_prototypes")] = 1.0
    weight_text: Annotated[NonNegative, OnlyIf("text_encoder")] = 1.0
    weight_alignment: NonNegative = 1.0
    start: Whole = 0
    ramp: Whole = 0
    weight_head: NonNegative = 0.0
    head_share: Annotated[NonNegative, OnlyIf("weight_head")] = 0.1

    def __post_init__(self) -> None:
        if not self.image_prototypes and self.text_encoder == "none":
            raise InputError(
                "method.image_prototypes: without image and text prototypes there is nothing to contrast; take "
                "unimatch."
            )
        super().__post_init__()

    def opinions(self) -> dict[str, bool]:
        return {"image": self.image_prototypes, "text": self.text_encoder != "none", **super().opinions()}


@METHODS.register
class MPAMatch(UniMatch):
    """MPAMatch (arXiv 2508.19574): loss weight_labelled·L_labelled + weight_unlabelled·L_unlabelled +
    weight_prototype·(image terms + text terms).

    The terms are the contrast and alignment of pixel embeddings with image prototypes and with text prototypes.
    """

    name = "mpamatch"
    configuration = MPAMatchConfig
    config: MPAMatchConfig
    towers = (TEXT,)
    losses = (*UniMatch.losses, "image_contrast", "image_alignment", "text_contrast", "text_alignment", "head")
    progress = ("labelled", "strong", "image_contrast", "text_contrast")

    def __init__(self, model: Network, config: MPAMatchConfig, text: TextPrototypes | None = None):
        super().__init__(model, config, text=text)
        width = config.embedding_width
        self.project = projection(self.model.embedding_width, width)
        self.bank = PrototypeBank(self.model.classes, config.prototypes, width) if config.image_prototypes else None
        self.text = text
        self.to_text = nn.Linear(width, text.width) if text is not None else None

    def forward(self, batch: Batch, step: Tensor) -> dict[str, Tensor]:
        assert batch.unlabelled is not None
        config = self.config
        seen = self.see(batch)
        z = torch.cat([pixel_embeddings(self.project, one.embedding) for one in (seen.labelled, seen.weak)])  # (N, D)
        begun = (step >= config.start).to(z.dtype)
        started = growth(step, config.start, config.ramp).to(z.dtype)
        words = self.text()[:, None] if self.text is not None else None  # float32 also if autocast made z half

        heads = self.heads(seen, z, words)
        targets = self.targets(seen, heads, batch, begun)
        supervised, of_border = self.supervised(seen.labelled, batch.labelled)
        strong, feature = self.consistency(seen, targets)
        unlabelled = config.weight_strong * strong + config.weight_feature * feature
        prototype, parts = self.prototype_terms(seen, z, words, targets, batch, begun)
        loss = (
            config.weight_labelled * supervised
            + config.weight_unlabelled * self.grown(step) * unlabelled
            + config.weight_prototype * started * prototype
        )
        if config.weight_head:
            head = self.head_term(heads, batch.labelled)
            loss = loss + config.weight_head * started * head
            parts |= {"head": head.detach()}
        return {
            "loss": loss,
            "labelled": supervised.detach(),
            "strong": strong.detach(),
            "feature": feature.detach(),
            **parts,
            **of_border,
            "confident": share(targets.weight, targets.valid),
        }

    def heads(self, seen: Views, z: Tensor, words: Tensor | None) -> dict[str, Tensor]:
        """Classifies every pixel of the labelled images and the weak view by its nearest prototype: cosine/temperature.

        Those kinds of prototypes that are asked for an opinion, and all of them if the cosine heads are trained. The
        logits (B, C, H, W) are interpolated from the grid of the embedding.
        """
        grid = (len(seen.labelled.logits) + len(seen.weak.logits), *seen.weak.embedding.shape[-2:])
        found: dict[str, Tensor] = {}
        if self.bank is not None and ("image" in self.asked or self.config.weight_head):
            before = self.bank.prototypes.clone()  # backward wants these, and the bank moves in this step
            found["image"], _ = ops.prototype_distance(z, before)
        if self.to_text is not None and words is not None and ("text" in self.asked or self.config.weight_head):
            found["text"], _ = ops.prototype_distance(self.to_text(unit(z)), words)
        return {name: self._as_map(distance, grid, seen.weak.logits) for name, distance in found.items()}

    def _as_map(self, distance: Tensor, grid: tuple[int, ...], like: Tensor) -> Tensor:  # (N, C) -> (B, C, H, W)
        logits = (-distance / self.config.temperature).unflatten(0, grid).movedim(-1, 1)
        return nn.functional.interpolate(logits, size=like.shape[-2:], mode="bilinear", align_corners=False)

    def head_term(self, heads: dict[str, Tensor], labelled: Labelled) -> Tensor:
        """Averages the cross-entropy of the heads on the labelled pixels."""
        pixels = (labelled.label != ops.IGNORE).sum()
        losses = [ops.segmentation_loss(logits[: len(labelled.label)], labelled.label)[0] for logits in heads.values()]
        return weighted_mean(torch.stack(losses).mean(), pixels)

    def targets(self, seen: Views, heads: dict[str, Tensor], batch: Batch, begun: Tensor) -> Targets:
        """Makes the pseudo-labels; from `start` on the prototypes are asked and the heads' logits are added."""
        labelled = len(seen.labelled.logits)
        weak = {name: logits.detach()[labelled:] for name, logits in heads.items()}
        opinions = self.opinions(seen)
        opinions |= {name: Opinion(softmax(logits), begun) for name, logits in weak.items() if name in self.asked}
        bonus = (
            begun * self.config.head_share * torch.stack([*weak.values()]).sum(0) if self.config.weight_head else None
        )
        return self.pseudo_labels(batch, seen.weak.logits, opinions, bonus)

    def prototype_terms(
        self, seen: Views, z: Tensor, words: Tensor | None, targets: Targets, batch: Batch, begun: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Assigns pixels, updates prototypes, then contrasts: labelled pixels by label, the weak view by pseudo-label.
        Before `start` the prototypes stay: embeddings of an untrained projection have a mean cosine of .99 with each
        other, and a bank that averaged them still had .84 (EBHI-Seg, 300 steps, start 100).
        """
        size = (seen.labelled.embedding.shape[-2], seen.labelled.embedding.shape[-1])
        label = torch.cat([centre_sample(batch.labelled.label, size), centre_sample(targets.label, size)])
        known = (batch.labelled.label != ops.IGNORE).to(targets.weight.dtype)
        weight = torch.cat([centre_sample(known, size), centre_sample(targets.weight, size)])
        label = torch.where(weight > 0, label, ops.IGNORE)
        total: Tensor = z.new_zeros(())
        parts: dict[str, Tensor] = {}
        if self.bank is not None:
            predicted = torch.cat([seen.labelled.logits, seen.weak.logits]).detach().max(1).indices
            correct = begun * weight * (centre_sample(predicted, size) == label)
            terms = self._image_terms(z, label, weight, correct)
            total = total + self.config.weight_image * (terms[0] + self.config.weight_alignment * terms[1])
            parts |= {"image_contrast": terms[0].detach(), "image_alignment": terms[1].detach()}
        if self.to_text is not None and words is not None:
            terms = self._mean_contrast(self.to_text(unit(z)), words, ops.assignment_from_label(label), weight)
            total = total + self.config.weight_text * (terms[0] + self.config.weight_alignment * terms[1])
            parts |= {"text_contrast": terms[0].detach(), "text_alignment": terms[1].detach()}
        return total, parts

    def _image_terms(self, z: Tensor, label: Tensor, weight: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
        assert self.bank is not None
        config, group = self.config, all_ranks()
        iterations = config.iterations if config.assignment == "sinkhorn" else 0
        assignment = self.bank.assign(z, label, iterations=iterations, epsilon=config.epsilon, group=group)
        self.bank.update(z, assignment, correct, momentum=config.momentum, group=group)
        return self._mean_contrast(z, self.bank.prototypes, assignment, weight)

    def _mean_contrast(
        self, z: Tensor, prototypes: Tensor, assignment: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        contrast, alignment = ops.prototype_contrast(
            z,
            prototypes,
            assignment,
            temperature=self.config.temperature,
            weight=weight,
            same_class_negatives=self.config.same_class_negatives,
        )
        return weighted_mean(contrast, weight.sum()), weighted_mean(alignment, weight.sum())

    @classmethod
    def settled(cls, config: Any) -> int:
        return max(super().settled(config), config.start + config.ramp)

    def diagnostics(self) -> dict[str, Tensor]:
        found = self.bank.health() if self.bank is not None else {}
        if self.text is not None:
            with torch.no_grad():
                found["text_cosine"] = mean_cosines(self.text()[:, None])["cosine_between"]
        return super().diagnostics() | {f"prototypes/{name}": value for name, value in found.items()}

    def prototype_cosines(self, image: Tensor) -> Tensor | None:
        if self.bank is None:
            return None
        return cell_cosines(self.project, self.model(image).embedding, self.bank.prototypes)

    def prototype_vectors(self) -> Tensor | None:
        return None if self.bank is None else self.bank.prototypes

    def prototype_text_cosines(self) -> Tensor | None:
        if self.bank is None or self.text is None or self.to_text is None:
            return None
        return unit(self.to_text(self.bank.prototypes)) @ self.text().T
