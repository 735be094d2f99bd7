"""PCCS (arXiv 2502.06650): contrast of prototypes by depth, and an EMA teacher that classifies by prototypes."""

import copy
import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mpamatch import ops
from mpamatch.batch import Batch, Unlabelled
from mpamatch.errors import InputError
from mpamatch.methods.base import METHODS
from mpamatch.methods.embedding import cell_cosines, centre_sample, pixel_embeddings, projection
from mpamatch.methods.losses import LabelledSettings, share, weighted_mean
from mpamatch.methods.pccs_terms import (
    consistency,
    entropy,
    level_contrast,
    level_sets,
    of_all_ranks,
    pooled,
    prototypes_of,
)
from mpamatch.methods.teacher import Taught, ema_
from mpamatch.models.network import Network
from mpamatch.models.prototypes import PrototypeBank
from mpamatch.models.transunet import TransUNet
from mpamatch.ops.unit import unit, working
from mpamatch.ranks import all_ranks
from mpamatch.settings import Count, Fraction, NonNegative, Positive, Share, Whole, settings


@settings("method")
class PCCSConfig(LabelledSettings):
    """Settings of PCCS; what the paper leaves open is an assumption with the default given here (docs/METHODS.md).

    Attributes:
        decay: EMA decay of the teacher once past its start, min(1 − 1/(t+1), decay).
        prototypes: prototypes per class that the teacher classifies by, K.
        embedding_width: channels of the pixel embedding, D.
        levels: distance levels of a class that are told apart, in cells of stride 4; deeper ones count as the last.
        uncertain: least entropy of a background pixel that counts as uncertain, as a share of ln C.
        temperature: of both contrasts and of the teacher's scores.
        epsilon: Sinkhorn's entropy.
        iterations: Sinkhorn's iterations.
        momentum: of the prototypes once past their start.
        distance_share: of the distance prototypes, mixed into the teacher's prototypes in every step.
        weight_contrast: of the contrast between distance prototypes.
        weight_auxiliary: of the contrast between pixels and the teacher's prototypes.
        weight_consistency: of the uncertainty consistency after the ramp.
        weight_entropy: of the entropies' norms beside the squared difference.
        start: step at which the teacher's prototypes and the consistency begin.
        contrast_start: step at which both contrasts and the mixing begin.
        ramp: steps of the ramp-up exp(−5(1 − t/ramp)²) of the consistency.

    Raises:
        InputError: a value out of its range, or contrast_start before start.
    """

    name: Literal["pccs"] = "pccs"
    decay: Fraction = 0.99
    prototypes: Count = 2
    embedding_width: Count = 256
    levels: Count = 16
    uncertain: Share = 0.25
    temperature: Positive = 0.05
    epsilon: Positive = 0.05
    iterations: Count = 4
    momentum: Share = 0.999
    distance_share: Share = 0.001
    weight_contrast: NonNegative = 0.01
    weight_auxiliary: NonNegative = 0.3
    weight_consistency: NonNegative = 0.1
    weight_entropy: NonNegative = 0.1
    start: Whole = 200
    contrast_start: Whole = 500
    ramp: Count = 30000

    def __post_init__(self) -> None:
        if self.contrast_start < self.start:
            raise InputError(
                f"method.start, method.contrast_start: expected 0 <= start <= contrast_start, got {self.start}, "
                f"{self.contrast_start}."
            )


class Lesson(NamedTuple):
    """What the teacher predicts for the weak view, in cells of the embedding's grid."""

    label: Tensor  # (B, h, w) u8, 255 if not valid
    probability: Tensor  # (B, h·w, C) of the classifier
    uncertain: Tensor  # (B, h, w) bool
    z: Tensor  # (B·h·w, D) embedding


