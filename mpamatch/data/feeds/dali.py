"""The DALI feed: the draws of every feed, applied by native threads on the CPU or by a GPU."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nvidia.dali import types
from torch import Tensor

from mpamatch.ahead import ahead
from mpamatch.batch import Batch, Labelled, Unlabelled
from mpamatch.data.augment import nearest_pixels
from mpamatch.data.cache import ImageCache
from mpamatch.data.draws import LABELLED, UNLABELLED, SampleDraw
from mpamatch.data.feeds.base import Feed
from mpamatch.data.feeds.graph import build_pipeline, colour_arguments, inputs_of, turn_arguments
from mpamatch.errors import InputError
from mpamatch.images import IGNORE, plain_size

AHEAD = 2  # runs under way in DALI, besides the batches that a thread has ready
TOGETHER = 16  # images of a list in a run, if a step has fewer: a run costs DALI about as much as two images
NUMPY = {types.UINT8: np.uint8, types.BOOL: np.bool_, types.INT32: np.int32, types.FLOAT: np.float32}
RAGGED = ("path", "mask_path", "raw", "raw_mask")
NO_PATH = {"path": np.zeros(1, np.uint8), "mask_path": np.zeros(1, np.uint8)}
NOT_RAW = {"is_raw": False, "raw": np.zeros((1, 1, 3), np.uint8), "raw_mask": np.zeros((1, 1, 1), np.uint8)}
UNSEEN, BY_DALI, BY_READER = 0, 1, 2  # what decodes an image

Given = dict[str, Any]  # input of the graph → value for one slot


class DaliFeed(Feed):
    """Makes batches on `device` by data.workers threads (one at least), and by the GPU if the device is one.

    DALI decodes 8-bit RGB PNG and JPEG, on the CPU to the values that the ordinary readers return. These decode
    whatever else they accept, and the PNGs that are kept in memory.
    """

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.reader, self.kept = ImageCache(self.prepared, 0), ImageCache(self.prepared, self.config.cache_mb)
        changed = self.config.weak_colour > 0
        strong = {f"strong{number}": True for number in range(1, self.strong_views + 1)}
        self.views = {LABELLED: {"weak": changed}}
        if self.strong_views:
            self.views[UNLABELLED] = {"weak": changed, **strong}
        self.places = {name: place for names in (self.labelled, self.unlabelled) for place, name in enumerate(names)}
        self.sizes = {stream: np.zeros((len(self.names(stream)), 2), dtype=np.int32) for stream in self.views}
        self.decoder = {stream: np.zeros(len(self.names(stream)), dtype=np.uint8) for stream in self.views}
        self.steps_per_run = max(1, TOGETHER // max(len(self.slots(stream)) for stream in self.views))
        self.single: _Pipelines | None = None

    def __getitem__(self, step: int) -> Batch:
        self.single = self.single or _Pipelines(self)
        return next(self._run(self.single, step, step + 1))

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        made = self._run(_Pipelines(self), start, stop)
        return ahead(lambda _: next(made), range(start, stop), threads=1)

    def _run(self, pipelines: "_Pipelines", start: int, stop: int) -> Iterator[Batch]:
        """Keeps AHEAD runs in the pipelines and yields the batches of the steps, in order.

        If DALI fails, the steps of that run are repeated, each in a run of its own, to find the file.
        """
        under_way: deque[list[_StepInputs] | InputError] = deque()
        planned = done = alone = start  # steps before `alone` have a run each
        while done < stop:
            while planned < stop and len(under_way) < AHEAD:
                room = 1 if planned < alone else self.steps_per_run
                under_way += self._send(pipelines, range(planned, min(planned + room, stop)))
                planned = min(planned + room, stop)
            sent = under_way.popleft()
            if isinstance(sent, InputError):
                raise sent
            try:
                made = pipelines.take()
            except RuntimeError as error:  # of DALI: it says which operator, not which file, nor which step
                if len(sent) == 1:
                    self._find_unreadable(sent[0], error)
                pipelines.restart()
                under_way.clear()
                planned, alone = done, done + len(sent)
                continue
            for place, one in enumerate(sent):
                done += 1
                yield self._batch(one, _part(made, place, len(sent)))

    def _send(self, pipelines: "_Pipelines", steps: range) -> "list[list[_StepInputs] | InputError]":
        """Starts a run of these steps; if one has bad input, of those before it, and returns the error for its turn."""
        sent: list[_StepInputs] = []
        failed: list[list[_StepInputs] | InputError] = []
        for step in steps:
            try:
                sent.append(self._plan(step))
            except InputError as error:
                failed.append(error)
                break
        if not sent:
            return failed
        pipelines.send({stream: [given for one in sent for given in one.given[stream]] for stream in self.views})
        return [sent, *failed]

    def _plan(self, step: int) -> "_StepInputs":
        """Draws a step and prepares the inputs of its slots. Raises InputError if an image cannot be used."""
        sent = _StepInputs({}, {}, {})
        for stream in self.views:
            drawn = [self.draw(stream, step, slot) for slot in self.slots(stream)]
            found = [
                self.readable(stream, step, slot, partial(self._given, stream, one))
                for slot, one in zip(self.slots(stream), drawn, strict=True)
            ]
            sent.drawn[stream] = drawn
            sent.names[stream] = [name for name, _ in found]
            sent.given[stream] = [given for _, given in found]
        return sent

    def _find_unreadable(self, sent: "_StepInputs", error: RuntimeError) -> None:
        """Finds why DALI failed at a step: a file that cannot be used, or one that only the ordinary reader decodes.

        Raises InputError, with the file, if on_error is stop, and `error` if no file is the cause.
        """
        before = len(self.skipped)
        unasked = []
        for stream, names in sent.names.items():
            for name in names:
                try:
                    self.read_labelled(self.reader, name) if self.has_label(stream) else self.reader.image(name)
                except InputError as unfit:
                    self.refuse(name, unfit)
                if self.decoder[stream][self.places[name]] == BY_DALI:
                    unasked.append((stream, self.places[name]))
        if len(self.skipped) == before:
            if not unasked:
                raise error
            for stream, place in unasked:
                self.decoder[stream][place] = BY_READER

    def _batch(self, sent: "_StepInputs", made: dict[int, list[Tensor]]) -> Batch:
        """Makes the batch of a step from its tensors."""
        image, *label = made[LABELLED]
        planes = label[0] if label else image.new_full((*image[:, 0].shape, 1), IGNORE, dtype=torch.uint8)
        known, *border = (plane.contiguous() for plane in planes.unbind(-1))
        labelled = Labelled(image, known, self.present(sent.names[LABELLED]), *border)
        if not self.strong_views:
            return Batch(labelled, None)
        weak, *strong = made[UNLABELLED]
        drawn, second = sent.drawn[UNLABELLED], self.strong_views == 2
        box1, box2 = (torch.tensor([one.boxes[view] for one in drawn], dtype=torch.int32) for view in range(2))
        noise = torch.from_numpy(np.stack([one.channel_noise for one in drawn])) if self.settings.channels else None
        return Batch(
            labelled,
            Unlabelled(
                weak,
                strong[0],
                strong[1] if second else None,
                valid_maps(sent.given[UNLABELLED], self.config.crop),
                box1,
                box2 if second else None,
                noise,
            ),
        )

    def _given(self, stream: int, drawn: SampleDraw, name: str) -> Given:
        """Makes the graph's inputs for a slot. Raises InputError if the image or its label cannot be used."""
        place, geometry = self.places[name], drawn.geometry
        if self.decoder[stream][place] == UNSEEN:
            self._look(stream, name)
        height, width = self.sizes[stream][place].tolist()
        top, left, side = geometry.region(height, width, self.config.crop, self.config.scale)
        inside = min(side, height - top), min(side, width - left)
        given = {
            "start": (top, left),
            "inside": inside,
            "side": (side, side),
            "padded": min(inside) < side,
            "rows_from": 2 * inside[0] - side,
            "columns_from": 2 * inside[1] - side,
            **turn_arguments(geometry),
        }
        for (view, changed), colour in zip(self.views[stream].items(), (drawn.weak, *drawn.strong), strict=False):
            if changed:
                arguments = colour_arguments(self.config.augment, colour)
                given |= {f"{view}.{key}": value for key, value in arguments.items()}
        paths: dict[str, Path | None] = {"path": self.prepared.image_path(name)}
        if self.has_label(stream):
            paths["mask_path"] = self.prepared.mask_path(name)
        twice = side > 2 * min(inside)  # the reflection would itself have to be reflected
        by_reader = twice or self.decoder[stream][place] == BY_READER or None in paths.values()
        if by_reader or self._images(name).keeps(name, 3 * height * width):
            return given | self._decoded(stream, name, given, twice)
        return given | NOT_RAW | {key: np.frombuffer(str(path).encode(), np.uint8) for key, path in paths.items()}

    def _decoded(self, stream: int, name: str, given: Given, twice: bool) -> Given:
        """Decodes the region by the ordinary reader; with its reflection if that is more than the graph can do."""
        if self.has_label(stream):
            image, label = self.read_labelled(self._images(name), name)
            label = label.reshape(*label.shape[:2], -1)  # (H, W, 1), with the border (H, W, 2)
        else:
            image, label = self._images(name).image(name), None
        (top, left), (height, width), (side, _) = given["start"], given["inside"], given["side"]
        here = np.s_[top : top + height, left : left + width]
        raw, found = image[here], NO_PATH | {"is_raw": True}
        if twice:
            raw = np.pad(raw, ((0, side - height), (0, side - width), (0, 0)), mode="symmetric")
            found |= {"rows_from": side, "columns_from": side}
        return found | {"raw": raw} | ({} if label is None else {"raw_mask": label[here]})

    def _look(self, stream: int, name: str) -> None:
        """Notes size and decoder of an image at its first use and checks its label in full."""
        size = plain_size(self.prepared.image_path(name), "RGB")
        plain = size is not None
        if self.has_label(stream):
            self.read_labelled(self._images(name), name)
            mask = self.prepared.mask_path(name)
            # a border is computed, not decoded
            plain = plain and not self.border_width and mask is not None and plain_size(mask, "L") is not None
        place = self.places[name]
        self.sizes[stream][place] = size or self._images(name).image(name).shape[:2]
        self.decoder[stream][place] = BY_DALI if plain else BY_READER

    def _images(self, name: str) -> ImageCache:
        """Chooses the reader of an image: a JPEG is not kept, as a GPU's decoder decodes it to other values."""
        return self.kept if name.endswith(".png") else self.reader


