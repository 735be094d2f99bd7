"""Pseudo-labels of the weak view, and which of them count: the switches that keep few labels from leading astray.

FixMatch, UniMatch, UniMatch V2 and MPAMatch share them. All are off by default.
"""

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mpamatch import ops
from mpamatch.batch import Batch
from mpamatch.errors import InputError
from mpamatch.methods.losses import LabelledSettings, over_ranks
from mpamatch.methods.teacher import Taught, ema_
from mpamatch.models.network import Network
from mpamatch.ops.unit import working
from mpamatch.ranks import all_ranks
from mpamatch.settings import Fraction, OnlyIf, Share, Whole, settings

UnlabelledLoss = Literal["ce", "dice", "both"]
Other = Literal["image", "text", "dropped", "student", "mirror"]
CORRMATCH_START = 0.85  # of CorrMatch's public code


class Targets(NamedTuple):
    """What the strong views should predict."""

    label: Tensor  # (B, H, W) u8, pseudo-label
    weight: Tensor  # (B, H, W) f32: 1 if the pixel is confident and valid, else 0
    valid: Tensor  # (B, H, W) bool, False if the crop was padded there


class Opinion(NamedTuple):
    """What another view, network or classifier predicts for the weak view."""

    probability: Tensor  # (B, C, H, W)
    asked: Tensor | None = None  # () 1 once the opinion is asked for, 0 before; None: always


@settings("method")
class PseudoLabelSettings(LabelledSettings):
    """Settings of the pseudo-labels and of which of them count.

    Attributes:
        threshold: least confidence of a pseudo-label that counts, 0 to 1; or adaptive: one per class, from moving
            averages (FreeMatch); or corrmatch: one, from a moving average of the classes' highest confidences.
        class_thresholds: whether the threshold, a number or corrmatch, is lower for classes that are predicted less:
            times the class's mean probability over the highest one, as adaptive has it.
        threshold_momentum: of these moving averages.
        align_classes: whether the probabilities of the weak view are scaled until the classes have the shares that
            they have among labelled pixels (ReMixMatch).
        share_momentum: of the moving averages of both shares.
        unlabelled_loss: ce, dice (of confident pixels) or both.
        unlabelled_start: step at which the unlabelled terms begin.
        unlabelled_ramp: steps over which they grow.
        second_opinion: none; agree (a pseudo-label counts only if the opinions that are asked have the same class); or
            average (label and confidence are those of the mean of all softmaxes).
        opinion_of: who is asked: student (beside the teacher) or mirror (the teacher on the mirrored view); unimatch
            and mpamatch also dropped (the view with channels dropped), mpamatch image or text (the prototypes).
            Nothing: the first of image, text, dropped, student and mirror that there is.
    """

    teacher: ClassVar[bool] = False

    threshold: Share | Literal["adaptive", "corrmatch"] = 0.95
    class_thresholds: bool = False
    threshold_momentum: Annotated[
        Fraction, OnlyIf("threshold", ("adaptive", "corrmatch")) | OnlyIf("class_thresholds")
    ] = 0.99
    align_classes: bool = False
    share_momentum: Annotated[Fraction, OnlyIf("align_classes")] = 0.99
    unlabelled_loss: UnlabelledLoss = "ce"
    unlabelled_start: Whole = 0
    unlabelled_ramp: Whole = 0
    second_opinion: Literal["none", "agree", "average"] = "none"
    opinion_of: Annotated[list[Other], OnlyIf("second_opinion", ("agree", "average"))] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.threshold == "adaptive" and self.class_thresholds:
            raise InputError("method.class_thresholds: does nothing more where method.threshold is adaptive.")
        if self.second_opinion == "none":
            return
        there = self.opinions()
        for name in self.opinion_of:
            if name not in there:
                raise InputError(f"method.opinion_of: {self.name} can ask {', '.join(there)}, got {name}.")  # type: ignore[attr-defined]
            if not there[name]:
                raise InputError(f"method.opinion_of: {name} needs {_NEEDS[name]}.")
        if not any(there.values()):
            raise InputError(f"method.second_opinion: there is nobody to ask without {_NEEDS['student']}.")

    def opinions(self) -> dict[str, bool]:
        """Tells whose opinions the method knows, the likeliest first, and whether these settings have them."""
        return {"student": self.teacher, "mirror": self.teacher}

    def asked(self) -> list[str]:
        """Lists who is asked."""
        if self.second_opinion == "none":
            return []
        return list(self.opinion_of) or [name for name, has in self.opinions().items() if has][:1]


@settings("method")
class TeacherSettings(PseudoLabelSettings):
    """Settings of an optional teacher.

    Attributes:
        teacher: whether an average of the network's past weights makes the pseudo-labels, and predicts.
        teacher_decay: EMA decay of the teacher once past its start, min(1 − 1/(t+1), decay).
    """

    teacher: bool = False  # type: ignore[misc]
    teacher_decay: Annotated[Fraction, OnlyIf("teacher")] = 0.99