@METHODS.register
class PCCS(Taught):
    """PCCS (arXiv 2502.06650): loss L_labelled + weight_consistency·ramp·(squares + weight_entropy·entropies) +
    weight_contrast·contrast + weight_auxiliary·auxiliary.

    The teacher's classifier predicts.
    """

    name = "pccs"
    configuration = PCCSConfig
    model: TransUNet
    config: PCCSConfig
    strong_views = 1
    losses = ("labelled", "consistency", "entropy", "level_contrast", "auxiliary")
    shares = ("agreed",)
    borders = True

    def __init__(self, model: Network, config: PCCSConfig):
        super().__init__(model, config)
        width = config.embedding_width
        self.project = projection(self.model.embedding_width, width)
        self.bank = PrototypeBank(model.classes, config.prototypes, width)
        self.teacher_project = copy.deepcopy(self.project).requires_grad_(False)

    def forward(self, batch: Batch, step: Tensor) -> dict[str, Tensor]:
        assert batch.unlabelled is not None
        config, x, u = self.config, batch.labelled, batch.unlabelled
        labelled, strong = self.model(torch.cat([x.image, u.strong1])).split([len(x.image), len(u.strong1)])
        supervised, of_border = self.supervised(labelled, x)
        logits, embedding = strong.logits, strong.embedding
        z = pixel_embeddings(self.project, embedding)  # (N, D)
        taught = self.teach(u)

        begun, contrasts = ((step >= first).to(supervised.dtype) for first in (config.start, config.contrast_start))
        label, known = taught.label.flatten(), (taught.label != ops.IGNORE).flatten().to(supervised.dtype)
        size = (taught.label.shape[-2], taught.label.shape[-1])
        agreed = known * (label == centre_sample(logits.detach().max(1).indices, size))
        assignment = self._update(taught, begun * agreed)
        contrast = self._level_contrast(z, taught, contrasts > 0)
        auxiliary, _ = ops.prototype_contrast(
            z, self.bank.prototypes, assignment, temperature=config.temperature, weight=known
        )
        auxiliary = weighted_mean(auxiliary, known.sum())
        squares, entropies = consistency(working(logits).softmax(1), self._wanted(taught, u.valid), u.valid)

        ramp = torch.exp(-5 * (1 - (step.to(supervised.dtype) / config.ramp).clamp(max=1)).square())
        loss = (
            supervised
            + begun * ramp * config.weight_consistency * (squares + config.weight_entropy * entropies)
            + contrasts * (config.weight_contrast * contrast + config.weight_auxiliary * auxiliary)
        )
        parts = {
            "labelled": supervised,
            "consistency": squares,
            "entropy": entropies,
            "level_contrast": contrast,
            "auxiliary": auxiliary,
            **of_border,
        }
        return {"loss": loss, **{name: value.detach() for name, value in parts.items()}, "agreed": share(agreed, known)}

    @torch.no_grad()
    def teach(self, u: Unlabelled) -> Lesson:
        """Computes the teacher's pseudo-label, probability, uncertainty and embedding of the weak view."""
        logits, embedding, _ = self.teacher(u.weak)
        size = (embedding.shape[-2], embedding.shape[-1])
        cells = centre_sample(logits.flatten(0, 1), size).reshape(*logits.shape[:2], *size)
        label, _ = ops.pseudo_label(cells)
        valid = centre_sample(u.valid, size).reshape(label.shape)
        probability = working(cells).softmax(1)
        uncertain = entropy(probability, 1) >= self.config.uncertain * math.log(max(self.model.classes, 2))
        label = torch.where(valid, label, ops.IGNORE)
        z = pixel_embeddings(self.teacher_project, embedding)
        return Lesson(label, probability.flatten(2).movedim(1, 2), uncertain, z)

    def _update(self, taught: Lesson, weight: Tensor) -> Tensor:
        """Moves the prototypes by the teacher's embeddings of weight > 0; returns the assignment of all, (N,) i32."""
        config, group = self.config, all_ranks()
        label = taught.label.flatten()
        assignment = self.bank.assign(
            taught.z, label, iterations=config.iterations, epsilon=config.epsilon, group=group
        )
        self.bank.update(taught.z, assignment, weight, momentum=config.momentum, group=group)
        return assignment

    def _level_contrast(self, z: Tensor, taught: Lesson, mixes: Tensor) -> Tensor:
        """Computes the contrast of the batch's distance prototypes; mixes these into the bank if `mixes`, () bool."""
        config = self.config
        sets = level_sets(taught.label, taught.uncertain, self.model.classes, config.levels)
        found = of_all_ranks(prototypes_of(z.unflatten(0, (len(taught.label), -1)), taught.probability, sets))
        pool, filled = pooled(found.direction.detach(), found, self.model.classes, config.prototypes)
        old = self.bank.prototypes
        mixed = unit((1 - config.distance_share) * old + config.distance_share * pool.to(old.dtype))
        old.copy_(torch.where(filled & mixes, mixed, old))
        return level_contrast(found.direction, found, config.temperature)

    @torch.no_grad()
    def _wanted(self, taught: Lesson, valid: Tensor) -> Tensor:
        """Computes the teacher's probabilities by its prototypes, at the image's size: (B, C, H, W)."""
        distance, _ = ops.prototype_distance(taught.z, self.bank.prototypes)
        score = (-distance / self.config.temperature).unflatten(0, taught.label.shape).movedim(-1, 1)
        score = nn.functional.interpolate(score, size=valid.shape[-2:], mode="bilinear", align_corners=False)
        return score.softmax(1)

    @torch.no_grad()
    def after_step(self, step: Tensor) -> None:
        ema_(self.teacher, self.model, step, self.config.decay)
        ema_(self.teacher_project, self.project, step, self.config.decay)

    @classmethod
    def settled(cls, config: Any) -> int:
        return max(config.contrast_start, config.ramp)

    def prototype_cosines(self, image: Tensor) -> Tensor | None:
        return cell_cosines(self.teacher_project, self.teacher(image).embedding, self.bank.prototypes)

    def prototype_vectors(self) -> Tensor | None:
        return self.bank.prototypes

    def diagnostics(self) -> dict[str, Tensor]:
        return {f"prototypes/{name}": value for name, value in self.bank.health().items()}
