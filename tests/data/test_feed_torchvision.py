"""The feed: pure in its step, the same over ranks and workers, image and label on the same pixels, errors by name."""

import gc
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mpamatch.batch import Batch, to_device
from mpamatch.data.augment import recolour
from mpamatch.data.cache import ImageCache
from mpamatch.data.draws import LABELLED, UNLABELLED, draw, image_index
from mpamatch.data.prepared import Prepared
from mpamatch.errors import InputError, Note
from mpamatch.images import read_image
from tests.data.places import (
    CROP,
    NAMES,
    SHARED,
    assert_one_sentence,
    assert_same,
    feed_of,
    label_of,
    make_places,
    prepared_at,
    spoil,
    tensors,
    told,
    write,
)
from tests.tiny import make_set, tiny_flags

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Prepared:
    return make_places(tmp_path_factory.mktemp("places"))


def test_shapes_dtypes_and_contiguity(places):
    labelled, unlabelled = feed_of(places)[0]
    square = (CROP, CROP)
    assert unlabelled is not None
    views = [(labelled.image, 4), (unlabelled.weak, 8), (unlabelled.strong1, 8), (unlabelled.strong2, 8)]
    for view, count in views:
        assert (view.shape, view.dtype) == ((count, 3, *square), torch.float32)
    assert (labelled.label.shape, labelled.label.dtype) == ((4, *square), torch.uint8)
    assert (unlabelled.valid.shape, unlabelled.valid.dtype) == ((8, *square), torch.bool)
    for box in (unlabelled.box1, unlabelled.box2):
        assert (box.shape, box.dtype) == ((8, 4), torch.int32)
    assert (unlabelled.channel_noise.shape, unlabelled.channel_noise.dtype) == ((8, 6), torch.float32)
    assert unlabelled.valid.all()


def test_every_labelled_pixel_carries_the_label_of_its_place(places):
    feed = feed_of(places, replace(SHARED, crop=24))
    origins = set()
    for step in range(12):
        labelled = feed[step].labelled
        for image, label in zip(labelled.image, labelled.label, strict=True):
            rows, columns, numbers = told(image)
            assert np.array_equal(label.numpy(), label_of(rows, columns, numbers))
            origins.add((rows[0, 0], columns[0, 0], rows[0, 1] - rows[0, 0], columns[0, 1] - columns[0, 0]))
    assert len(origins) > 40


def test_padding_is_ignored_in_the_label_and_invalid_in_the_unlabelled(places):
    feed = feed_of(places, replace(SHARED, crop=48))  # 8 rows more than the image has
    for step in range(4):
        labelled, unlabelled = feed[step]
        assert unlabelled is not None
        for image, label in zip(labelled.image, labelled.label, strict=True):
            rows, columns, numbers = told(image)
            padded = label_of(rows, columns, numbers) != label.numpy()
            assert (label.numpy()[padded] == 255).all()
            assert (label.numpy() == 255).sum() >= 8 * 48
        for image, valid in zip(unlabelled.weak, unlabelled.valid, strict=True):
            rows, columns, _ = told(image)
            assert valid.sum() == 40 * 48
            inside = list(zip(rows[valid.numpy()], columns[valid.numpy()], strict=True))
            assert len(set(inside)) == 40 * 48  # each place once: none of them a reflection


def test_weak_and_strong_views_are_the_same_crop_in_other_colours(places):
    feed = feed_of(places)
    for step in range(3):
        unlabelled = feed[step].unlabelled
        assert unlabelled is not None
        for slot in range(8):
            drawn = draw(feed.settings, 0, UNLABELLED, step, slot)
            crop = (unlabelled.weak[slot] * 255).round().to(torch.uint8)
            assert torch.equal(unlabelled.strong1[slot], recolour(crop, drawn.strong[0]))
            assert torch.equal(unlabelled.strong2[slot], recolour(crop, drawn.strong[1]))
            assert not torch.equal(unlabelled.strong1[slot], unlabelled.strong2[slot])
            assert tuple(unlabelled.box1[slot].tolist()) == drawn.boxes[0]
            assert tuple(unlabelled.box2[slot].tolist()) == drawn.boxes[1]
            assert np.array_equal(unlabelled.channel_noise[slot].numpy(), drawn.channel_noise)


