"""The DALI feed: the batches of the torchvision feed from a graph, pure in its step, in constant memory."""

import resource
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mpamatch.batch import Batch
from mpamatch.data.feeds import feed_class
from mpamatch.data.feeds.torchvision import TorchvisionFeed
from mpamatch.data.prepared import Prepared
from mpamatch.errors import InputError
from tests.data.places import NAMES, SHARED, assert_same, feed_of, make_places, prepared_at, tensors, write

pytest.importorskip("nvidia.dali", reason="DALI is not installed (pip install 'mpamatch[dali-cuda13]')")
from mpamatch.data.feeds.dali import DaliFeed

pytestmark = pytest.mark.slow

PLAIN = replace(SHARED, augment="natural", zoom=[0.7, 1.6])


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Prepared:
    return make_places(tmp_path_factory.mktemp("places"))


def test_shapes_dtypes_and_what_is_not_needed(places):
    full = feed_of(places, kind=DaliFeed)[0]
    expected = feed_of(places)[0]
    for one, other in zip(tensors(full), tensors(expected), strict=True):
        assert (one.shape, one.dtype, one.is_contiguous()) == (other.shape, other.dtype, True)
    one_view = feed_of(places, kind=DaliFeed, strong_views=1, channels=0)[0].unlabelled
    assert (one_view.strong2, one_view.box2, one_view.channel_noise) == (None, None, None)
    assert torch.equal(one_view.strong1, full.unlabelled.strong1)
    labelled_only = feed_of(places, kind=DaliFeed, strong_views=0, unlabelled=())[0]
    assert labelled_only.unlabelled is None
    assert torch.equal(labelled_only.labelled.image, full.labelled.image)


@pytest.mark.parametrize("augment", ["histology", "natural"])
def test_a_feed_started_at_a_step_gives_that_step_bitwise(places, augment):
    config = replace(SHARED, augment=augment, zoom=[0.7, 1.4], weak_colour=0.5)
    feed = feed_of(places, config, DaliFeed)
    through = list(feed.batches(0, 6))
    resumed = list(feed_of(places, config, DaliFeed).batches(3, 6))
    assert (len(through), len(resumed)) == (6, 3)
    for a, b in zip(through[3:], resumed, strict=True):
        assert_same(a, b)
    assert_same(feed[4], through[4])
    assert not torch.equal(through[3].unlabelled.strong1, through[4].unlabelled.strong1)


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_hold_the_slices_of_the_global_batch(places, ranks):
    config = replace(SHARED, weak_colour=0.5, zoom=[0.7, 1.4])
    whole = tensors(feed_of(places, config, DaliFeed)[5])
    parts = [tensors(feed_of(places, config, DaliFeed, rank=rank, ranks=ranks)[5]) for rank in range(ranks)]
    for column, expected in zip(zip(*parts, strict=True), whole, strict=True):
        assert torch.equal(torch.cat(column), expected)


def test_a_batch_of_one_and_any_number_of_threads(places):
    config = replace(SHARED, batch=1, unlabelled_batch=1, workers=3)
    assert_same(
        feed_of(places, config, DaliFeed)[2], feed_of(places, replace(config, workers=0, cache_mb=0), DaliFeed)[2]
    )


def test_a_kept_batch_is_never_written_again(places):
    feed = feed_of(places, replace(SHARED, weak_colour=0.5, cache_mb=0), DaliFeed)
    kept, copies = [], []
    for batch in feed.batches(0, 12):
        kept.append(batch)
        copies.append([t.clone() for t in tensors(batch)])
    del feed
    for batch, copy in zip(kept, copies, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(tensors(batch), copy, strict=True))
    assert len({batch.unlabelled.strong1.data_ptr() for batch in kept}) == 12


