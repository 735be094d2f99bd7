"""The base of every feed: which image stands in which slot, and what happens if it cannot be read."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpamatch.batch import Batch
from mpamatch.data.cache import ImageCache
from mpamatch.data.config import DataConfig
from mpamatch.data.draws import LABELLED, DrawSettings, SampleDraw, draw, image_index
from mpamatch.data.prepared import Prepared
from mpamatch.errors import InputError

T = TypeVar("T")


class Feed(ABC):
    """Makes batches: feed[step] is the batch of this rank's slots in the global batch, the same for the same step.

    Attributes:
        labelled: names of the images, in the order that draws count in.
        unlabelled: the same for the unlabelled ones.
        skipped: name → why, of the images that could not be used so far (data.on_error: skip). The next image of the
            list that can be used takes the slot, so the image of a slot depends on seed, step, slot and files alone.

    Raises:
        InputError: the configuration does not fit the data or the ranks.
    """

    def __init__(
        self,
        prepared: Prepared,
        labelled: tuple[str, ...],
        unlabelled: tuple[str, ...],
        config: DataConfig,
        *,
        seed: int,
        strong_views: int,  # 0: no unlabelled images at all
        channels: int,  # of channel_noise; 0: none
        mean: tuple[float, ...],  # of RGB in [0, 1], as the encoder was trained
        std: tuple[float, ...],
        rank: int = 0,
        ranks: int = 1,
        image_labels: bool = False,  # image-level labels in place of labels: no mask is read
        border_width: float = 0,  # of the borders of objects, in pixels of the scaled image; 0: none are wanted
        device: torch.device | None = None,  # that the batches are for; None: the CPU
    ):
        _check(config, ranks)
        if strong_views and not unlabelled:
            raise InputError(
                f"{prepared.root}: no unlabelled training image; a split with fewer labelled ones leaves some "
                "(mpamatch split), or take --method.name supervised."
            )
        zoom = (config.zoom[0], config.zoom[1])
        self.settings = DrawSettings(config.augment, config.crop, zoom, config.weak_colour, channels)
        self.prepared, self.config, self.seed = prepared, config, seed
        self.labelled, self.unlabelled, self.strong_views = labelled, unlabelled, strong_views
        self.mean, self.std = mean, std
        self.image_labels = image_labels
        self.border_width = border_width / config.scale  # in pixels of the image
        if border_width:
            check_instances(prepared, labelled)
        self.rank, self.ranks, self.device = rank, ranks, device or torch.device("cpu")
        self.skipped: dict[str, str] = {}

    @abstractmethod
    def __getitem__(self, step: int) -> Batch:
        """Makes the batch of a step. Raises InputError, with the file, if an image cannot be used."""

    @abstractmethod
    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Yields the batches of steps start to stop − 1, made ahead of their use. Raises as feed[step] does."""

    def has_label(self, stream: int) -> bool:
        """Tells whether the masks of a stream are read."""
        return stream == LABELLED and not self.image_labels

    def read_labelled(self, images: ImageCache, name: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Reads an image (H, W, 3) and what is cut with it: the label (H, W), or label and border (H, W, 2).

        Raises InputError if the image cannot be used.
        """
        if not self.border_width:
            return images.labelled(name)
        image, label, border = images.bordered(name, self.border_width)
        return image, np.stack([label, border], axis=-1)

    def present(self, names: Sequence[str]) -> Tensor | None:  # (B, C) f32
        """Builds the image-level labels of a batch, for Labelled.present; None if the method learns from labels."""
        if not self.image_labels:
            return None
        return torch.stack([torch.from_numpy(self.prepared.present_row(name)) for name in names])

    def names(self, stream: int) -> tuple[str, ...]:
        """Returns the images of a stream."""
        return self.labelled if stream == LABELLED else self.unlabelled

    def slots(self, stream: int) -> range:
        """Returns this rank's slots of the global batch."""
        share = self._global_batch(stream) // self.ranks
        return range(self.rank * share, (self.rank + 1) * share)

    def draw(self, stream: int, step: int, slot: int) -> SampleDraw:
        """Draws the sample of a slot."""
        return draw(self.settings, self.seed, stream, step, slot)

    def readable(self, stream: int, step: int, slot: int, read: Callable[[str], T]) -> tuple[str, T]:
        """Reads the image of a slot, or the next that can be used; returns its name and what `read` returned.

        `read` raises InputError for an image that cannot be used. With on_error stop that error is raised; with skip
        an InputError is raised if no image of the list can be used.
        """
        names = self.names(stream)
        first = image_index(self.seed, stream, step * self._global_batch(stream) + slot, len(names))
        for offset in range(len(names)):
            name = names[(first + offset) % len(names)]
            if name in self.skipped:
                continue
            try:
                return name, read(name)
            except InputError as error:
                self.refuse(name, error)
        kind = "labelled" if stream == LABELLED else "unlabelled"
        raise InputError(
            f"{self.prepared.root}: none of its {len(names)} {kind} images can be used (mpamatch check says why); "
            f"{self.skipped[names[first]]}"
        )

    def refuse(self, name: str, error: InputError) -> None:
        """Notes an image that cannot be used, or raises `error` if on_error is stop."""
        if self.config.on_error == "stop":
            raise error
        self.skipped[name] = str(error)

    def _global_batch(self, stream: int) -> int:
        return self.config.batch if stream == LABELLED else self.config.unlabelled_batch


def check_instances(prepared: Prepared, labelled: Sequence[str]) -> None:
    """Raises InputError if a labelled image has no numbers of objects, which a border is learned from."""
    without = [name for name in labelled if prepared.instances_path(name) is None]
    if without:
        raise InputError(
            f"model.boundary: {prepared.root} has no numbers of objects (instances/) for {len(without)} of "
            f"{len(labelled)} labelled images, {without[0]} the first: prepare it from masks that number them "
            "(--instances for a folder), or leave model.boundary off."
        )


def _check(config: DataConfig, ranks: int) -> None:
    """Raises InputError if a batch does not divide over the ranks."""
    for name, size in (("data.batch", config.batch), ("data.unlabelled_batch", config.unlabelled_batch)):
        if size % ranks:
            raise InputError(f"{name}: {size} images do not divide over {ranks} ranks; choose a multiple of {ranks}.")