def test_weak_colour_reaches_the_labelled_and_the_weak_view(places):
    plain, coloured = feed_of(places)[0], feed_of(places, replace(SHARED, weak_colour=1.0))[0]
    assert torch.equal(plain.labelled.label, coloured.labelled.label)
    assert torch.equal(plain.unlabelled.strong1, coloured.unlabelled.strong1)
    for a, b in ((plain.labelled.image, coloured.labelled.image), (plain.unlabelled.weak, coloured.unlabelled.weak)):
        assert ((a - b).abs().mean(dim=(1, 2, 3)) > 1e-3).all()


def test_an_epoch_shows_every_image_once(places):
    feed = feed_of(places, replace(SHARED, batch=1, unlabelled_batch=2))
    labelled, unlabelled = [], []
    for step in range(15):
        batch = feed[step]
        labelled += [int(told(image)[2][0, 0]) for image in batch.labelled.image]
        unlabelled += [int(told(image)[2][0, 0]) for image in batch.unlabelled.weak]
    for start in (0, 5, 10):
        assert sorted(labelled[start : start + 5]) == [0, 1, 2, 3, 4]
    for start in (0, 6, 12, 18, 24):
        assert sorted(unlabelled[start : start + 6]) == [5, 6, 7, 8, 9, 10]
    assert labelled[:5] == [image_index(0, LABELLED, place, 5) for place in range(5)]


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("augment", ["histology", "natural"])
def test_ranks_hold_the_slices_of_the_global_batch(places, ranks, augment):
    config = replace(SHARED, augment=augment, weak_colour=0.5, zoom=[0.7, 1.4])
    whole = tensors(feed_of(places, config)[5])
    parts = [tensors(feed_of(places, config, rank=rank, ranks=ranks)[5]) for rank in range(ranks)]
    for column, expected in zip(zip(*parts, strict=True), whole, strict=True):
        assert torch.equal(torch.cat(column), expected)


def test_a_step_is_the_same_whenever_it_is_asked_for(places):
    config = replace(SHARED, zoom=[0.7, 1.4], weak_colour=0.5)
    feed = feed_of(places, config)
    through = list(feed.batches(0, 5))
    resumed = list(feed_of(places, config).batches(3, 5))
    assert len(through) == 5
    assert len(resumed) == 2
    for a, b in zip(through[3:], resumed, strict=True):
        assert_same(a, b)
    assert_same(feed[1], through[1])
    assert not torch.equal(through[3].labelled.image, through[4].labelled.image)


def test_workers_make_the_same_batches_in_order(places):
    feed = feed_of(places, replace(SHARED, zoom=[0.7, 1.4], workers=1))
    for step, batch in enumerate(feed.batches(2, 6), start=2):
        assert isinstance(batch, Batch)
        assert_same(batch, feed[step])


def test_seeds_give_other_batches(places):
    assert not torch.equal(feed_of(places)[0].labelled.image, feed_of(places, seed=1)[0].labelled.image)


def test_views_that_are_not_needed_are_none_and_change_nothing(places):
    full, labelled_only = feed_of(places)[2], feed_of(places, strong_views=0, unlabelled=())[2]
    assert labelled_only.unlabelled is None
    assert all(torch.equal(a, b) for a, b in zip(full.labelled[:2], labelled_only.labelled[:2], strict=True))
    one = feed_of(places, strong_views=1, channels=0)[2].unlabelled
    assert (one.strong2, one.box2, one.channel_noise) == (None, None, None)
    for name in ("weak", "strong1", "valid", "box1"):
        assert torch.equal(getattr(one, name), getattr(full.unlabelled, name))
    moved = to_device(Batch(full.labelled, one), torch.device("meta"))
    assert moved.unlabelled.strong2 is None
    assert moved.unlabelled.valid.is_meta
    assert to_device(labelled_only, torch.device("meta")).unlabelled is None


