"""The torchvision feed: files → draws applied on the CPU → Batch."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mpamatch.batch import Batch, Labelled, Unlabelled
from mpamatch.data.augment import cut, recolour
from mpamatch.data.cache import Images
from mpamatch.data.config import DataConfig
from mpamatch.data.draws import LABELLED, UNLABELLED, Colour, DrawSettings, SampleDraw, draw, image_index
from mpamatch.data.prepared import Prepared
from mpamatch.errors import InputError


class TorchvisionFeed(Dataset):
    """feed[step] → Batch of this rank's slots of the global batch, on the CPU. Pure: the same step, the same batch."""

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
        mean: tuple[float, ...],
        std: tuple[float, ...],
        rank: int = 0,
        ranks: int = 1,
    ):
        for name, size in (("data.batch", config.batch), ("data.unlabelled_batch", config.unlabelled_batch)):
            if size < 1 or size % ranks:
                raise InputError(
                    f"{name}: {size} images do not divide over {ranks} ranks; choose a multiple of {ranks}."
                )
        if config.workers < 0 or config.cache_mb < 0:
            found = f"{config.workers} and {config.cache_mb}"
            raise InputError(f"data.workers, data.cache_mb: expected at least 0 each, got {found}.")
        if len(config.zoom) != 2:
            raise InputError(f"data.zoom: expected two numbers, got {config.zoom}.")
        if not 0 < config.scale <= 8 or config.crop < 16:
            raise InputError(
                f"data.scale, data.crop: expected 0 < scale <= 8 and crop >= 16, got {config.scale} and {config.crop}."
            )
        if strong_views and not unlabelled:
            raise InputError(
                f"{prepared.root}: no unlabelled training image; a split with fewer labelled ones leaves some "
                "(mpamatch split), or take --method.name supervised."
            )
        zoom = (config.zoom[0], config.zoom[1])
        self.settings = DrawSettings(config.augment, config.crop, zoom, config.weak_colour, channels)
        self.images, self.config, self.seed = Images(prepared, config.cache_mb), config, seed
        self.labelled, self.unlabelled, self.strong_views = labelled, unlabelled, strong_views
        self.mean, self.std = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]
        self.rank, self.ranks = rank, ranks

    def __getitem__(self, step: int) -> Batch:
        labelled = [self._labelled(step, slot) for slot in self._slots(self.config.batch)]
        image, label = (torch.stack(column) for column in zip(*labelled, strict=True))
        if not self.strong_views:
            return Batch(Labelled(image, label), None)
        samples = [self._unlabelled(step, slot) for slot in self._slots(self.config.unlabelled_batch)]
        columns = [None if column[0] is None else torch.stack(column) for column in zip(*samples, strict=True)]
        return Batch(Labelled(image, label), Unlabelled(*columns))  # type: ignore[arg-type]

    def _slots(self, batch: int) -> range:
        share = batch // self.ranks
        return range(self.rank * share, (self.rank + 1) * share)

    def _labelled(self, step: int, slot: int) -> tuple[Tensor, Tensor]:
        index = image_index(self.seed, LABELLED, step * self.config.batch + slot, len(self.labelled))
        drawn = draw(self.settings, self.seed, LABELLED, step, slot)
        image, label = self.images.labelled(self.labelled[index])
        crop, label_crop, _ = cut(image, label, drawn.geometry, self.config.crop, self.config.scale)
        return self._view(crop, drawn.weak), label_crop

    def _unlabelled(self, step: int, slot: int) -> tuple[Tensor | None, ...]:
        index = image_index(self.seed, UNLABELLED, step * self.config.unlabelled_batch + slot, len(self.unlabelled))
        drawn: SampleDraw = draw(self.settings, self.seed, UNLABELLED, step, slot)
        image = self.images.image(self.unlabelled[index])
        crop, _, valid = cut(image, None, drawn.geometry, self.config.crop, self.config.scale)
        box1, box2 = (torch.tensor(box, dtype=torch.int32) for box in drawn.boxes)
        second = self.strong_views == 2
        return (
            self._view(crop, drawn.weak),
            self._view(crop, drawn.strong[0]),
            self._view(crop, drawn.strong[1]) if second else None,
            valid,
            box1,
            box2 if second else None,
            torch.from_numpy(drawn.channel_noise) if self.settings.channels else None,
        )

    def _view(self, crop: Tensor, colour: Colour) -> Tensor:
        return (recolour(crop, colour) - self.mean) / self.std


def batches(feed: TorchvisionFeed, start: int, stop: int, *, workers: int, pin: bool) -> Iterator[Batch]:
    """The batches of steps start … stop−1; with workers they are made ahead in other processes.

    Raises InputError as the feed does, whichever process met it.
    """
    loader = DataLoader(
        _Careful(feed),
        batch_size=None,
        sampler=range(start, stop),
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=_one_thread if workers else None,
    )
    for batch in loader:
        if isinstance(batch, InputError):
            raise batch
        yield batch


class _Careful(Dataset):
    """Hands an InputError over as a value: raised in a worker it would arrive with that process's traceback in it."""

    def __init__(self, feed: TorchvisionFeed):
        self.feed = feed

    def __getitem__(self, step: int) -> Batch | InputError:
        try:
            return self.feed[step]
        except InputError as error:
            return error


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
