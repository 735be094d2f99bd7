"""Scores of predicted labels: Dice and IoU, pooled and per image, and the object-level scores for glands.

The object-level scores are those of the GlaS challenge: Sirinukunwattana et al., "Gland segmentation in colon
histology images: the GlaS challenge contest", Medical Image Analysis 35, 2017.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from skimage import measure
from torch import Tensor

from mpamatch.errors import InputError

MEANS = ("mdice", "miou", "foreground_dice", "foreground_iou")
OBJECT_SCORES = ("f1", "dice", "hausdorff")
OBJECT_SUMS = (
    *("true_positive", "false_positive", "false_negative"),
    *("area_true", "dice_true", "hausdorff_true"),  # Dice and Hausdorff times the object's area
    *("area_pred", "dice_pred", "hausdorff_pred"),
)


class SegmentationMetrics:
    """Collects predicted and true labels image by image and computes every score at the end.

    The state is three tensors on the CPU, each a sum over images, so that `merge` (or an all-reduce) of what several
    ranks have seen gives what one rank would have.

    Args:
        class_names: of the C classes, the background first.
        objects: whether to compute the object-level scores too. An object is what has one number or, without numbers,
            an 8-connected region of one class other than 0; touching glands are one object then.
        ignore: the true label of pixels that do not count.
        smallest_object: regions of fewer pixels are dropped from both labels (none by default, as in the challenge).

    Attributes:
        confusion: (C, C) int64, true classes in rows.
        mean_sums: (2, 4) float64: the sums of the per-image MEANS, and the number of images in each.
        object_sums: (9,) float64, in the order of OBJECT_SUMS.

    Raises:
        InputError: there are fewer than two classes, or the ignore index is one of them.
    """

    def __init__(self, class_names: Sequence[str], objects: bool, ignore: int = 255, smallest_object: int = 0) -> None:
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
        numbers_pred: NDArray[np.integer] | None = None,  # (H, W) of predicted objects, 0 for none; None: regions
        numbers_true: NDArray[np.integer] | None = None,  # (H, W) of true objects
    ) -> None:
        """Adds an image. Pixels whose true label is ignore count nowhere, whatever was predicted there.

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
                    f"{name} label: has index {int(wrong[0])}, classes are 0..{len(self.class_names) - 1}."
                )

        classes = len(self.class_names)
        pairs = torch.bincount(true[counted] * classes + pred[counted], minlength=classes**2)
        confusion = pairs.view(classes, classes)
        means = mean_scores(*class_scores(confusion))
        self.confusion += confusion
        self.mean_sums += torch.stack([means.nan_to_num(), means.isfinite()])
        if self.objects:
            for index in range(1, classes):
                found = [
                    find_objects((label == index).numpy(), self.smallest_object, numbers)
                    for label, numbers in ((true, numbers_true), (pred, numbers_pred))
                ]
                self.object_sums += object_sums(*found)

    def merge(self, other: "SegmentationMetrics") -> None:
        """Adds the images that `other` has seen. Raises InputError if its settings differ."""
        for field in ("class_names", "objects", "ignore", "smallest_object"):
            mine, theirs = getattr(self, field), getattr(other, field)
            if mine != theirs:
                raise InputError(f"metrics with {field} {mine} and {theirs}: only equal ones can be merged.")
        self.confusion += other.confusion
        self.mean_sums += other.mean_sums
        self.object_sums += other.object_sums

    def compute(self) -> dict[str, Any]:
        """Computes all scores, ready for JSON: fractions 0 to 1, and Hausdorff distances in pixels.

        - "dice", "iou": by class name. "mdice", "miou": means over classes. "foreground_dice", "foreground_iou": means
          without class 0, the background. All from one confusion matrix pooled over images.
        - "per_image": the four means taken in each image over the classes in its truth or prediction, then averaged
          over images. An image of nothing but ignored pixels does not count, and one that is background in truth and
          prediction does not count for the foreground.
        - "objects", if asked for: "f1", "dice", "hausdorff" with the objects of all images pooled (one count of
          detections, one total area to weigh by), as of `object_scores`.

        - "precision", "recall": by class name, from the same matrix: which part of what was predicted as the class is
          of it, and which part of it was found.

        A class that is in no truth and no prediction is None and enters no mean; a mean over nothing is None.
        """
        dice, iou = class_scores(self.confusion)
        precision, recall = class_errors(self.confusion)
        per_image = self.mean_sums[0] / self.mean_sums[1]
        scores: dict[str, Any] = by_name(MEANS, mean_scores(dice, iou))
        scores["dice"] = by_name(self.class_names, dice)
        scores["iou"] = by_name(self.class_names, iou)
        scores["precision"] = by_name(self.class_names, precision)
        scores["recall"] = by_name(self.class_names, recall)
        scores["per_image"] = by_name(MEANS, per_image)
        if self.objects:
            scores["objects"] = object_scores(self.object_sums)
        return scores