_NEEDS = {
    "student": "--method.teacher true",
    "mirror": "--method.teacher true",
    "image": "--method.image_prototypes true",
    "text": "--method.text_encoder",
}


def pseudo_targets(
    logits: Tensor,  # (B, C, H, W) of the weak view
    valid: Tensor,  # (B, H, W) bool
    threshold: float | Tensor,  # or (C,), one per class
) -> Targets:
    """Makes pseudo-labels, which count if their softmax is at least `threshold` (FixMatch, NeurIPS 2020)."""
    label, confidence = ops.pseudo_label(logits.detach())
    if isinstance(threshold, Tensor):
        threshold = threshold[label.long()]
    return Targets(label, ((confidence >= threshold) & valid).to(confidence.dtype), valid)


class PseudoLabeller(nn.Module):
    """Makes the pseudo-labels that the settings describe; its buffers are the moving averages that they need.

    Args:
        classes: C.
        config: the settings.
    """

    confidence: Tensor  # () mean confidence (adaptive), or CorrMatch's threshold
    probability: Tensor  # (C,) mean probability of each class
    labelled_share: Tensor  # (C,) of the labelled pixels
    predicted_share: Tensor  # (C,) mean probability, before alignment

    def __init__(self, classes: int, config: PseudoLabelSettings):
        super().__init__()
        self.config, self.classes = config, classes
        even = torch.full((classes,), 1 / classes)
        if config.threshold == "adaptive" or config.class_thresholds:
            self.register_buffer("probability", even.clone())
        if config.threshold == "adaptive":
            self.register_buffer("confidence", torch.tensor(1 / classes))
        elif config.threshold == "corrmatch":
            self.register_buffer("confidence", torch.tensor(CORRMATCH_START))
        if config.align_classes:
            self.register_buffer("labelled_share", even.clone())
            self.register_buffer("predicted_share", even.clone())

    @torch.no_grad()
    def forward(
        self,
        logits: Tensor,  # (B, C, H, W) of the weak view
        valid: Tensor,  # (B, H, W) bool
        label: Tensor,  # (b, H, W) u8 of the labelled images
        opinions: Mapping[str, Opinion],
    ) -> Targets:
        """Aligns shares of classes, asks for opinions, moves the thresholds and compares with them."""
        if self.config.align_classes:
            logits = self._aligned(logits, valid, label)
        own = logits
        if self.config.second_opinion == "average" and opinions:
            logits = _mean(logits, opinions.values())
        targets = pseudo_targets(logits, valid, self._threshold(logits, valid))
        if self.config.second_opinion == "agree":
            for other in opinions.values():
                differs = other.probability.max(1).indices != own.max(1).indices
                if other.asked is not None:
                    differs = differs & (other.asked > 0)
                targets = targets._replace(weight=torch.where(differs, 0.0, targets.weight))
        return targets

    def _aligned(self, logits: Tensor, valid: Tensor, label: Tensor) -> Tensor:
        """Multiplies probabilities by labelled_share/predicted_share (ReMixMatch, ICLR 2020), both moving averages."""
        momentum, classes = self.config.share_momentum, logits.shape[1]
        _move(self.predicted_share, *_summed(softmax(logits), valid), momentum)
        counts = torch.stack([(label == index).sum() for index in range(classes)]).to(self.labelled_share.dtype)
        counts = over_ranks(counts)
        _move(self.labelled_share, counts, counts.sum(), momentum)
        ratio = self.labelled_share.clamp(min=1e-6) / self.predicted_share.clamp(min=1e-6)
        return working(logits) + ratio.log()[:, None, None]

    def _threshold(self, logits: Tensor, valid: Tensor) -> float | Tensor:
        """Moves the averages by the batch of all ranks and derives the threshold of each class.

        FreeMatch (ICLR 2023): τ·p_c/max p with τ the mean confidence and p the mean probability. CorrMatch (CVPR 2024):
        the mean, over the classes that are predicted, of their highest confidence.
        """
        momentum = self.config.threshold_momentum
        if self.config.threshold == "adaptive":
            _, confidence = ops.pseudo_label(logits)
            total, pixels = _summed(confidence[:, None], valid)
            _move(self.confidence, total[0], pixels, momentum)
        elif self.config.threshold == "corrmatch":
            label, confidence = ops.pseudo_label(logits)
            classes = range(logits.shape[1])
            highest = torch.stack([(confidence * (valid & (label == index))).max() for index in classes])
            if (group := all_ranks()) is not None:
                dist.all_reduce(highest, dist.ReduceOp.MAX, group=group)
            _move(self.confidence, highest.sum(), (highest > 0).sum(), momentum)
        if "probability" in self._buffers:
            _move(self.probability, *_summed(softmax(logits), valid), momentum)
        return self.thresholds()

    def thresholds(self) -> float | Tensor:  # or (C,)
        """Returns the threshold of each class, or one for all."""
        threshold = self.config.threshold
        one = self.confidence if isinstance(threshold, str) else threshold
        if "probability" in self._buffers:
            return one * self.probability / self.probability.max()
        return one.expand(self.classes) if isinstance(one, Tensor) else one

    def diagnostics(self) -> dict[str, Tensor]:
        """Measures the lowest and the highest threshold of a class, where they move."""
        if "probability" in self._buffers:
            found = torch.as_tensor(self.thresholds())
            return {"threshold/lowest": found.min(), "threshold/highest": found.max()}
        return {"threshold": self.confidence} if self.config.threshold == "corrmatch" else {}


