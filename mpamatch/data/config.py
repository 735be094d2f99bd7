"""Settings of the data: what a run trains on and how crops are made."""

from dataclasses import field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Len

from mpamatch.errors import InputError
from mpamatch.settings import Count, Positive, Share, Whole, settings


@settings("data")
class DataConfig:
    """Settings of the data of a run.

    Attributes:
        root: a prepared data set (a folder that `mpamatch prepare` wrote).
        split: name of a file in its splits/; may be left out if there is one at most.
        crop: side of the square crops, in pixels of the scaled image.
        scale: factor on every image's size before anything else, in training and prediction (0.5 halves it).
        zoom: range of the random magnification of a crop, log-uniform.
        augment: histology (stain, blur, JPEG, flips and quarter turns) or natural (UniMatch's recipe).
        weak_colour: colour augmentation of weak and labelled views as a share of the strong one's, 0 to 1.
        batch: labelled images per step, over all ranks.
        unlabelled_batch: unlabelled images per step, over all ranks.
        feed: what decodes and augments: torchvision, dali, or auto (dali for a GPU if it is installed).
        on_error: stop at an image that cannot be used, or skip it: the next one that can be used takes its slot.
        workers: processes (torchvision) or threads (dali, one at least) that decode and augment ahead; 0 does it in
            the training process.
        cache_mb: decoded images kept in memory, per process, in MiB.
    """

    root: str = ""
    split: str | None = None
    crop: Annotated[int, Ge(16)] = 256
    scale: Annotated[float, Gt(0), Le(8)] = 1.0
    zoom: Annotated[list[Positive], Len(2, 2)] = field(default_factory=lambda: [0.8, 1.25])
    augment: Literal["histology", "natural"] = "histology"
    weak_colour: Share = 0.0
    batch: Count = 4
    unlabelled_batch: Count = 4
    feed: Literal["auto", "torchvision", "dali"] = "auto"
    on_error: Literal["stop", "skip"] = "stop"
    workers: Whole = 1
    cache_mb: Whole = 1024

    def __post_init__(self) -> None:
        if self.zoom[0] > self.zoom[1]:
            raise InputError(f"data.zoom: expected 0 < low <= high, got {self.zoom}.")
