"""Evaluation of a model on one part of a prepared set."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mpamatch import ranks
from mpamatch.data.cache import ImageCache
from mpamatch.data.prepared import PARTS, Prepared, load_prepared
from mpamatch.engine.build import moved
from mpamatch.engine.calibration import Confidence
from mpamatch.engine.config import Config, load_saved
from mpamatch.engine.metrics import SegmentationMetrics
from mpamatch.errors import InputError, unknown
from mpamatch.files import write_json
from mpamatch.inference.checkpoint import load_segmenter
from mpamatch.inference.objects import label_and_objects
from mpamatch.inference.segmenter import Segmenter

TOGETHER = 8  # images whose windows share batches


@dataclass(frozen=True)
class ImageScores:
    """What one image adds to the scores.

    Attributes:
        name: of the image.
        metrics: of this image alone.
        confidence: its pixels by the probability of the predicted class; None unless it was asked for.
    """

    name: str
    metrics: SegmentationMetrics
    confidence: Confidence | None


def evaluate(
    segmenter: Segmenter, images: ImageCache, part: str, *, objects: bool, known: bool = False
) -> dict[str, Any]:
    """Scores the predictions for the labelled images of a part.

    Args:
        segmenter: predicts.
        images: of the prepared set.
        part: train, validation or test.
        objects: whether to compute the object-level scores too.
        known: whether the network is told each image's image-level label; only if `takes_image_labels` says so.

    Returns:
        "part", "images" (how many) and the scores of `SegmentationMetrics.compute`: fractions 0 to 1.

    Raises:
        InputError: the part is unknown or has no labelled image.
    """
    return pooled(part, score_images(segmenter, images, part, objects=objects, known=known))


def pooled(part: str, scored: Sequence[ImageScores]) -> dict[str, Any]:
    """Computes the scores of all images of a part together, as `evaluate` returns them."""
    first = scored[0].metrics
    metrics = SegmentationMetrics(first.class_names, objects=first.objects)
    for one in scored:
        metrics.merge(one.metrics)
    return {"part": part, "images": len(scored), **metrics.compute()}


def score_images(
    segmenter: Segmenter,
    images: ImageCache,
    part: str,
    *,
    objects: bool,
    known: bool = False,
    edges: Sequence[float] | None = None,
) -> list[ImageScores]:
    """Scores each labelled image of a part by itself.

    The ranks share chunks of TOGETHER images, and all get the scores in the order of the images, so that any number of
    ranks gives the same numbers to the last bit.

    Args:
        segmenter: predicts.
        images: of the prepared set.
        part: train, validation or test.
        objects: whether to compute the object-level scores too.
        known: as of `evaluate`.
        edges: of the bins that pixels are counted in by confidence, as of `Confidence`; None: they are not counted.

    Raises:
        InputError: the part is unknown or has no labelled image.
    """
    prepared = images.prepared
    if part not in PARTS:
        raise unknown("part", part, PARTS)
    names = prepared.labelled(part)
    if not names:
        others = [f"--part {one}" for one in PARTS if prepared.labelled(one)]
        instead = f"; {' and '.join(others)} can be scored" if others else ""
        raise InputError(f"{prepared.root}: the {part} part has no labelled image{instead}.")
    chunks = list(_chunks(names))
    mine = {
        index: _of_chunk(segmenter, images, chunks[index], objects, known, edges)
        for index in ranks.mine(range(len(chunks)))
    }
    by_chunk = {index: found for of_rank in ranks.gather(mine) for index, found in of_rank.items()}
    return [one for index in range(len(chunks)) for one in by_chunk[index]]


def score_part(
    segmenter: Segmenter, images: ImageCache, part: str, edges: Sequence[float] | None = None
) -> tuple[dict[str, Any], list[ImageScores]]:
    """Scores a part with object-level scores, and each of its images; arguments and errors are `score_images`'s.

    Under "with_image_labels" stand the scores of the network told each image's image-level label, if it takes these and
    all images have one.
    """
    scored = score_images(segmenter, images, part, objects=True, edges=edges)
    scores = pooled(part, scored)
    if takes_image_labels(segmenter, images.prepared, part):
        told = evaluate(segmenter, images, part, objects=False, known=True)
        scores["with_image_labels"] = {name: value for name, value in told.items() if name not in ("part", "images")}
    return scores, scored


def takes_image_labels(segmenter: Segmenter, prepared: Prepared, part: str) -> bool:
    """Tells whether the network takes image-level labels and every labelled image of the part has one."""
    return segmenter.takes_image_labels and set(prepared.labelled(part)) <= set(prepared.present)


def _of_chunk(
    segmenter: Segmenter,
    images: ImageCache,
    names: Sequence[str],
    objects: bool,
    known: bool,
    edges: Sequence[float] | None,
) -> list[ImageScores]:
    """Scores a chunk of images, whose windows share batches unless image-level labels differ from image to image."""
    pairs = [images.labelled(name) for name in names]
    borders: Iterable[Tensor | None] = [None] * len(names)
    if known:
        shown = (images.prepared.present_row(name) for name in names)
        found = [segmenter.probabilities(image, one) for one, (image, _) in zip(shown, pairs, strict=True)]
    elif objects and segmenter.tells_objects_apart:
        found, borders = zip(*segmenter.with_borders(image for image, _ in pairs), strict=True)  # type: ignore[assignment]
    else:
        found = segmenter.probabilities([image for image, _ in pairs])
    scored = []
    for name, probability, border, (_, label) in zip(names, found, borders, pairs, strict=True):
        confidence, predicted = probability.max(0)
        metrics = SegmentationMetrics(images.prepared.class_names, objects=objects)
        numbers = None if border is None else label_and_objects(probability, border, segmenter.settings.scale)[1]
        has_numbers = objects and images.prepared.instances_path(name) is not None
        metrics.update(predicted, label, numbers, images.instances(name, label) if has_numbers else None)
        counts = None if edges is None else Confidence.count(edges, confidence, predicted, label)
        scored.append(ImageScores(name, metrics, counts))
    return scored


def open_run(run: Path, data: Path | None, device: str) -> tuple[Config, Segmenter, Prepared]:
    """Loads a run to be scored: its configuration, its best checkpoint and its data.

    Args:
        run: the run folder.
        data: a prepared set; None: the one that the run was trained on.
        device: auto, cpu or cuda.

    Raises:
        InputError: no such run, no trained model, no data, or classes other than the run's.
    """
    config = moved(run, load_saved(run / "config.yaml"), data)
    if ranks.started() > 1:
        ranks.join(device, patience=ranks.LONG)
    segmenter = load_segmenter(run, device)
    prepared = load_prepared(Path(config.data.root))
    if prepared.class_names != segmenter.class_names:
        raise InputError(
            f"{prepared.root}: its classes ({', '.join(prepared.class_names)}) are not those of the run "
            f"({', '.join(segmenter.class_names)})."
        )
    return config, segmenter, prepared


def part_of(prepared: Prepared, part: str | None) -> str:
    """Returns the part to score: `part`, or the test part, or if that has no labelled image the validation part."""
    if part is not None:
        return part
    return "validation" if prepared.labelled("validation") and not prepared.labelled("test") else "test"


def remarks_on_part(part: str, asked: str | None) -> list[str]:
    """Says that another part than the test part was scored, if nobody asked for it."""
    if asked is not None or part == "test":
        return []
    return [
        f"no image of the test part is labelled, so the {part} part was scored, by which the checkpoint was chosen: "
        "expect less of new patients, and label some for the test part."
    ]


def evaluate_run(
    run: Path, data: Path | None, part: str | None, device: str, show: Callable[[dict[str, Any]], None] | None = None
) -> dict[str, Any]:
    """Evaluates the best checkpoint of a run and writes RUN/evaluation-PART.json.

    Args:
        run: the run folder.
        data: a prepared set; None: the one that the run was trained on.
        part: train, validation or test; None: as `part_of` says.
        device: auto, cpu or cuda.
        show: is called with the scores before they are written, as the run may lie where nobody can write.

    Returns:
        The scores as of `evaluate`, with object-level ones; under "with_image_labels" those of the network told each
        image's image-level label, if it takes these and all images have one.

    Raises:
        InputError: no such run, no trained model, a part that cannot be scored, or classes other than the run's.
    """
    _, segmenter, prepared = open_run(run, data, device)
    images, part = ImageCache(prepared, cache_mb=0), part_of(prepared, part)
    scores, _ = score_part(segmenter, images, part)
    if show is not None:
        show(scores)
    if ranks.rank() == 0:
        write_json(run / f"evaluation-{part}.json", {"run": str(run), "data": str(prepared.root), **scores})
    return scores


def _chunks(names: Sequence[str]) -> Iterator[Sequence[str]]:
    yield from (names[start : start + TOGETHER] for start in range(0, len(names), TOGETHER))