@dataclass
class _StepInputs:
    """What went into the pipelines for a step, by stream and slot."""

    names: dict[int, list[str]]
    drawn: dict[int, list[SampleDraw]]
    given: dict[int, list[Given]]


class _Pipelines:
    """A pipeline for each list of images; runs end in the order in which they were sent."""

    def __init__(self, feed: DaliFeed):
        self.feed = feed
        self.restart()

    def restart(self) -> None:
        """Builds new pipelines: after an error DALI's cannot be used any more."""
        feed, config = self.feed, self.feed.config
        gpu = feed.device.type == "cuda"
        self.of_stream = {
            stream: build_pipeline(
                batch=len(feed.slots(stream)) * feed.steps_per_run,
                threads=max(1, config.workers),
                device_id=(feed.device.index or 0) if gpu else None,
                crop=config.crop,
                augment=config.augment,
                labelled=feed.has_label(stream),
                views=views,
                mean=feed.mean,
                std=feed.std,
            )
            for stream, views in feed.views.items()
        }

    def send(self, given: dict[int, list[Given]]) -> None:
        """Starts a run of every pipeline; `given`: stream → inputs by slot."""
        for stream, pipeline in self.of_stream.items():
            inputs = inputs_of(self.feed.has_label(stream), self.feed.views[stream], self.feed.config.augment)
            for name, (kind, _) in inputs.items():
                values = [one[name] for one in given[stream]]
                if name in RAGGED:
                    pipeline.feed_input(name, [np.ascontiguousarray(value) for value in values])
                else:
                    pipeline.feed_input(name, np.array(values, dtype=NUMPY[kind], order="C"))
            pipeline.schedule_run()

    def take(self) -> dict[int, list[Tensor]]:
        """Waits for the oldest run and returns its tensors, views first.

        They own their memory, as the executor allocates each output anew. Raises RuntimeError if DALI failed.
        """
        return {
            stream: [torch.from_dlpack(one.as_tensor()) for one in pipeline.outputs()]
            for stream, pipeline in self.of_stream.items()
        }


def _part(made: dict[int, list[Tensor]], place: int, parts: int) -> dict[int, list[Tensor]]:
    """Selects the tensors of the step at `place` in a run of `parts` steps."""
    return {stream: [tensor.chunk(parts)[place] for tensor in tensors] for stream, tensors in made.items()}


def valid_maps(given: list[Given], crop: int) -> Tensor:  # (B, crop, crop) bool
    """Marks where crops show the image and no reflection, by the pixels that a label would be taken from."""
    valid = np.ones((len(given), crop, crop), dtype=np.bool_)
    for out, one in zip(valid, given, strict=True):
        if one["padded"]:
            rows, columns = (nearest_pixels(one["side"][0], crop) < inside for inside in one["inside"])
            if one["transposed"]:
                rows, columns = columns, rows
            rows = rows[::-1] if one["upended"] else rows
            out[:] = rows[:, None] & (columns[::-1] if one["mirrored"] else columns)
    return torch.from_numpy(valid)
