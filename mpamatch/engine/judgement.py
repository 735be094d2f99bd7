"""The judgement of a run: its scores with intervals over groups, calibration, and what differs between runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpamatch.data.cache import ImageCache
from mpamatch.engine.account import account_of
from mpamatch.engine.calibration import (
    BINS,
    THRESHOLDS,
    above,
    bins,
    edges_with,
    expected_calibration_error,
    reliability,
)
from mpamatch.engine.evaluation import ImageScores, open_run, part_of, score_part
from mpamatch.engine.intervals import DRAWS, FEW, Statistic, bootstrap
from mpamatch.engine.metrics import MEANS, OBJECT_SCORES, by_name, class_errors, class_scores, mean_scores, object_means
from mpamatch.errors import InputError
from mpamatch.inference.segmenter import Segmenter
from mpamatch.inference.tiles import most_probable

PER_CLASS = ("dice", "iou", "precision", "recall")
Interval = tuple[float, float] | None


@dataclass(frozen=True)
class Judged:
    """A run that was scored.

    Attributes:
        summary: all that the report says of it, ready for JSON.
        scored: each image of the part.
        groups: of these images.
        segmenter: its model.
        images: the set.
    """

    summary: dict[str, Any]
    scored: list[ImageScores]
    groups: list[str]
    segmenter: Segmenter
    images: ImageCache

    @property
    def names(self) -> list[str]:
        """The names of the images scored."""
        return [one.name for one in self.scored]


def judge(run: Path, data: Path | None, part: str | None, device: str) -> Judged:
    """Scores the best checkpoint of a run as `mpamatch evaluate` does, with intervals and calibration.

    Args:
        run: the run folder.
        data: a prepared set; None: the one that the run was trained on.
        part: train, validation or test; None: as `part_of` says.
        device: auto, cpu or cuda.

    Raises:
        InputError: as `open_run` and `evaluate` do.
    """
    config, segmenter, prepared = open_run(run, data, device)
    images, part = ImageCache(prepared, cache_mb=0), part_of(prepared, part)
    account = account_of(run, prepared, config)
    own = account["threshold"] if isinstance(account["threshold"], float) else None
    scores, scored = score_part(segmenter, images, part, edges_with(own))
    groups = [prepared.groups[one.name] for one in scored]
    summary = {
        **account,
        "part": part,
        "scored_groups": len(set(groups)),
        "scores": scores,
        "intervals": {"draws": DRAWS, "few": len(set(groups)) < FEW, **intervals(scored, groups)},
        "confusion": sum(one.metrics.confusion for one in scored).tolist(),  # type: ignore[union-attr]
        "calibration": calibration(scored, groups, own),
        "images": by_image(scored, groups),
    }
    return Judged(summary, scored, groups, segmenter, images)


def intervals(scored: Sequence[ImageScores], groups: Sequence[str]) -> dict[str, Any]:
    """Computes the 95 % intervals of what `SegmentationMetrics.compute` gives, under the same names; None: there is
    none.
    """
    names = scored[0].metrics.class_names
    confusion = _stacked(scored, lambda one: one.confusion.flatten())
    columns = bootstrap(confusion, groups, _of_confusion(len(names)))
    found: dict[str, Any] = dict(zip(MEANS, columns[: len(MEANS)], strict=True))
    for number, kind in enumerate(PER_CLASS):
        first = len(MEANS) + number * len(names)
        found[kind] = dict(zip(names, columns[first : first + len(names)], strict=True))
    means = _stacked(scored, lambda one: one.mean_sums.flatten())
    found["per_image"] = dict(zip(MEANS, bootstrap(means, groups, _ratio(len(MEANS))), strict=True))
    objects = _stacked(scored, lambda one: one.object_sums)
    of_objects = bootstrap(objects, groups, lambda sums: object_means(torch.from_numpy(sums)).numpy())
    found["objects"] = dict(zip(OBJECT_SCORES, of_objects, strict=True))
    return found


def calibration(scored: Sequence[ImageScores], groups: Sequence[str], own: float | None) -> dict[str, Any]:
    """Computes reliability, ECE and, for each threshold, the share and accuracy of the pixels at least that sure."""
    counts = [one.confidence for one in scored if one.confidence is not None]
    edges, sums = counts[0].edges, np.stack([one.sums() for one in counts])
    total = sums.sum(0)
    pixels, accuracy, confidence = reliability(edges, total)
    thresholds = sorted({*THRESHOLDS, *(() if own is None else (own,))})
    at = [above(edges, total, threshold) for threshold in thresholds]
    ends = bootstrap(sums, groups, lambda drawn: np.concatenate([above(edges, drawn, t) for t in thresholds], -1))
    return {
        "bins": BINS,
        "reliability": [
            {"from": low, "to": high, "pixels": int(n), "accuracy": _number(a), "confidence": _number(c)}
            for (low, high), n, a, c in zip(bins(), pixels, accuracy, confidence, strict=True)
        ],
        "ece": float(expected_calibration_error(edges, total)),
        "ece_interval": bootstrap(sums, groups, lambda drawn: expected_calibration_error(edges, drawn)[:, None])[0],
        "own_threshold": own,
        "thresholds": [
            {
                "threshold": threshold,
                "share": _number(share),
                "accuracy": _number(right),
                "share_interval": ends[2 * number],
                "accuracy_interval": ends[2 * number + 1],
            }
            for number, (threshold, (share, right)) in enumerate(zip(thresholds, at, strict=True))
        ],
    }


def by_image(scored: Sequence[ImageScores], groups: Sequence[str]) -> list[dict[str, Any]]:
    """Lists image, group and the four means of each image, ready for JSON."""
    rows = []
    for one, group in zip(scored, groups, strict=True):
        sums, counted = one.metrics.mean_sums
        rows.append({"image": one.name, "group": group, **by_name(MEANS, sums / counted)})
    return rows


def compared(runs: Sequence[Judged]) -> list[dict[str, Any]]:
    """Compares every run with the first one, image by image, with intervals over the same draws of groups.

    Raises InputError if the runs were scored on other images or classes.
    """
    first = runs[0]
    for other in runs[1:]:
        for what, mine, theirs in (
            ("images", first.names, other.names),
            ("classes", first.summary["classes"], other.summary["classes"]),
        ):
            if mine != theirs:
                raise InputError(
                    f"{other.summary['name']}: was scored on other {what} than {first.summary['name']}, so they cannot "
                    "be compared; name one set for all by --data."
                )
    return [_difference(first, other) for other in runs[1:]]


def _difference(first: Judged, other: Judged) -> dict[str, Any]:
    """Computes `other` minus `first`: of the pooled means, and of the means over images."""
    classes = len(first.summary["classes"])
    mine, theirs = (_stacked(one.scored, lambda m: m.confusion.flatten()) for one in (first, other))
    of_confusion = _of_confusion(classes)

    def pooled_means(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        before, after = np.split(sums, 2, axis=-1)
        return (of_confusion(after) - of_confusion(before))[:, : len(MEANS)]

    both = np.concatenate([mine, theirs], axis=1)
    values = [[_of_image(one, name) for name in MEANS] for judged in (first, other) for one in judged.scored]
    change = np.array(values[len(values) // 2 :]) - np.array(values[: len(values) // 2])  # (N, 4), NaN: in neither
    sums = np.concatenate([np.nan_to_num(change), np.isfinite(change)], axis=1)
    ratio = _ratio(len(MEANS))
    return {
        "run": other.summary["name"],
        "minus": first.summary["name"],
        "groups": len(set(first.groups)),
        "pooled": _with_ends(pooled_means(both.sum(0, keepdims=True))[0], bootstrap(both, first.groups, pooled_means)),
        "per_image": _with_ends(ratio(sums.sum(0, keepdims=True))[0], bootstrap(sums, first.groups, ratio)),
        "better_images": int((change[:, 0] > 0).sum()),
        "worse_images": int((change[:, 0] < 0).sum()),
        "by_image": [_number(value) for value in change[:, 0]],
    }


def predicted_label(judged: Judged, name: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """Returns image (H, W, 3), label and predicted label (H, W) of an image."""
    image, label = judged.images.labelled(name)
    return image, label, most_probable(judged.segmenter.probabilities(image)).cpu().numpy()


def examples(images: Sequence[Mapping[str, Any]], each: int) -> dict[str, list[int]]:
    """Chooses the best, the median and the worst images by their mDice: word → places in `images`, best first.

    An image is chosen once: fewer than 3·each images give fewer.
    """
    order = sorted(
        (place for place, one in enumerate(images) if one["mdice"] is not None),
        key=lambda place: (-images[place]["mdice"], images[place]["image"]),
    )
    each = max(1, min(each, len(order) // 3))
    middle = (len(order) - each) // 2
    chosen = {"best": order[:each], "median": order[middle : middle + each], "worst": order[len(order) - each :]}
    taken: set[int] = set()
    for word, places in chosen.items():
        chosen[word] = [place for place in places if place not in taken]
        taken |= set(places)
    return {word: places for word, places in chosen.items() if places}


def _of_confusion(classes: int) -> Statistic:
    """Makes the statistic of flat confusion matrices: MEANS, then each of PER_CLASS for every class."""

    def statistic(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        confusion = torch.from_numpy(sums).view(-1, classes, classes)
        dice, iou = class_scores(confusion)
        return torch.cat([mean_scores(dice, iou), dice, iou, *class_errors(confusion)], dim=-1).numpy()

    return statistic


def _ratio(width: int) -> Statistic:
    """Makes the statistic of `width` sums followed by as many counts: the means."""

    def statistic(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore", divide="ignore"):
            return sums[:, :width] / sums[:, width:]

    return statistic


def _stacked(scored: Sequence[ImageScores], take: Callable[[Any], Tensor]) -> NDArray[np.float64]:
    return np.stack([take(one.metrics).double().numpy() for one in scored])


def _of_image(one: ImageScores, name: str) -> float:
    sums, counted = one.metrics.mean_sums[:, MEANS.index(name)].tolist()
    return sums / counted if counted else float("nan")


def _with_ends(values: NDArray[np.float64], ends: Sequence[Interval]) -> dict[str, Any]:
    return {
        name: {"difference": _number(value), "interval": end}
        for name, value, end in zip(MEANS, values, ends, strict=True)
    }


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