class PseudoLabelling(Taught):
    """A method that trains on pseudo-labels of the weak view, with a teacher if its settings ask for one."""

    config: Any

    def __init__(self, model: Network, config: Any, **towers: nn.Module | None):
        super().__init__(model, config, **towers)
        self.pseudo = PseudoLabeller(model.classes, config)
        self.asked = config.asked()

    @classmethod
    def has_teacher(cls, config: Any) -> bool:
        return config.teacher

    def pseudo_labels(
        self,
        batch: Batch,
        weak: Tensor | None,  # (B, C, H, W) logits of the student, None if it does not see the weak view
        opinions: Mapping[str, Opinion] | None = None,
        bonus: Tensor | None = None,  # (B, C, H, W) added to the logits that make the pseudo-labels
    ) -> Targets:
        """Makes the pseudo-labels from the teacher's logits, or from the student's where there is no teacher.

        `opinions` are those that the method alone knows; the student's and the mirrored view's are added here.
        """
        u, found = batch.unlabelled, dict(opinions or {})
        assert u is not None
        with torch.no_grad():
            if self.teacher is None:
                assert weak is not None
                logits = weak.detach()
            else:
                mirrored = "mirror" in self.asked
                images = torch.cat([u.weak, u.weak.flip(-1)]) if mirrored else u.weak
                logits = self.teacher(images).logits
                if mirrored:
                    logits, other = logits.chunk(2)
                    found["mirror"] = Opinion(softmax(other.flip(-1)))
                if "student" in self.asked:
                    assert weak is not None
                    found["student"] = Opinion(softmax(weak.detach()))
            if bonus is not None:
                logits = logits + bonus
        return self.pseudo(logits, u.valid, batch.labelled.label, {name: found[name] for name in self.asked})

    def grown(self, step: Tensor) -> Tensor | float:
        """Returns the share of the unlabelled terms that counts at `step`."""
        config = self.config
        if not config.unlabelled_start and not config.unlabelled_ramp:
            return 1.0
        return growth(step, config.unlabelled_start, config.unlabelled_ramp)

    def after_step(self, step: Tensor) -> None:
        if self.teacher is not None:
            ema_(self.teacher, self.model, step, self.config.teacher_decay)

    @classmethod
    def settled(cls, config: Any) -> int:
        return config.unlabelled_start + config.unlabelled_ramp

    def diagnostics(self) -> dict[str, Tensor]:
        return self.pseudo.diagnostics()


def growth(step: Tensor, start: int, ramp: int) -> Tensor:  # () -> () f32
    """Returns 0 before `start`, then (step − start + 1)/(ramp + 1), at most 1."""
    return (step >= start) * ((step - start + 1) / (ramp + 1)).clamp(max=1)


def softmax(logits: Tensor) -> Tensor:
    """Computes the probabilities of the classes, in float32 at least."""
    return working(logits).softmax(1)


def _mean(logits: Tensor, opinions: Any) -> Tensor:
    """Returns the logits of the mean of the own softmax and of those of the opinions that are asked."""
    total, count = softmax(logits), torch.ones((), device=logits.device)
    for probability, wanted in opinions:
        weight = 1.0 if wanted is None else (wanted > 0).to(total.dtype)
        total, count = total + weight * probability, count + weight
    return (total / count).clamp(min=1e-12).log()


def _summed(values: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:  # (B, K, H, W), (B, H, W) -> (K,), ()
    """Sums over the valid pixels of all ranks, and counts these."""
    sums = (values * valid[:, None]).sum((0, 2, 3))
    both = over_ranks(torch.cat([sums, valid.sum()[None].to(sums.dtype)]))
    return both[:-1], both[-1]


def _move(average: Tensor, total: Tensor, count: Tensor, momentum: float) -> None:
    """Moves the average towards total/count; it stays where nothing was counted."""
    mean = (total / count.clamp(min=1)).to(average.dtype)
    average.lerp_(torch.where(count > 0, mean, average), 1 - momentum)
