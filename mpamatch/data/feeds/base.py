"""What every feed shares: which image stands in which slot, and what happens where it cannot be read."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from mpamatch.batch import Batch
from mpamatch.data.config import DataConfig
from mpamatch.data.draws import LABELLED, DrawSettings, SampleDraw, draw, image_index
from mpamatch.data.prepared import Prepared
from mpamatch.errors import InputError

T = TypeVar("T")


class Feed(ABC):
    """feed[step] → Batch of this rank's slots of the global batch. Pure: the same step, the same batch.

    Attributes:
        labelled, unlabelled: names of the images, in the order that draws count in.
        skipped: name → why, of the images that could not be read so far (data.on_error: skip). A slot whose image
            cannot be read takes the next of the list that can, so which image it shows depends on nothing but the
            seed, the step, the slot and the files.

    Raises InputError where the configuration does not fit the data or the ranks.
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
        image_labels: bool = False,  # Labelled.present instead of labels: no mask is read
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
        self.rank, self.ranks, self.device = rank, ranks, device or torch.device("cpu")
        self.skipped: dict[str, str] = {}

    @abstractmethod
    def __getitem__(self, step: int) -> Batch:
        """The batch of one step. Raises InputError naming a file that cannot be used."""

    @abstractmethod
    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of steps start … stop−1, made ahead of their use. Raises InputError as feed[step] does."""

    def has_label(self, stream: int) -> bool:
        """Whether the masks of a stream are read."""
        return stream == LABELLED and not self.image_labels

    def present(self, names: Sequence[str]) -> Tensor | None:  # (B, C) f32
        """The image-level labels of the images of a batch, for Labelled.present."""
        if not self.image_labels:
            return None
        return torch.stack([torch.from_numpy(self.prepared.present_row(name)) for name in names])

    def names(self, stream: int) -> tuple[str, ...]:
        return self.labelled if stream == LABELLED else self.unlabelled

    def slots(self, stream: int) -> range:
        """This rank's share of the global batch."""
        share = self._global_batch(stream) // self.ranks
        return range(self.rank * share, (self.rank + 1) * share)

    def draw(self, stream: int, step: int, slot: int) -> SampleDraw:
        return draw(self.settings, self.seed, stream, step, slot)

    def readable(self, stream: int, step: int, slot: int, read: Callable[[str], T]) -> tuple[str, T]:
        """Name and content of the image of a slot, `read` raising InputError where it is unfit.

        Raises InputError: on_error stop, that very error; skip, where no image of the list can be read.
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
        """Notes an image that cannot be used, or raises `error` where on_error says stop."""
        if self.config.on_error == "stop":
            raise error
        self.skipped[name] = str(error)

    def _global_batch(self, stream: int) -> int:
        return self.config.batch if stream == LABELLED else self.config.unlabelled_batch


def _check(config: DataConfig, ranks: int) -> None:
    for name, size in (("data.batch", config.batch), ("data.unlabelled_batch", config.unlabelled_batch)):
        if size % ranks:
            raise InputError(f"{name}: {size} images do not divide over {ranks} ranks; choose a multiple of {ranks}.")
