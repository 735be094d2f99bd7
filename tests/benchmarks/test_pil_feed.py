"""The PIL pipeline that bench_feed compares with makes what it says: views of one crop, in UniMatch's distribution."""

import random
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mpamatch.batch import Batch
from mpamatch.benchmarks import pil_feed
from mpamatch.benchmarks.pil_feed import PilFeed, cutmix_box, strongly_coloured
from mpamatch.data.config import DataConfig
from tests.data.places import CROP, HEIGHT, NAMES, WIDTH, label_of, make_places

CONFIG = DataConfig(crop=CROP, scale=1.0, zoom=[1.0, 1.0], batch=2, unlabelled_batch=3)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return make_places(tmp_path_factory.mktemp("places"))


@pytest.fixture(autouse=True)
def _seeded():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def neutral(monkeypatch):
    """Strong views in the colours of the weak one."""
    monkeypatch.setattr(pil_feed, "strongly_coloured", lambda image: image)


def batches(prepared, count: int, config: DataConfig = CONFIG, **changes) -> Iterator[Batch]:
    usual = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    return PilFeed(prepared, NAMES[:5], NAMES[5:], config, **(usual | changes)).batches(count)


def shared_crop(batch: Batch) -> bool:
    views = batch.unlabelled
    return torch.equal(views.weak, views.strong1) and torch.equal(views.weak, views.strong2)


@pytest.mark.parametrize("workers", [0, 1])
def test_shapes_types_and_counts(places, workers):
    found = list(batches(places, 3, replace(CONFIG, workers=workers)))
    assert len(found) == 3
    for batch in found:
        assert batch.labelled.image.shape == (2, 3, CROP, CROP)
        assert (batch.labelled.label.shape, batch.labelled.label.dtype) == ((2, CROP, CROP), torch.uint8)
        for view in (batch.unlabelled.weak, batch.unlabelled.strong1, batch.unlabelled.strong2):
            assert (view.shape, view.dtype) == ((3, 3, CROP, CROP), torch.float32)
            assert 0 <= view.min() <= view.max() <= 1
        assert (batch.unlabelled.valid.shape, batch.unlabelled.valid.dtype) == ((3, CROP, CROP), torch.bool)
        assert batch.unlabelled.valid.all()
        for box in (batch.unlabelled.box1, batch.unlabelled.box2):
            assert (box.shape, box.dtype) == ((3, 4), torch.int32)


def test_images_are_normalised(places):
    mean, std = (0.5, 0.25, 0.125), (0.5, 0.25, 2.0)
    view = next(batches(places, 1, mean=mean, std=std)).unlabelled.weak
    back = view * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    values = 255 * back
    assert (values - values.round()).abs().max() < 1e-3
    assert set((values[:, 2] / 10).round().unique().tolist()) <= {float(number) for number in range(5, 11)}


def test_label_and_image_show_the_same_pixels_and_every_flip_and_place(places):
    corners, flips = set(), set()
    for batch in batches(places, 30):
        rows, columns, numbers = (255 * batch.labelled.image).round().long().unbind(1)
        expected = label_of(rows.numpy(), columns.numpy(), numbers.numpy() // 10)
        assert np.array_equal(batch.labelled.label.numpy(), expected)
        flips |= set((columns[:, 0, 1] - columns[:, 0, 0]).tolist())
        corners |= {(int(r[0, 0]), int(min(c[0, 0], c[0, -1]))) for r, c in zip(rows, columns, strict=True)}
    assert flips == {-1, 1}
    assert {row for row, _ in corners} == set(range(HEIGHT - CROP + 1))
    assert len({column for _, column in corners}) > 0.8 * (WIDTH - CROP + 1)


def test_weak_and_strong_views_share_the_crop(places, neutral):
    assert all(shared_crop(batch) for batch in batches(places, 5))


def test_views_of_another_crop_are_noticed(places, neutral, monkeypatch):
    """The test above can fail: here each strong view is cropped anew."""
    moved = lambda image: image.transform(image.size, Image.Transform.AFFINE, (1, 0, 1, 0, 1, 0))  # noqa: E731
    monkeypatch.setattr(pil_feed, "strongly_coloured", moved)
    assert not any(shared_crop(batch) for batch in batches(places, 5))


def test_an_image_smaller_than_the_crop_is_padded_and_marked(places, neutral):
    config = replace(CONFIG, crop=64)
    for batch in batches(places, 3, config):
        for valid, view in zip(batch.unlabelled.valid, batch.unlabelled.weak, strict=True):
            assert valid.sum() == HEIGHT * WIDTH
            assert valid[:HEIGHT].sum() == HEIGHT * WIDTH
            assert (view[:, ~valid] == 0).all()
        assert (batch.labelled.label[:, HEIGHT:] == 255).all()


def test_images_are_scaled_over_the_whole_range(places, neutral):
    """At crops of 16 from images of 56 pixels scaled by .4 to 1.6, neighbouring columns lie 1/1.6 to 1/.4 apart."""
    config = replace(CONFIG, crop=16, scale=0.8, zoom=[0.5, 2.0])
    steps = []
    for batch in batches(places, 60, config):
        columns = 255 * batch.unlabelled.weak[:, 1, 8]
        steps += ((columns[:, -2] - columns[:, 1]).abs() / 13).tolist()
    assert min(steps) == pytest.approx(1 / 1.6, abs=0.1)
    assert max(steps) == pytest.approx(1 / 0.4, abs=0.3)


def test_strong_colours_have_the_recipes_shares():
    """Of 400 views: untouched .2·.8·.5 = 8 % (16 % without the blur, 40 % without the jitter), grey 20 %."""
    pixels = np.random.default_rng(0).integers(60, 200, (24, 24, 3), dtype=np.uint8)
    pixels[:, 12:, 2] //= 2  # coloured enough that jitter alone never makes grey
    image = Image.fromarray(pixels)
    views = [np.asarray(strongly_coloured(image)).astype(int) for _ in range(400)]
    same = np.mean([(view == pixels).all() for view in views])
    grey = np.mean([(view[..., 0] == view[..., 1]).all() and (view[..., 1] == view[..., 2]).all() for view in views])
    assert same == pytest.approx(0.08, abs=0.04)
    assert grey == pytest.approx(0.2, abs=0.06)
    # in brightness and saturation views differ by more than a blur of half a pixel can explain
    assert np.std([view.mean() for view in views]) > 10


def test_boxes_lie_within_the_crop_and_have_the_recipes_sizes():
    boxes = np.array([cutmix_box(112) for _ in range(2000)])
    empty = (boxes == 0).all(axis=1)
    assert empty.mean() == pytest.approx(0.5, abs=0.06)
    top, left, bottom, right = boxes[~empty].T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert max(bottom.max(), right.max()) <= 112
    area = (bottom - top) * (right - left) / 112**2
    assert 0.015 < area.min() < 0.03
    assert 0.35 < area.max() <= 0.4
