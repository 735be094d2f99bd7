"""MPAMatch (arXiv 2508.19574): UniMatch, and pixels contrasted with image prototypes and text prototypes."""

from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from mpamatch import ops
from mpamatch.batch import Batch
from mpamatch.errors import InputError
from mpamatch.methods.base import METHODS
from mpamatch.methods.consistency import Targets, pseudo_targets
from mpamatch.methods.embedding import centre_sample, pixel_embeddings, projection
from mpamatch.methods.losses import labelled_loss, share, weighted_mean
from mpamatch.methods.towers import TEXT, TextSettings
from mpamatch.methods.unimatch import UniMatch, UniMatchConfig, Views
from mpamatch.models.network import Network
from mpamatch.models.prompt import TextPrototypes
from mpamatch.models.prototypes import PrototypeBank
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
        start: step at which prototypes and their terms begin, once the classifier is better than random.
        ramp: steps over which they grow.
        second_opinion: none; agree (a pseudo-label counts only if the nearest prototype has the same class); or average
            (the pseudo-label is that of the mean of both softmaxes). From `start` on.

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
    second_opinion: Annotated[Literal["none", "agree", "average"], OnlyIf("image_prototypes")] = "none"

    def __post_init__(self) -> None:
        if not self.image_prototypes and self.text_encoder == "none":
            raise InputError(
                "method.image_prototypes: without image and text prototypes there is nothing to contrast; take "
                "unimatch."
            )


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
    losses = (*UniMatch.losses, "image_contrast", "image_alignment", "text_contrast", "text_alignment")
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
        started = begun * ((step - config.start + 1) / (config.ramp + 1)).clamp(max=1)

        targets = self.targets(seen, z, batch, started)
        supervised = labelled_loss(seen.labelled.logits, batch.labelled.label)
        strong, feature = self.consistency(seen, targets)
        unlabelled = config.weight_strong * strong + config.weight_feature * feature
        prototype, parts = self.prototype_terms(seen, z, targets, batch, begun)
        loss = (
            config.weight_labelled * supervised
            + config.weight_unlabelled * unlabelled
            + config.weight_prototype * started * prototype
        )
        return {
            "loss": loss,
            "labelled": supervised.detach(),
            "strong": strong.detach(),
            "feature": feature.detach(),
            **parts,
            "confident": share(targets.weight, targets.valid),
        }

    def targets(self, seen: Views, z: Tensor, batch: Batch, started: Tensor) -> Targets:
        """Makes the classifier's pseudo-labels, with the prototypes' second opinion if the settings ask for it."""
        assert batch.unlabelled is not None
        config, logits, valid = self.config, seen.weak.logits.detach(), batch.unlabelled.valid
        own = pseudo_targets(logits, valid, config.threshold)
        if config.second_opinion == "none" or self.bank is None:
            return own
        height, width = seen.weak.embedding.shape[-2:]
        distance, _ = ops.prototype_distance(z.detach()[-len(valid) * height * width :], self.bank.prototypes)
        second = (-distance / config.temperature).unflatten(0, (len(valid), height, width)).movedim(-1, 1)
        second = nn.functional.interpolate(second, size=logits.shape[-2:], mode="bilinear", align_corners=False)
        on = started > 0
        if config.second_opinion == "agree":
            agrees = second.max(1).indices == own.label
            return own._replace(weight=torch.where(on & ~agrees, 0.0, own.weight))
        mean = (logits.float().softmax(1) + second.softmax(1)) / 2
        both = pseudo_targets(mean.clamp(min=1e-12).log(), valid, config.threshold)
        return Targets(torch.where(on, both.label, own.label), torch.where(on, both.weight, own.weight), valid)

    def prototype_terms(
        self, seen: Views, z: Tensor, targets: Targets, batch: Batch, begun: Tensor
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
        if self.text is not None and self.to_text is not None:
            prototypes = self.text()[:, None]  # float32 also if autocast made the embedding half
            terms = self._mean_contrast(self.to_text(unit(z)), prototypes, ops.assignment_from_label(label), weight)
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
        return config.start + config.ramp

    def diagnostics(self) -> dict[str, Tensor]:
        if self.bank is None:
            return {}
        return {f"prototypes/{name}": value for name, value in self.bank.health().items()}