def class_scores(
    confusion: Tensor,  # (…, C, C), true classes in rows
) -> tuple[Tensor, Tensor]:  # (…, C), (…, C) float64
    """Computes Dice and IoU of each class; NaN for one that is neither in the truth nor in the prediction."""
    hit = confusion.diagonal(dim1=-2, dim2=-1).double()
    total = confusion.sum(dim=-2).double() + confusion.sum(dim=-1)
    return 2 * hit / total, hit / (total - hit)


def class_errors(
    confusion: Tensor,  # (…, C, C), true classes in rows
) -> tuple[Tensor, Tensor]:  # (…, C), (…, C) float64
    """Computes precision and recall of each class; NaN for one that was never predicted, or is in no truth."""
    hit = confusion.diagonal(dim1=-2, dim2=-1).double()
    return hit / confusion.sum(dim=-2), hit / confusion.sum(dim=-1)


def mean_scores(
    dice: Tensor,  # (…, C) float64, NaN for a class that is in neither label
    iou: Tensor,  # (…, C)
) -> Tensor:  # (…, 4) in the order of MEANS
    """Averages over the classes whose scores are numbers, with and without class 0; NaN over none."""
    means = [dice.nanmean(-1), iou.nanmean(-1), dice[..., 1:].nanmean(-1), iou[..., 1:].nanmean(-1)]
    return torch.stack(means, dim=-1)


def by_name(
    names: Sequence[str],  # N
    values: Tensor,  # (N,)
) -> dict[str, float | None]:
    """Builds a dictionary for JSON, with None for NaN, which JSON lacks."""
    return {name: None if math.isnan(value) else value for name, value in zip(names, values.tolist(), strict=True)}


@dataclass(frozen=True)
class Objects:
    """The objects of one class in one label, numbered 1 to N; the arrays hold object n at n − 1."""

    numbered: NDArray[np.int64]  # (H, W), 0 elsewhere
    area: NDArray[np.int64]  # (N,)
    boxes: NDArray[np.int64]  # (N, 4) top, left, bottom, right; the last two exclusive


def find_objects(
    mask: NDArray[np.bool_],  # (H, W)
    smallest: int,
    numbers: NDArray[np.integer] | None = None,  # (H, W)
) -> Objects:
    """Finds the objects in `mask` of at least `smallest` pixels: what has one of `numbers`, or 8-connected regions."""
    if numbers is None:
        numbered = measure.label(mask, connectivity=2)
    else:
        numbered = np.where(mask, numbers, 0).astype(np.int64)
    kept = np.bincount(numbered.ravel()) >= max(1, smallest)
    kept[0] = False
    numbered = (np.cumsum(kept) * kept)[numbered]
    boxes = [(rows.start, columns.start, rows.stop, columns.stop) for rows, columns in ndimage.find_objects(numbered)]
    return Objects(numbered, np.bincount(numbered.ravel())[1:], np.array(boxes, dtype=np.int64).reshape(-1, 4))


def object_sums(true: Objects, pred: Objects) -> Tensor:  # (9,) float64 in the order of OBJECT_SUMS
    """Computes what the objects of one class in one image add to the sums that `object_scores` reads."""
    n_true, n_pred = len(true.area), len(pred.area)
    pairs = np.bincount((true.numbered * (n_pred + 1) + pred.numbered).ravel(), minlength=(n_true + 1) * (n_pred + 1))
    shared = pairs.reshape(n_true + 1, n_pred + 1)[1:, 1:]
    sums = [*detections(true, shared), *direction(true, pred, shared), *direction(pred, true, shared.T)]
    return torch.tensor(sums, dtype=torch.float64)