def test_all_views_are_normalised_by_channel(places):
    mean, std = (0.5, 0.25, 0.125), (0.5, 0.25, 2.0)
    plain, normal = feed_of(places)[1], feed_of(places, mean=mean, std=std)[1]
    m, s = (torch.tensor(values)[:, None, None] for values in (mean, std))
    for a, b in (
        (plain.labelled.image, normal.labelled.image),
        (plain.unlabelled.weak, normal.unlabelled.weak),
        (plain.unlabelled.strong1, normal.unlabelled.strong1),
        (plain.unlabelled.strong2, normal.unlabelled.strong2),
    ):
        assert torch.allclose(b * s + m, a, atol=1e-6)


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The names of the images decoded so far."""
    names: list[str] = []

    def reading(path: Path, *limits: int) -> np.ndarray:
        names.append(path.name)
        return read_image(path, *limits)

    monkeypatch.setattr("mpamatch.data.cache.read_image", reading)
    return names


def test_the_cache_keeps_what_fits_and_reads_the_rest_again(tmp_path, reads):
    rng = np.random.default_rng(0)
    for name in NAMES[:4]:  # 600,000 bytes of image and 200,000 of label: two MiB hold two pairs and two labels
        write(tmp_path, name, rng.integers(0, 256, (400, 500, 3), dtype=np.uint8), np.zeros((400, 500), np.uint8))
    images = ImageCache(prepared_at(tmp_path), cache_mb=2)
    first = [images.labelled(name) for name in NAMES[:4]]
    second = [images.labelled(name) for name in NAMES[:4]]
    for before, after in zip(first, second, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    held = sum(array.nbytes for array in images.kept.values())
    assert 2 * 800_000 <= held <= 2 << 20
    assert reads == [*NAMES[:4], *NAMES[2:4]]


def test_an_image_is_decoded_once_for_both_uses(places, reads):
    images = ImageCache(places, cache_mb=1)
    image, label = images.labelled("a.png")
    assert np.array_equal(images.image("a.png"), image)
    assert label.dtype == np.uint8
    assert reads == ["a.png"]


def test_a_cache_of_nothing_keeps_nothing_and_changes_nothing(places, reads):
    cached, feed = feed_of(places)[0], feed_of(places, replace(SHARED, cache_mb=0))
    reads.clear()
    assert_same(feed[0], cached)
    assert_same(feed[0], cached)
    assert len(reads) == 2 * 12
    assert not feed.images.kept


def test_a_batch_never_writes_into_the_cache(places):
    feed = feed_of(places, replace(SHARED, crop=40))
    before = feed[0]
    for part in tensors(feed[0]):
        part.zero_()
    assert_same(before, feed[0])


@pytest.mark.parametrize(
    ("config", "changes", "words"),
    [
        ({}, {"unlabelled": ()}, ["no unlabelled training image", "mpamatch split", "--method.name supervised"]),
        ({"batch": 3}, {"ranks": 2}, ["data.batch", "3 images do not divide over 2 ranks", "multiple of 2"]),
        ({"unlabelled_batch": 5}, {"ranks": 4}, ["data.unlabelled_batch", "5 images", "multiple of 4"]),
        ({"batch": 0}, {}, ["data.batch"]),
        ({"zoom": [1.0]}, {}, ["data.zoom", "2 values"]),
        ({"zoom": [1.0, 1.1, 1.2]}, {}, ["data.zoom", "2 values"]),
        ({"zoom": [2.0, 1.0]}, {}, ["data.zoom", "0 < low <= high"]),
        ({"crop": 8}, {}, ["data.crop", "at least 16", "8"]),
        ({"scale": 0.0}, {}, ["data.scale", "0 < scale <= 8", "0.0"]),
        ({"scale": 9.0}, {}, ["data.scale", "9.0"]),
        ({"augment": "naturel"}, {}, ["data.augment", "'natural'"]),
        ({"zoom": [0.0, 1.0]}, {}, ["data.zoom", "more than 0 each"]),
        ({"weak_colour": 1.5}, {}, ["data.weak_colour", "expected 0 to 1, got 1.5"]),
        ({"weak_colour": -0.1}, {}, ["data.weak_colour", "expected 0 to 1"]),
        ({"workers": -1}, {}, ["data.workers", "at least 0"]),
    ],
)
def test_a_configuration_that_does_not_fit_is_named_before_a_file_is_read(places, config, changes, words):
    with pytest.raises(InputError) as caught:
        feed_of(places, replace(SHARED, **config), **changes)
    assert_one_sentence(caught.value, words)


BROKEN = [
    ("truncated", ["images/bad.png", "cannot be decoded"]),
    ("index", ["masks/bad.png", "class index 5", "5 classes"]),
    ("size", ["bad.png", "64×50", "64×64"]),
    ("no mask", ["images/bad.png", "counts as labelled but has no mask"]),
]


@pytest.mark.parametrize(("what", "words"), BROKEN)
def test_a_file_that_cannot_be_used_is_named(tmp_path, what, words):
    spoil(tmp_path, what)
    feed = feed_of(prepared_at(tmp_path), labelled=("bad.png",), strong_views=0)
    with pytest.raises(InputError) as caught:
        feed[0]
    assert_one_sentence(caught.value, words)


def test_a_file_that_cannot_be_used_is_named_in_one_sentence_by_a_worker_too(tmp_path):
    spoil(tmp_path, "truncated")
    feed = feed_of(prepared_at(tmp_path), replace(SHARED, workers=1), labelled=("bad.png",), strong_views=0)
    with pytest.raises(InputError) as caught:
        list(feed.batches(0, 1))
    assert_one_sentence(caught.value, BROKEN[0][1])


def test_an_unlabelled_image_needs_no_mask_and_ignores_a_wrong_one(tmp_path):
    spoil(tmp_path, "index")
    write(tmp_path, "good.png", np.full((64, 64, 3), 200, np.uint8), np.ones((64, 64), np.uint8))
    feed = feed_of(prepared_at(tmp_path), labelled=("good.png",), unlabelled=("bad.png",))
    assert (feed[0].labelled.label == 1).all()


class Freed:
    """Garbage that only the collector finds, and that tells where it was freed."""

    def __init__(self, path: Path):
        self.path, self.itself = path, self

    def __del__(self) -> None:
        self.path.write_text(str(os.getpid()))


def test_workers_start_without_garbage_of_their_parent(places, tmp_path):
    """A worker that freed a pipeline of DALI would wait for ever for threads that it does not have."""
    gc.collect()
    gc.disable()
    try:
        Freed(tmp_path / "freed")
        assert not (tmp_path / "freed").exists()
        next(feed_of(places, replace(SHARED, workers=1)).batches(0, 2))
        assert (tmp_path / "freed").read_text() == str(os.getpid())
    finally:
        gc.enable()


SMALL = """
import subprocess, sys
subprocess.run(["mount", "-t", "tmpfs", "-o", sys.argv[1], "tmpfs", "/dev/shm"], check=True)
from mpamatch.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("size=64k", "shared memory (/dev/shm) has no room for a batch, so batches go through a pipe"),  # docker: 64 MB
        ("ro", "data.workers: this machine has no shared memory (/dev/shm) that can be written"),
    ],
)
def test_training_goes_on_where_shared_memory_is_small_or_missing(options, words, tmp_path):
    prepared, run = make_set(tmp_path / "set"), tmp_path / "run"
    fields = {"data.workers": 1, "data.crop": 48, "data.batch": 4, "data.unlabelled_batch": 4}
    flags = ["train", "--recipe", "demo", "--run", str(run), *tiny_flags(prepared.root, "fixmatch", fields)]
    command = ["unshare", "--mount", sys.executable, "-c", SMALL, options, *flags]
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith(f"note: {words}")] == done.stderr.splitlines()
    assert len(done.stderr.splitlines()) == 1
    assert (run / "checkpoints" / "best.safetensors").is_file()


def test_a_batch_through_the_pipe_is_the_same(places, monkeypatch):
    def no_room(tensor):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device")

    feed = feed_of(places, replace(SHARED, workers=1))
    monkeypatch.setattr(torch.Tensor, "share_memory_", no_room)  # the worker is a copy of this process
    with pytest.warns(Note, match="no room"):
        batches = list(feed.batches(0, 3))
    for step, batch in enumerate(batches):
        assert_same(batch, feed[step])
