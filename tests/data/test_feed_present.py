"""Feeds for methods that learn from image-level labels: both feeds give the same, no mask is read, draws stay."""

import dataclasses

import pytest
import torch

from mpamatch.batch import Batch, pieces, to_device
from mpamatch.data.feeds import feed_class
from mpamatch.errors import InputError
from tests.data.places import NAMES, SHARED, feed_of, make_places, told
from tests.tools.feeds import FEEDS, NEEDS_DALI

PRESENT = {name: ((), (1,), (2, 4))[number % 3] for number, name in enumerate(NAMES)}


@pytest.fixture(scope="module")
def weak(tmp_path_factory):
    root = tmp_path_factory.mktemp("weak")
    prepared = dataclasses.replace(make_places(root), present=PRESENT)
    for mask in (root / "masks").iterdir():
        mask.unlink()  # whoever reads one fails
    return prepared


def made(kind: str, weak, **changes) -> Batch:
    feed, config = feed_class(kind, torch.device("cpu")), dataclasses.replace(SHARED, cache_mb=0)
    return feed_of(weak, config, feed, strong_views=0, image_labels=True, **changes)[3]


@pytest.mark.parametrize("kind", FEEDS)
def test_present_is_that_of_the_image_in_the_slot(kind, weak):
    batch = made(kind, weak).labelled
    assert batch.present is not None
    assert (batch.present.dtype, tuple(batch.present.shape)) == (torch.float32, (4, 5))
    for image, row in zip(batch.image, batch.present, strict=True):
        number = int(told(image)[2].flatten()[0])
        assert tuple(row.nonzero().flatten().tolist()) == PRESENT[NAMES[number]]
    assert batch.label.dtype == torch.uint8
    assert tuple(batch.label.shape) == (4, 32, 32)
    assert bool((batch.label == 255).all())


@NEEDS_DALI
def test_both_feeds_give_the_same(weak):
    one, other = made("torchvision", weak).labelled, made("dali", weak).labelled
    torch.testing.assert_close(one.image, other.image, rtol=0, atol=1e-6)  # x/255 here, x·(1/255) there
    assert torch.equal(one.label, other.label)
    assert torch.equal(one.present, other.present)


@pytest.mark.parametrize("kind", FEEDS)
def test_two_ranks_share_the_slots(kind, weak):
    halves = [made(kind, weak, rank=rank, ranks=2).labelled for rank in range(2)]
    whole = made(kind, weak).labelled
    assert torch.equal(torch.cat([half.present for half in halves]), whole.present)
    assert torch.equal(torch.cat([half.image for half in halves]), whole.image)


def test_the_images_are_those_of_training_with_labels(tmp_path):
    prepared = dataclasses.replace(make_places(tmp_path), present=PRESENT)
    with_masks = feed_of(prepared, strong_views=0)[3].labelled
    assert with_masks.present is None
    assert not bool((with_masks.label == 255).all())
    assert torch.equal(made("torchvision", prepared).labelled.image, with_masks.image)


def test_present_is_cut_and_moved_with_the_batch(weak):
    batch = to_device(made("torchvision", weak), torch.device("cpu"))
    first, second = (piece.labelled.present for piece in pieces(batch, 2))
    assert torch.equal(torch.cat([first, second]), batch.labelled.present)


@pytest.mark.parametrize("kind", FEEDS)
def test_an_unreadable_image_is_named(kind, weak, tmp_path):
    prepared = dataclasses.replace(make_places(tmp_path), present=PRESENT)
    path = tmp_path / "images" / NAMES[2]
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match=NAMES[2]):
        made(kind, prepared, labelled=(NAMES[2],))