def test_what_dali_does_not_decode_alike_comes_from_the_ordinary_readers(tmp_path):
    """Palette and RGB masks, transparency, grey, turned and odd JPEGs: the same batch as the torchvision feed's."""
    rng = np.random.default_rng(0)

    def noise(*shape: int) -> np.ndarray:
        return rng.integers(0, 256, shape, dtype=np.uint8)

    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    images = {
        "a.png": Image.fromarray(noise(45, 61, 4)),
        "b.png": Image.fromarray(noise(64, 40)),
        "c.jpg": Image.fromarray(noise(33, 77, 3)),
        "d.jpg": Image.fromarray(noise(50, 41)),
        "e.png": Image.fromarray(noise(40, 40, 3)).quantize(16),
        "f.jpg": Image.fromarray(noise(36, 52, 3)),
    }
    turned = Image.Exif()
    turned[0x0112] = 6
    for name, image in images.items():
        image.save(tmp_path / "images" / name, **({"exif": turned} if name == "f.jpg" else {}))
        size = image.size[::-1] if name != "f.jpg" else image.size
        mask = Image.fromarray(rng.integers(0, 5, size).astype(np.uint8))
        if name in ("a.png", "c.jpg"):
            mask = mask.convert("P" if name == "a.png" else "RGB")
        mask.save(tmp_path / "masks" / f"{name[0]}.png")
    changes = {"labelled": tuple(images), "unlabelled": tuple(images)}
    config = replace(SHARED, crop=40, batch=6, unlabelled_batch=6)
    for step in range(3):
        ours, theirs = (feed_of(prepared_at(tmp_path), config, kind, **changes) for kind in (DaliFeed, TorchvisionFeed))
        assert torch.equal(ours[step].labelled.label, theirs[step].labelled.label)
        assert torch.equal(ours[step].unlabelled.valid, theirs[step].unlabelled.valid)
        for one, other in (
            (ours[step].labelled.image, theirs[step].labelled.image),
            (ours[step].unlabelled.weak, theirs[step].unlabelled.weak),
        ):
            assert (one - other).abs().max() < 1e-6


def test_a_cache_of_pngs_changes_no_bit(places, tmp_path):
    config = replace(PLAIN, weak_colour=0.5)
    assert_same(feed_of(places, config, DaliFeed)[7], feed_of(places, replace(config, cache_mb=0), DaliFeed)[7])
    write(tmp_path, "a.png", np.full((64, 64, 3), 200, np.uint8), np.ones((64, 64), np.uint8))
    Image.fromarray(np.full((64, 64, 3), 100, np.uint8)).save(tmp_path / "images" / "b.jpg")
    feed = feed_of(prepared_at(tmp_path), PLAIN, DaliFeed, labelled=("a.png",), unlabelled=("b.jpg",))
    feed[0]
    assert set(feed.kept.kept) == {("image", "a.png"), ("label", "a.png")}
    (tmp_path / "images" / "a.png").unlink()
    assert (feed[1].labelled.label[0] != 255).any()


class FewFiles(Prepared):
    """A hundred thousand names for the files of a few."""

    def mask_path(self, name: str) -> Path | None:
        return super().mask_path(self.image_path(name).name)

    def image_path(self, name: str) -> Path:
        return super().image_path(NAMES[int(name.partition(".")[0]) % len(NAMES)])


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_a_hundred_thousand_patches_take_constant_memory(places):
    many = tuple(f"{number:06}.png" for number in range(100_000))
    config = replace(SHARED, cache_mb=1, unlabelled_batch=16)
    feed = feed_of(FewFiles(**vars(places)), config, DaliFeed, labelled=many[:5], unlabelled=many)
    before, one_step = 0, 0
    for step, batch in enumerate(feed.batches(0, 160)):
        if step == 40:
            before = resident_bytes()
            one_step = sum(t.nbytes for t in tensors(batch))
    assert resident_bytes() - before < 20 * one_step  # of the 120 batches made since then
    assert int((feed.decoder[1] > 0).sum()) == 160 * 16


def test_steps_are_made_ahead_in_a_thread_that_ends_with_its_iterator(places):
    before = threading.active_count()
    iterator = feed_of(places, kind=DaliFeed).batches(0, 1000)
    assert isinstance(next(iterator), Batch)
    assert threading.active_count() == before + 1
    iterator.close()
    assert threading.active_count() == before


def test_the_feed_is_chosen_by_name_device_and_what_is_installed(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert feed_class("dali", cpu) is DaliFeed
    assert feed_class("auto", cuda) is DaliFeed
    assert feed_class("auto", cpu) is TorchvisionFeed
    assert feed_class("torchvision", cuda) is TorchvisionFeed
    monkeypatch.setattr("mpamatch.data.feeds.find_spec", lambda name: None)
    assert feed_class("auto", cuda) is TorchvisionFeed
    with pytest.raises(InputError, match="dali-cuda13"):
        feed_class("dali", cpu)
