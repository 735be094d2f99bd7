"""The label of a slide, band by band: windows through the model, blended, and kept as they are finished."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mpamatch.inference.segmenter import Segmenter
from mpamatch.inference.tiles import Window, add_window, margins, shares
from mpamatch.slides.bands import UNSEEN, Band, Block, Label, Layout, Seen, Windows, lay_out
from mpamatch.slides.reader import View

BUDGET = 512 * 2**20  # bytes of a band: a slide of 36,000 pixels across in one block, with 3 classes and windows of 512
CHUNK = 4096  # columns whose most probable classes are found at a time


class Blend(NamedTuple):
    """The shares of windows in the result, by where they begin, (window,) float32 each."""

    rows: dict[int, Tensor]
    columns: dict[int, Tensor]


def plan(segmenter: Segmenter, size: tuple[int, int], budget: int = BUDGET) -> tuple[Layout, Blend]:
    """Places the windows on a view of (width, height): where plain prediction of one image of that size has them."""
    settings = segmenter.settings
    stride = max(1, int(settings.window * (1 - settings.overlap)))
    along = []
    for length in size:
        before = margins(length, settings.window)[0]
        placed = shares(length, settings.window, stride, segmenter.device)
        along.append({start - before: share for start, share in placed})
    columns, rows = along
    layout = lay_out(size, settings.window, list(rows), list(columns), len(segmenter.class_names), budget)
    return layout, Blend(rows, columns)


class BandSum:
    """The probabilities of the rows that the windows of a band lie in, summed up window by window."""

    def __init__(self, layout: Layout, block: Block, blend: Blend, classes: int, device: torch.device) -> None:
        self._window, self._block, self._blend = layout.window, block, blend
        self._first = layout.lefts[block.first]
        width = layout.lefts[block.stop - 1] + layout.window - self._first
        self._total = torch.zeros((classes, layout.window, width), device=device)

    def add(self, band: Band, lefts: Sequence[int], found: Tensor) -> None:  # (B, C, window, window)
        """Adds windows of a band."""
        for left, probability in zip(lefts, found, strict=True):
            share = self._blend.columns[left]
            add_window(self._total, Window(0, left - self._first, self._blend.rows[band.start], share), probability)

    def complete(self, band: Band, following: Band | None) -> tuple[Label, Label]:
        """Returns label and confidence in percent of the rows that a band completes, and moves on to the `following`.

        Both are (h, w) uint8.
        """
        size = band.bottom - band.top, self._block.right - self._block.left
        label, confidence = np.full(size, UNSEEN, dtype=np.uint8), np.zeros(size, dtype=np.uint8)
        rows = slice(band.top - band.start, band.bottom - band.start)
        skip = self._block.left - self._first
        for left in range(0, size[1] if band.lefts else 0, CHUNK):
            right = min(left + CHUNK, size[1])
            best = self._total[:, rows, skip + left : skip + right].max(dim=0)
            label[:, left:right] = best.indices.to(torch.uint8).cpu().numpy()
            percent = (best.values * 100).round_().clamp_(max=100)
            confidence[:, left:right] = percent.to(torch.uint8).cpu().numpy()
        if following is not None:
            self._move(following.start - band.start)
        return label, confidence

    def _move(self, step: int) -> None:
        kept = max(0, self._window - step)
        for left in range(0, self._total.shape[2], CHUNK):
            columns = self._total[:, :, left : left + CHUNK]
            columns[:, :kept] = columns[:, step:].clone()
        self._total[:, kept:] = 0


class Finished(NamedTuple):
    """A band that is done: label and confidence in percent, (h, w) uint8 each, and how many windows were run for it."""

    band: Band
    label: Label
    confidence: Label
    windows: int


def predict_bands(
    segmenter: Segmenter, view: View, layout: Layout, blend: Blend, bands: Sequence[Band], start: int, seen: Seen
) -> Iterator[Finished]:
    """Predicts the bands of a block from number `start` on, which must be one with windows.

    The windows of bands before it that reach into it are run again, in the same batches, so that the result has the
    same bits whatever `start` is. No batch holds windows of two bands.
    """
    todo = bands[layout.needed_from(start) :]
    cut = Windows(view, layout.window, todo)
    under_way: deque[tuple[Band, tuple[int, ...]]] = deque()

    def batches() -> Iterator[list[np.ndarray]]:
        for band in todo:
            for first in range(0, len(band.lefts), segmenter.settings.batch):
                lefts = band.lefts[first : first + segmenter.settings.batch]
                under_way.append((band, lefts))
                yield [cut.cut(band, left) for left in lefts]

    def completed(at: int) -> Finished:
        band, following = todo[at], todo[at + 1] if at + 1 < len(todo) else None
        label, confidence = total.complete(band, following)
        unseen = ~seen.pixels(band.top, band.bottom, band.block.left, band.block.right)
        label[unseen], confidence[unseen] = UNSEEN, 0
        return Finished(band, label, confidence, len(band.lefts))

    total = BandSum(layout, bands[0].block, blend, len(segmenter.class_names), segmenter.device)
    at = 0
    for found in segmenter.window_probabilities(batches()):
        band, lefts = under_way.popleft()
        while todo[at] is not band:
            done, at = completed(at), at + 1
            if done.band.row >= start:
                yield done
        total.add(band, lefts, found)
    for rest in range(at, len(todo)):
        yield completed(rest)
