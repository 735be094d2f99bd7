"""Sliding windows over images of any size, blended so that no border of a window shows."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from mpamatch.ahead import ahead
from mpamatch.errors import InputError

# (B, 3, window, window) -> logits (B, C, window, window), or these and those of the border (B, 1, window, window)
Model = Callable[[Tensor], Tensor | tuple[Tensor, Tensor]]


class Window(NamedTuple):
    """A window of an image: where it starts, and its share in the result along each side."""

    top: int
    left: int
    row_share: Tensor  # (window,)
    column_share: Tensor  # (window,)


class Canvas:
    """The probabilities of an image, summed up window by window.

    Raises InputError if the image is not (3, H, W).
    """

    def __init__(self, image: Tensor, window: int, stride: int):
        if image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
            raise InputError(f"image of shape {tuple(image.shape)}: must be (3, H, W) with at least one pixel.")
        self.image, self.padded, self.side = image, pad_to_window(image, window), window
        self.windows = grid(self.padded, window, stride)
        self.missing = len(self.windows)
        self.total: Tensor | None = None  # (C, H, W) once the number of classes is known
        self.feature: Tensor | None = None  # (D,) the sum over windows, if the model gives any

    def cut(self, at: Window) -> Tensor:  # (3, window, window)
        """Cuts a window out of the padded image."""
        return self.padded[:, at.top : at.top + self.side, at.left : at.left + self.side]

    def add(self, at: Window, probability: Tensor, feature: Tensor | None = None) -> None:  # (C, window, window), (D,)
        """Adds the probabilities of a window, weighted by its share, and its feature."""
        if self.total is None:
            size = (len(probability), *self.padded.shape[1:])
            self.total = torch.zeros(size, dtype=torch.float32, device=self.padded.device)
        add_window(self.total, at, probability)
        if feature is not None:
            self.feature = feature if self.feature is None else self.feature + feature
        self.missing -= 1

    def result(self) -> Tensor:  # (C, H, W) float32
        """Returns the probabilities once no window is missing, cropped to the image."""
        assert self.total is not None
        return crop_from_window(self.total, self.image)


def add_window(
    total: Tensor,  # (C, H, W)
    at: Window,
    probability: Tensor,  # (C, window, window)
) -> None:
    """Adds the probabilities of a window to those of an image, weighted by its share."""
    share = at.row_share[:, None] * at.column_share
    place = total[:, at.top : at.top + len(at.row_share), at.left : at.left + len(at.column_share)]
    place += probability.to(total.device) * share


def origins(length: int, window: int, stride: int) -> list[int]:
    """Places windows along one side so that they cover [0, length); returns where they start.

    The first starts at 0, the last ends with the side, neighbours are at most `stride` apart and evenly spread. A side
    no longer than the window gets the one origin 0 (`Canvas` pads it). So every window has its full size: no model was
    trained on thin strips.

    Raises InputError unless length ≥ 1 and 1 ≤ stride ≤ window.
    """
    if length < 1 or not 1 <= stride <= window:
        raise InputError(
            f"windows of {window} at stride {stride} over {length} pixels: "
            "the length must be at least 1 and the stride between 1 and the window."
        )
    room = max(0, length - window)
    steps = max(1, math.ceil(room / stride))
    return sorted({index * room // steps for index in range(steps + 1)})


Looked = tuple[Tensor, Tensor | None]  # probabilities (B, C, window, window) and features (B, D), if any


def look_each(
    look: Callable[[Tensor], Looked],  # at windows (B, 3, window, window)
    images: Iterable[Tensor],  # each (3, H, W) floating point, of any size
    *,
    window: int,
    overlap: float,
    batch: int,
    threads: int = 1,
) -> Iterator[Canvas]:
    """Looks at the windows of each image, in order, and yields its canvas as soon as its last window is done.

    The model sees full windows alone. Batches take the windows of one image after the other, so every batch but the
    last is full, an image of the window's own size costs one place in a batch, and only images with windows in the
    batches under way are held. Probabilities of overlapping windows are averaged with Hann weights. An image smaller
    than the window is padded to it by reflection (its border is repeated if it is too small to reflect), and the
    result is cropped back.

    A result lies on its image's device and is summed up in place: (C, H, W) floats exist once. The model is called in
    inference mode and may move windows to another device.

    Args:
        look: runs the model, as `probabilities` does.
        images: one after the other.
        window: side of the window, in pixels.
        overlap: the least share of a side that neighbouring windows have in common, 0 <= overlap < 1.
        batch: the most windows in one call of `look`.
        threads: batches that run at a time, each in a thread with its share of torch's threads; the last batch is
            divided among them.

    Yields:
        The canvas of each image; its `result` are (C, H, W) float32 probabilities.

    Raises:
        InputError: overlap, window or batch is out of range (before an image is taken), or an image is not (3, H, W).
    """
    if not 0 <= overlap < 1:
        raise InputError(f"overlap {overlap}: must be at least 0 and below 1.")
    if window < 1 or batch < 1:
        raise InputError(f"window {window} and batch {batch}: both must be at least 1.")
    stride = max(1, int(window * (1 - overlap)))
    return _in_batches(look, (Canvas(image, window, stride) for image in images), batch, threads)


WindowBatch = list[tuple[Canvas, Window]]


def _in_batches(
    look: Callable[[Tensor], Looked], canvases: Iterable[Canvas], batch: int, threads: int
) -> Iterator[Canvas]:
    """Looks at the windows of all canvases and yields each once it is complete."""
    begun: deque[Canvas] = deque()

    def run(windows: WindowBatch) -> tuple[WindowBatch, Looked]:
        device = windows[0][0].padded.device  # images may lie on two: the windows go to that of the first
        cut = torch.stack([canvas.cut(at).to(device) for canvas, at in windows])
        return windows, look(cut)

    batches = _batches(canvases, begun, batch, threads)
    for windows, (found, features) in in_threads(run, batches, threads):
        for number, (canvas, at) in enumerate(windows):
            canvas.add(at, found[number], None if features is None else features[number])
        while begun and not begun[0].missing:
            yield begun.popleft()


def _batches(canvases: Iterable[Canvas], begun: deque[Canvas], batch: int, threads: int) -> Iterator[WindowBatch]:
    """Cuts the windows of all images into batches and notes each image in `begun`; the last batch is cut by threads."""
    waiting: WindowBatch = []
    for canvas in canvases:
        begun.append(canvas)
        for at in canvas.windows:
            if len(waiting) == batch:
                yield waiting
                waiting = []
            waiting.append((canvas, at))
    part = -(-len(waiting) // threads)
    yield from (waiting[start : start + part] for start in range(0, len(waiting), part or 1))


Given = TypeVar("Given")
Ran = TypeVar("Ran")


def in_threads(
    run: Callable[[Given], Ran], batches: Iterator[Given], threads: int, *, always: bool = False
) -> Iterator[Ran]:
    """Runs `threads` batches at a time, in order, each with its share of torch's threads.

    A single batch has all of torch's threads, unless `always`: sums over other numbers of threads differ in last bits.
    """
    if threads == 1:
        yield from map(run, batches)
        return
    first = list(islice(batches, 2))
    if len(first) < 2 and not always:
        yield from map(run, first)
        return
    own = torch.get_num_threads()
    share = max(1, own // threads)

    def with_a_share(windows: Given) -> Ran:
        torch.set_num_threads(share)
        return run(windows)

    # In this thread too: threads woken to prepare and blend would spin on the cores that the batches need; with two
    # threads on a busy machine an image of 224² of the small model takes 27 ms of CPU time so, else 48.
    torch.set_num_threads(share)
    try:
        yield from ahead(with_a_share, chain(first, batches), threads=threads)
    finally:
        torch.set_num_threads(own)


def probabilities(
    model: Model,
    windows: Tensor,  # (B, 3, w, w)
) -> Tensor:  # (B, C, w, w) float32, on the windows' device
    """Computes softmax probabilities of windows; the border's, a sigmoid, is the last channel if the model gives it.

    Raises InputError if the model's output does not match the windows.
    """
    with torch.inference_mode():
        found = model(windows)
        logits, *border = found if isinstance(found, tuple) else (found,)
        if logits.ndim != 4 or len(logits) != len(windows) or logits.shape[2:] != windows.shape[2:]:
            raise InputError(
                f"the model turned windows {tuple(windows.shape)} into {tuple(logits.shape)}: "
                "must be logits (B, C, H, W) of the same B, H and W."
            )
        probability = logits.float().softmax(dim=1)
        if border:
            probability = torch.cat([probability, border[0].float().sigmoid()], dim=1)
        return probability.to(windows.device)


def most_probable(probability: Tensor) -> Tensor:  # (C, H, W) -> (H, W) uint8
    """Finds the index of the most probable class of every pixel."""
    # max, not argmax: two classes at 6000² take 0.4 s instead of 6.3 s (torch 2.11, one CPU core).
    return probability.max(dim=0).indices.to(torch.uint8)


def grid(image: Tensor, window: int, stride: int) -> list[Window]:
    """Places windows over an image; their shares in any pixel sum to 1."""
    rows = shares(image.shape[1], window, stride, image.device)
    columns = shares(image.shape[2], window, stride, image.device)
    return [Window(top, left, row_share, column_share) for top, row_share in rows for left, column_share in columns]


def shares(length: int, window: int, stride: int, device: torch.device) -> list[tuple[int, Tensor]]:
    """Computes each origin along one side with its window's share, (window,) float32, in the result of each pixel.

    The blend is separable: the total weight of windows is (sum along rows) ⊗ (sum along columns), so dividing the
    weights by these sums beforehand replaces an (H, W) map of weights and a division of the whole result.
    """
    starts = origins(length, window, stride)
    middle = torch.arange(window, dtype=torch.float64) + 0.5
    weight = torch.sin(math.pi * middle / window).square()  # Hann, sampled mid-pixel: never 0
    total = torch.zeros(max(length, window), dtype=torch.float64)
    for start in starts:
        total[start : start + window] += weight
    return [(start, (weight / total[start : start + window]).to(device, torch.float32)) for start in starts]


def pad_to_window(
    image: Tensor,  # (3, H, W)
    window: int,
) -> Tensor:  # (3, max(H, window), max(W, window))
    """Pads short sides to the window, the image in the middle; one that is large enough is returned as it is."""
    for axis in (1, 2):
        before, after = margins(image.shape[axis], window)
        if before + after == 0:
            continue
        mode = "reflect" if after < image.shape[axis] else "replicate"
        pads = (0, 0, before, after) if axis == 1 else (before, after, 0, 0)
        image = F.pad(image[None], pads, mode=mode)[0]
    return image


def crop_from_window(
    result: Tensor,  # (C, max(H, window), max(W, window))
    image: Tensor,  # (3, H, W)
) -> Tensor:  # (C, H, W)
    """Crops a result by what `pad_to_window` added to the image."""
    height, width = image.shape[1:]
    top = margins(height, result.shape[1])[0]
    left = margins(width, result.shape[2])[0]
    return result[:, top : top + height, left : left + width].contiguous()


def margins(length: int, window: int) -> tuple[int, int]:
    """Computes how many pixels to add before and after a side to reach `window`; never more before than after."""
    missing = max(0, window - length)
    return missing // 2, missing - missing // 2
