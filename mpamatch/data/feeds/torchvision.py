"""The torchvision feed: reads files and applies draws on the CPU."""

import gc
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mpamatch.batch import Batch, Labelled, Unlabelled
from mpamatch.data.augment import cut, recolour
from mpamatch.data.cache import ImageCache
from mpamatch.data.draws import LABELLED, UNLABELLED, ColourDraw
from mpamatch.data.feeds.base import Feed
from mpamatch.errors import InputError


class TorchvisionFeed(Feed):
    """Makes batches on the CPU, ahead of their use in data.workers processes."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.images = ImageCache(self.prepared, self.config.cache_mb)
        self.offset, self.spread = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))

    def __getitem__(self, step: int) -> Batch:
        names, images, labels = zip(*(self._labelled(step, slot) for slot in self.slots(LABELLED)), strict=True)
        labelled = Labelled(torch.stack(images), torch.stack(labels), self.present(names))
        if not self.strong_views:
            return Batch(labelled, None)
        samples = [self._unlabelled(step, slot) for slot in self.slots(UNLABELLED)]
        columns = [None if column[0] is None else torch.stack(column) for column in zip(*samples, strict=True)]
        return Batch(labelled, Unlabelled(*columns))  # type: ignore[arg-type]

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        # A worker is a copy of this process with one thread. If it freed a native object whose threads it lacks (a
        # pipeline of DALI), it would wait for them for ever: free here what this process no longer needs.
        gc.collect()
        loader = DataLoader(
            _Careful(self),
            batch_size=None,
            sampler=range(start, stop),
            num_workers=self.config.workers,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_one_thread if self.config.workers else None,
        )
        for batch, skipped in loader:
            self.skipped |= skipped
            if isinstance(batch, InputError):
                raise batch
            yield batch

    def _labelled(self, step: int, slot: int) -> tuple[str, Tensor, Tensor]:
        drawn = self.draw(LABELLED, step, slot)
        if self.has_label(LABELLED):
            name, (image, label) = self.readable(LABELLED, step, slot, self.images.labelled)
        else:
            name, image = self.readable(LABELLED, step, slot, self.images.image)
            label = None
        crop, label_crop, _ = cut(image, label, drawn.geometry, self.config.crop, self.config.scale)
        return name, self._view(crop, drawn.weak), label_crop

    def _unlabelled(self, step: int, slot: int) -> tuple[Tensor | None, ...]:
        drawn = self.draw(UNLABELLED, step, slot)
        _, image = self.readable(UNLABELLED, step, slot, self.images.image)
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

    def _view(self, crop: Tensor, colour: ColourDraw) -> Tensor:
        return (recolour(crop, colour) - self.offset) / self.spread


class _Careful(Dataset):
    """Returns from a worker process as values what would be lost there: skipped images and an InputError.

    The worker's copy of the feed notes what it skips, and an InputError raised in it would arrive with that process's
    traceback in its sentence.
    """

    def __init__(self, feed: TorchvisionFeed):
        self.feed = feed

    def __getitem__(self, step: int) -> tuple[Batch | InputError, dict[str, str]]:
        try:
            batch: Batch | InputError = self.feed[step]
        except InputError as error:
            batch = error
        return batch, dict(self.feed.skipped)


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
