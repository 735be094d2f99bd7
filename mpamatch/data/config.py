"""What a run trains on and how crops are made."""

from dataclasses import dataclass, field

from mpamatch.errors import unknown

FEEDS = ("auto", "torchvision", "dali")


@dataclass
class DataConfig:
    """The data of a run.

    Attributes:
        root: a prepared data set (a folder that `mpamatch prepare` wrote).
        split: name of a file in its splits/; may be left out where one exists.
        crop: side of the square crops, in pixels of the scaled image.
        scale: factor on every image's size before anything else, in training and prediction (0.5 halves it).
        zoom: range of the random magnification of a crop, log-uniform.
        augment: histology (stain, blur, JPEG, flips and quarter turns) or natural (UniMatch's recipe).
        weak_colour: colour augmentation of weak and labelled views as a share of the strong one's, 0 to 1.
        batch: labelled images per step, over all ranks.
        unlabelled_batch: unlabelled images per step, over all ranks.
        feed: what decodes and augments: torchvision, dali, or auto (dali for a GPU where it is installed).
        on_error: stop at an image that cannot be used, or skip it: its slot takes the next that can.
        workers: processes (torchvision) or threads (dali, one at least) that decode and augment ahead; 0 does it in
            the training process.
        cache_mb: decoded images kept in memory, per process, in MiB.
    """

    root: str = ""
    split: str | None = None
    crop: int = 256
    scale: float = 1.0
    zoom: list[float] = field(default_factory=lambda: [0.8, 1.25])
    augment: str = "histology"
    weak_colour: float = 0.0
    batch: int = 4
    unlabelled_batch: int = 4
    feed: str = "auto"
    on_error: str = "stop"
    workers: int = 1
    cache_mb: int = 1024

    def __post_init__(self) -> None:
        for name, choices in (("feed", FEEDS), ("on_error", ("stop", "skip"))):
            if getattr(self, name) not in choices:
                raise unknown(f"data.{name}", str(getattr(self, name)), choices)
