"""Files that break: by name and at once, or skipped and counted, the same with every feed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mpamatch.data.config import DataConfig
from mpamatch.data.draws import LABELLED, UNLABELLED, image_index
from mpamatch.data.feeds import feed_class
from mpamatch.errors import InputError
from tests.data.places import NAMES, SHARED, assert_one_sentence, assert_same, feed_of, make_places, prepared_at, told

KINDS = ("torchvision", "dali")
COLD = replace(SHARED, cache_mb=0)  # what was decoded once is not remembered


@pytest.fixture(params=KINDS)
def kind(request) -> Any:
    if request.param == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed (pip install 'mpamatch[dali-cuda13]')")
    return feed_class(request.param, torch.device("cpu"))


@pytest.fixture
def root(tmp_path) -> Path:
    make_places(tmp_path)
    return tmp_path


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def give_label(root: Path, name: str, height: int, value: int) -> None:
    Image.fromarray(np.full((height, 56), value, np.uint8)).save(root / "masks" / name)


BREAK = {
    "truncated": (lambda root, name: cut_short(root / "images" / name), ["images/{}", "cannot be decoded"]),
    "deleted": (lambda root, name: (root / "images" / name).unlink(), ["images/{}", "no such file"]),
    "unknown index": (lambda root, name: give_label(root, name, 40, 9), ["masks/{}", "class index 9", "5 classes"]),
    "other size": (lambda root, name: give_label(root, name, 30, 1), ["masks/{}", "56×30", "56×40"]),
    "no mask": (lambda root, name: (root / "masks" / name).unlink(), ["images/{}", "has no mask"]),
    "truncated mask": (lambda root, name: cut_short(root / "masks" / name), ["masks/{}", "cannot be decoded"]),
}


def slot_of(name: str, stream: int, step: int) -> int:
    """The slot of a step in which an image stands."""
    names, batch = (NAMES[:5], 4) if stream == LABELLED else (NAMES[5:], 8)
    return [names[image_index(0, stream, step * batch + slot, len(names))] for slot in range(batch)].index(name)


@pytest.mark.parametrize("what", BREAK)
def test_stop_names_the_file_in_one_sentence(what, kind, root):
    name = NAMES[image_index(0, LABELLED, 2, 5)]  # slot 2 of step 0
    breaking, words = BREAK[what]
    breaking(root, name)
    feed = feed_of(prepared_at(root), COLD, kind, strong_views=0)
    with pytest.raises(InputError) as caught:
        feed[0]
    assert_one_sentence(caught.value, [word.format(name) for word in words])


@pytest.mark.parametrize("stream", [LABELLED, UNLABELLED])
def test_an_image_that_breaks_between_two_steps_is_named_when_its_step_is_due(stream, kind, root):
    feed = feed_of(prepared_at(root), COLD, kind)
    for step in range(6):
        feed[step]
    names = NAMES[:5] if stream == LABELLED else NAMES[5:]
    name = names[image_index(0, stream, 20 * (4 if stream == LABELLED else 8), len(names))]  # slot 0 of step 20
    cut_short(root / "images" / name)
    steps: list[Any] = []
    with pytest.raises(InputError) as caught:
        steps.extend(feed.batches(6, 21))
    assert_one_sentence(caught.value, [f"images/{name}", "cannot be decoded"])
    shown = [step for step in range(6, 21) if name in names_of(step, stream)]
    assert len(steps) == shown[0] - 6


def names_of(step: int, stream: int) -> list[str]:
    names, batch = (NAMES[:5], 4) if stream == LABELLED else (NAMES[5:], 8)
    return [names[image_index(0, stream, step * batch + slot, len(names))] for slot in range(batch)]


@pytest.mark.parametrize("what", BREAK)
def test_skip_shows_the_next_image_of_the_list_and_remembers_the_name(what, kind, root):
    place = image_index(0, LABELLED, 2, 5)  # slot 2 of step 0
    breaking, words = BREAK[what]
    before = feed_of(prepared_at(root), COLD, kind, strong_views=0)
    whole = [before[step] for step in range(3)]
    breaking(root, NAMES[place])
    feed = feed_of(prepared_at(root), replace(COLD, on_error="skip"), kind, strong_views=0)
    for step in range(3):
        batch, wanted = feed[step], names_of(step, LABELLED)
        wanted = [NAMES[(place + 1) % 5] if name == NAMES[place] else name for name in wanted]
        assert [NAMES[int(told(image)[2][0, 0])] for image in batch.labelled.image] == wanted
        untouched = [slot for slot, name in enumerate(names_of(step, LABELLED)) if name != NAMES[place]]
        assert torch.equal(batch.labelled.image[untouched], whole[step].labelled.image[untouched])
    assert list(feed.skipped) == [NAMES[place]]
    for word in words:
        assert word.format(NAMES[place]) in feed.skipped[NAMES[place]]


def test_skipping_resumes_bitwise_and_goes_through_workers(kind, root):
    for name in (NAMES[1], NAMES[6], NAMES[7]):
        cut_short(root / "images" / name)
    config = replace(COLD, on_error="skip", zoom=[0.7, 1.4], weak_colour=0.5, workers=1)
    feed, later = (feed_of(prepared_at(root), config, kind) for _ in range(2))
    through, resumed = list(feed.batches(0, 6)), list(later.batches(3, 6))
    for a, b in zip(through[3:], resumed, strict=True):
        assert_same(a, b)
    assert set(feed.skipped) == {NAMES[1], NAMES[6], NAMES[7]}
    assert set(later.skipped) == {NAMES[1], NAMES[6], NAMES[7]}


def test_both_feeds_skip_to_the_same_images(root):
    pytest.importorskip("nvidia.dali", reason="DALI is not installed (pip install 'mpamatch[dali-cuda13]')")
    for name in (NAMES[0], NAMES[1], NAMES[8]):
        cut_short(root / "images" / name)
    config = replace(COLD, on_error="skip")
    feeds = [feed_of(prepared_at(root), config, feed_class(name, torch.device("cpu"))) for name in KINDS]
    for step in range(4):
        ours, theirs = (feed[step] for feed in feeds)
        assert (ours.labelled.image - theirs.labelled.image).abs().max() < 1e-6
        assert (ours.unlabelled.weak - theirs.unlabelled.weak).abs().max() < 1e-6
        assert torch.equal(ours.labelled.label, theirs.labelled.label)
    assert feeds[0].skipped == feeds[1].skipped


@pytest.mark.parametrize("stream", [LABELLED, UNLABELLED])
def test_where_no_image_is_left_even_skip_stops(stream, kind, root):
    for name in NAMES[:5] if stream == LABELLED else NAMES[5:]:
        cut_short(root / "images" / name)
    feed = feed_of(prepared_at(root), replace(COLD, on_error="skip"), kind)
    words = ["none of its 5 labelled" if stream == LABELLED else "none of its 6 unlabelled", "cannot be decoded"]
    with pytest.raises(InputError) as caught:
        feed[0]
    assert_one_sentence(caught.value, words)


@pytest.mark.parametrize(("field", "word", "near"), [("feed", "dally", "dali"), ("on_error", "stopp", "stop")])
def test_a_word_that_is_no_choice_is_named(field, word, near):
    with pytest.raises(InputError, match=f"data.{field} '{word}'.*'{near}'"):
        DataConfig(**{field: word})
