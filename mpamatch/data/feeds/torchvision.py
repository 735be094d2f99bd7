"""The torchvision feed: reads files and applies draws on the CPU."""

import gc
import multiprocessing
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from mpamatch.batch import Batch, Labelled, Unlabelled
from mpamatch.data.augment import cut, recolour
from mpamatch.data.cache import ImageCache
from mpamatch.data.draws import LABELLED, UNLABELLED, ColourDraw
from mpamatch.data.feeds.base import Feed
from mpamatch.errors import InputError, Note
from mpamatch.signals import heed_parent_alone

NO_ROOM = (
    "shared memory (/dev/shm) has no room for a batch, so batches go through a pipe, which is slower; "
    "docker run --shm-size 1g gives more."
)
NO_SEMAPHORES = (
    "data.workers: this machine has no shared memory (/dev/shm) that can be written, which worker processes need, so "
    "batches are made between the steps, which is slower."
)


class TorchvisionFeed(Feed):
    """Makes batches on the CPU, ahead of their use in data.workers processes."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.images = ImageCache(self.prepared, self.config.cache_mb)
        self.offset, self.spread = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))

    def __getitem__(self, step: int) -> Batch:
        names, images, labels = zip(*(self._labelled(step, slot) for slot in self.slots(LABELLED)), strict=True)
        label, *border = torch.stack(labels).unbind(1) if self.border_width else (torch.stack(labels),)
        labelled = Labelled(torch.stack(images), label, self.present(names), *border)
        if not self.strong_views:
            return Batch(labelled, None)
        samples = [self._unlabelled(step, slot) for slot in self.slots(UNLABELLED)]
        columns = [None if column[0] is None else torch.stack(column) for column in zip(*samples, strict=True)]
        return Batch(labelled, Unlabelled(*columns))  # type: ignore[arg-type]

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        # A worker is a copy of this process with one thread. If it freed a native object whose threads it lacks (a
        # pipeline of DALI), it would wait for them for ever: free here what this process no longer needs.
        gc.collect()
        workers = self.config.workers if _has_semaphores() else 0
        if workers < self.config.workers:
            warnings.warn(NO_SEMAPHORES, Note, stacklevel=2)
        loader = DataLoader(
            _Careful(self),
            batch_size=None,
            sampler=range(start, stop),
            num_workers=workers,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_begin_worker if workers else None,
        )
        told = False
        for batch, skipped in loader:
            self.skipped |= skipped
            if isinstance(batch, InputError):
                raise batch
            if isinstance(batch, _Piped):
                if not told:
                    warnings.warn(NO_ROOM, Note, stacklevel=2)
                    told = True
                batch = batch.unpacked()
            yield batch

    def _labelled(self, step: int, slot: int) -> tuple[str, Tensor, Tensor]:
        drawn = self.draw(LABELLED, step, slot)
        if self.has_label(LABELLED):
            read = partial(self.read_labelled, self.images)
            name, (image, label) = self.readable(LABELLED, step, slot, read)
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

    def __getitem__(self, step: int) -> "tuple[Batch | _Piped | InputError, dict[str, str]]":
        try:
            batch: Batch | _Piped | InputError = self.feed[step]
        except InputError as error:
            batch = error
        if isinstance(batch, Batch) and get_worker_info() is not None:
            try:
                _each_tensor(batch, Tensor.share_memory_)
            except RuntimeError:  # in the queue's own thread it would be printed there, and the batch be lost
                batch = _Piped(batch)
        return batch, dict(self.feed.skipped)


class _Piped:
    """A batch that travels through the pipe between processes, as there is no room for it in shared memory."""

    def __init__(self, batch: Batch):
        self.arrays = _each_tensor(batch, Tensor.numpy)

    def unpacked(self) -> Batch:
        """Makes the batch again."""
        return _each_tensor(self.arrays, torch.from_numpy)


def _each_tensor(batch: Any, change: Callable[[Any], Any]) -> Any:
    """Makes a batch of what `change` makes of each of its tensors."""
    if isinstance(batch, tuple):
        return type(batch)(*(_each_tensor(part, change) for part in batch))
    return None if batch is None else change(batch)


def _has_semaphores() -> bool:
    """Tells whether worker processes can have queues."""
    try:
        multiprocessing.Semaphore()
    except OSError:
        return False
    return True


def _begin_worker(_: int) -> None:
    torch.set_num_threads(1)
    heed_parent_alone()
