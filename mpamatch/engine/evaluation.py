"""Scores of a model on one part of a prepared set."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mpamatch.data.cache import Images
from mpamatch.data.prepared import PARTS, load_prepared
from mpamatch.engine import world
from mpamatch.engine.checkpoints import load_segmenter
from mpamatch.engine.config import load_saved
from mpamatch.engine.metrics import SegmentationMetrics
from mpamatch.errors import InputError, unknown
from mpamatch.files import write_json
from mpamatch.inference.segmenter import Segmenter

TOGETHER = 8  # images whose windows share batches


def evaluate(segmenter: Segmenter, images: Images, part: str, *, objects: bool) -> dict[str, Any]:
    """Scores over the labelled images of `part`, as `SegmentationMetrics.compute` gives them: fractions 0..1.

    The ranks share the chunks of TOGETHER images, and their sums are added in the order of the chunks, so that any
    number of ranks gives the same numbers to the last bit.
    Raises InputError for an unknown part or one without labels.
    """
    prepared = images.prepared
    if part not in PARTS:
        raise unknown("part", part, PARTS)
    names = prepared.labelled(part)
    if not names:
        raise InputError(f"{prepared.root}: the {part} part has no labelled image.")
    chunks = list(_chunks(names))
    mine = {index: _of_chunk(segmenter, images, chunks[index], objects) for index in world.mine(range(len(chunks)))}
    by_chunk = {index: found for of_rank in world.gather(mine) for index, found in of_rank.items()}
    metrics = SegmentationMetrics(prepared.class_names, objects=objects)
    for index in range(len(chunks)):
        metrics.merge(by_chunk[index])
    return {"part": part, "images": len(names), **metrics.compute()}


def _of_chunk(segmenter: Segmenter, images: Images, names: Sequence[str], objects: bool) -> SegmentationMetrics:
    metrics = SegmentationMetrics(images.prepared.class_names, objects=objects)
    pairs = [images.labelled(name) for name in names]
    for probability, (_, label) in zip(segmenter.probabilities([image for image, _ in pairs]), pairs, strict=True):
        metrics.update(probability.max(0).indices, label)
    return metrics


def evaluate_run(run: Path, data: Path | None, part: str, device: str) -> dict[str, Any]:
    """Evaluates the best checkpoint of a run and writes RUN/evaluation-PART.json.

    `data` None stands for the data set it was trained on. Raises InputError where the classes differ.
    """
    config = load_saved(run / "config.yaml")
    if world.started() > 1:
        world.join(device, patience=world.LONG)
    segmenter = load_segmenter(run, device)
    prepared = load_prepared(data or Path(config.data.root))
    if prepared.class_names != segmenter.class_names:
        raise InputError(
            f"{prepared.root}: its classes ({', '.join(prepared.class_names)}) are not those of the run "
            f"({', '.join(segmenter.class_names)})."
        )
    scores = evaluate(segmenter, Images(prepared, cache_mb=0), part, objects=True)
    if world.rank() == 0:
        write_json(run / f"evaluation-{part}.json", {"run": str(run), "data": str(prepared.root), **scores})
    return scores


def _chunks(names: Sequence[str]) -> Iterator[Sequence[str]]:
    yield from (names[start : start + TOGETHER] for start in range(0, len(names), TOGETHER))