def detections(
    true: Objects,
    shared: NDArray[np.int64],  # (N, M) pixels of true object n and predicted object m
) -> tuple[int, int, int]:
    """Counts true positives, false positives and false negatives.

    A predicted object belongs to the true object that it shares most pixels with, and is a true positive if these are
    at least half of the true object. A true object without a true positive is a false negative.
    """
    partner = partners(shared.T)
    detected = {m: n for m, n in enumerate(partner) if n is not None and 2 * shared[n, m] >= true.area[n]}
    return len(detected), len(partner) - len(detected), len(true.area) - len(set(detected.values()))


def direction(
    objects: Objects,  # N
    others: Objects,  # M
    shared: NDArray[np.int64],  # (N, M) pixels of object n and other m
) -> tuple[float, float, float]:
    """Sums area, area · Dice and area · Hausdorff distance over `objects`.

    Both scores are between an object and the other that it shares most pixels with. An object that shares none has
    Dice 0 and the smallest Hausdorff distance to any other; if there is no other, it is the diagonal of the image.
    """
    area = dice = distance = 0.0
    for n, m in enumerate(partners(shared)):
        area += objects.area[n]
        if m is None:
            distance += objects.area[n] * nearest(objects, n, others)
        else:
            dice += objects.area[n] * 2 * shared[n, m] / (objects.area[n] + others.area[m])
            distance += objects.area[n] * hausdorff(objects, n, others, m)
    return area, dice, distance


def partners(
    shared: NDArray[np.int64],  # (N, M) pixels of object n and other m
) -> list[int | None]:  # N
    """Finds the other that each object shares most pixels with (the first of equals); None if it shares none."""
    return [int(row.argmax()) if row.any() else None for row in shared]


def nearest(objects: Objects, n: int, others: Objects) -> float:
    """Computes the smallest Hausdorff distance of object n to any other; the image's diagonal if there is none.

    The sides of two bounding boxes are at most the Hausdorff distance apart, so others are tried in the order of this
    bound, and most need not be.
    """
    best = math.hypot(*objects.numbered.shape) if len(others.area) == 0 else math.inf
    bounds = np.abs(others.boxes - objects.boxes[n]).max(axis=1, initial=0)
    for m in np.argsort(bounds):
        if bounds[m] >= best:
            break
        best = min(best, hausdorff(objects, n, others, m))
    return best


def hausdorff(objects: Objects, n: int, others: Objects, m: int) -> float:
    """Computes the largest distance, in pixels, from a pixel of either object to the nearest pixel of the other."""
    top, left = np.minimum(objects.boxes[n], others.boxes[m])[:2]
    bottom, right = np.maximum(objects.boxes[n], others.boxes[m])[2:]
    one = objects.numbered[top:bottom, left:right] == n + 1
    other = others.numbered[top:bottom, left:right] == m + 1
    to_one = ndimage.distance_transform_edt(~one)
    to_other = ndimage.distance_transform_edt(~other)
    return float(max(to_one[other].max(), to_other[one].max()))


def object_scores(
    sums: Tensor,  # (9,) float64 in the order of OBJECT_SUMS
) -> dict[str, float | None]:
    """Computes the three scores of the GlaS challenge; None for all without any object, true or predicted.

    - "f1": 2 TP / (2 TP + FP + FN), see `detections`.
    - "dice", "hausdorff": half the mean over true objects and half the mean over predicted ones, weighted by area, see
      `direction`. If only one side has objects, its mean is the score.
    """
    return by_name(OBJECT_SCORES, object_means(sums))


def object_means(
    sums: Tensor,  # (…, 9) float64 in the order of OBJECT_SUMS
) -> Tensor:  # (…, 3) in the order of OBJECT_SCORES
    """Computes `object_scores` of one or more sums; NaN without any object."""
    hit, extra, missed = sums[..., :3].unbind(-1)
    area, dice, distance = sums[..., 3:].unflatten(-1, (2, 3)).unbind(-1)  # each (…, 2): true, predicted
    f1 = 2 * hit / (2 * hit + extra + missed)
    return torch.stack([f1, (dice / area).nanmean(-1), (distance / area).nanmean(-1)], dim=-1)
