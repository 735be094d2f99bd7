"""How well labels agree: Dice and IoU, pooled and per image, and the object-level scores for glands.

The object-level scores are those of the GlaS challenge: Sirinukunwattana et al., "Gland segmentation in colon
histology images: the GlaS challenge contest", Medical Image Analysis 35, 2017.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from skimage import measure
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from mpamatch.errors import InputError

MEANS = ("mdice", "miou", "foreground_dice", "foreground_iou")
OBJECT_SUMS = (
    *("true_positive", "false_positive", "false_negative"),
    *("area_true", "dice_true", "hausdorff_true"),  # the last two summed over objects × their area
    *("area_pred", "dice_pred", "hausdorff_pred"),
)


class SegmentationMetrics:
    """Collects predicted and true labels image by image and computes every score at the end.

    The state is three tensors on the CPU, each a sum over images, so that `merge` (or an all-reduce) of what several
    ranks have seen gives what one rank would have: `confusion` (C, C) int64 with true classes in rows, `mean_sums`
    (2, 4) float64 with the sums of the per-image MEANS and how many images they have, `object_sums` (9,) float64.

    `objects`: whether to compute the object-level scores too. An object is an 8-connected region of one class other
    than 0; touching glands are therefore one object. Regions of fewer than `smallest_object` pixels are dropped from
    both labels (none by default, as in the challenge).

    Raises InputError for fewer than two classes, or an ignore index that is one of them.
    """

    def __init__(
        self, class_names: Sequence[str], objects: bool, ignore: int = 255, smallest_object: int = 0
    ) -> None:
        if len(class_names) < 2:
            raise InputError(f"{len(class_names)} classes: scores need at least two, the background first.")
        if 0 <= ignore < len(class_names):
            raise InputError(f"ignore index {ignore}: is the class {class_names[ignore]!r}; take one beyond them.")
        self.class_names = tuple(class_names)
        self.objects = objects
        self.ignore = ignore
        self.smallest_object = smallest_object
        self.confusion = torch.zeros(len(class_names), len(class_names), dtype=torch.int64)
        self.mean_sums = torch.zeros(2, len(MEANS), dtype=torch.float64)
        self.object_sums = torch.zeros(len(OBJECT_SUMS), dtype=torch.float64)

    def update(
        self,
        label_pred: Tensor | NDArray[Any],  # (H, W) class index
        label_true: Tensor | NDArray[Any],  # (H, W) class index, or ignore
    ) -> None:
        """Adds one image. Pixels whose true label is ignore count nowhere, whatever was predicted there.

        Raises InputError for labels that are not (H, W) or differ in size, and for an index that is no class.
        """
        pred = torch.as_tensor(label_pred).cpu().long()
        true = torch.as_tensor(label_true).cpu().long()
        if pred.ndim != 2 or pred.shape != true.shape:
            raise InputError(f"labels {tuple(pred.shape)} and {tuple(true.shape)}: both must be (H, W), of one size.")
        counted = true != self.ignore
        pred, true = pred * counted, true * counted  # class 0 where ignored: no object lies there
        for name, label in (("predicted", pred), ("true", true)):
            wrong = label[(label < 0) | (label >= len(self.class_names))]
            if len(wrong):
                raise InputError(
                    f"{name} label: has index {int(wrong[0])}, but classes are 0..{len(self.class_names) - 1}."
                )

        confusion = multiclass_confusion_matrix(
            pred[counted], true[counted], len(self.class_names), validate_args=False
        )
        means = mean_scores(*class_scores(confusion))
        self.confusion += confusion
        self.mean_sums += torch.stack([means.nan_to_num(), means.isfinite()])
        if self.objects:
            self.object_sums += sum(
                object_sums(*(regions(label.numpy() == index, self.smallest_object) for label in (true, pred)))
                for index in range(1, len(self.class_names))
            )

    def merge(self, other: "SegmentationMetrics") -> None:
        """Adds the images that `other` has seen. Raises InputError where its settings are not the same."""
        for field in ("class_names", "objects", "ignore", "smallest_object"):
            mine, theirs = getattr(self, field), getattr(other, field)
            if mine != theirs:
                raise InputError(f"metrics with {field} {mine} and {theirs}: only equal ones can be merged.")
        self.confusion += other.confusion
        self.mean_sums += other.mean_sums
        self.object_sums += other.object_sums

    def compute(self) -> dict[str, Any]:
        """All scores, ready for JSON: fractions 0..1, and Hausdorff distances in pixels.

        - "dice", "iou": by class name. "mdice", "miou": means over classes. "foreground_dice", "foreground_iou":
          means without class 0, the background. All from one confusion matrix pooled over images.
        - "per_image": the four means taken in each image over the classes in its truth or prediction, then averaged
          over images. An image of nothing but ignored pixels does not count, and one that is background in truth and
          prediction does not count for the foreground.
        - "objects", where asked for: "f1", "dice", "hausdorff" with the objects of all images pooled (one count of
          detections, one total area to weigh by), as `object_scores` says.

        A class that is in no truth and no prediction is None and enters no mean; a mean over nothing is None.
        """
        dice, iou = class_scores(self.confusion)
        per_image = self.mean_sums[0] / self.mean_sums[1]
        scores: dict[str, Any] = by_name(MEANS, mean_scores(dice, iou))
        scores["dice"] = by_name(self.class_names, dice)
        scores["iou"] = by_name(self.class_names, iou)
        scores["per_image"] = by_name(MEANS, per_image)
        if self.objects:
            scores["objects"] = object_scores(self.object_sums)
        return scores


def class_scores(
    confusion: Tensor,  # (C, C) int64, true classes in rows
) -> tuple[Tensor, Tensor]:  # (C,), (C,) float64
    """Dice and IoU of each class; nan for one that is neither in the truth nor in the prediction."""
    hit = confusion.diagonal().double()
    total = confusion.sum(dim=0).double() + confusion.sum(dim=1)
    return 2 * hit / total, hit / (total - hit)


def mean_scores(
    dice: Tensor,  # (C,) float64, nan where absent
    iou: Tensor,  # (C,)
) -> Tensor:  # (4,) in the order of MEANS
    """Means over the classes that are there, with and without class 0; nan where there is none."""
    return torch.stack([dice.nanmean(), iou.nanmean(), dice[1:].nanmean(), iou[1:].nanmean()])


def by_name(
    names: Sequence[str],  # N
    values: Tensor,  # (N,)
) -> dict[str, float | None]:
    """A dictionary for JSON, which has no nan: None instead."""
    return {name: None if math.isnan(value) else value for name, value in zip(names, values.tolist(), strict=True)}


def regions(
    mask: NDArray[np.bool_],  # (H, W)
    smallest: int,
) -> NDArray[np.int64]:  # (H, W)
    """The 8-connected regions of `mask` numbered 1..N, 0 elsewhere; those under `smallest` pixels are left out."""
    numbered = measure.label(mask, connectivity=2)
    kept = np.bincount(numbered.ravel()) >= smallest
    kept[0] = False
    return (np.cumsum(kept) * kept)[numbered]


def object_sums(
    true: NDArray[np.int64],  # (H, W) objects numbered 1..N, 0 elsewhere
    pred: NDArray[np.int64],  # (H, W) objects numbered 1..M
) -> Tensor:  # (9,) float64 in the order of OBJECT_SUMS
    """What the objects of one class in one image add to the sums that `object_scores` reads."""
    n_true, n_pred = int(true.max()), int(pred.max())
    pairs = np.bincount((true * (n_pred + 1) + pred).ravel(), minlength=(n_true + 1) * (n_pred + 1))
    shared = pairs.reshape(n_true + 1, n_pred + 1)
    area_true, area_pred = shared.sum(axis=1)[1:], shared.sum(axis=0)[1:]
    shared = shared[1:, 1:]
    dice = 2 * shared / (area_true[:, None] + area_pred)
    distance = Distances(true, pred)

    detected = detections(shared, area_true)
    found = np.unique(detected[detected >= 0])
    counts = [np.sum(detected >= 0), np.sum(detected < 0), n_true - len(found)]
    return torch.tensor(
        [
            *counts,
            *weighted_sums(shared, dice, area_true, lambda i, j: distance(i, j)),
            *weighted_sums(shared.T, dice.T, area_pred, lambda j, i: distance(i, j)),
        ],
        dtype=torch.float64,
    )
