"""Draws: pure functions of (seed, step, slot), independent between streams, and of the ranges they state."""

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpamatch.data.draws import (
    LABELLED,
    UNLABELLED,
    ColourDraw,
    DrawSettings,
    Geometry,
    SampleDraw,
    _cutmix_box,
    draw,
    generator,
    image_index,
)

pytestmark = pytest.mark.slow

CROP, COUNT, CHANNELS = 64, 1500, 8
NEUTRAL = ColourDraw()


def settings_of(augment: str, *, crop: int = CROP, weak_colour: float = 0.5) -> DrawSettings:
    return DrawSettings(augment, crop, (0.5, 2.0), weak_colour, CHANNELS)


def many(augment: str) -> list[SampleDraw]:
    settings = settings_of(augment)
    return [draw(settings, 3, UNLABELLED, number // 4, number % 4) for number in range(COUNT)]


@pytest.fixture(scope="module")
def histology() -> list[SampleDraw]:
    return many("histology")


@pytest.fixture(scope="module")
def natural() -> list[SampleDraw]:
    return many("natural")


def same(a: SampleDraw, b: SampleDraw) -> bool:
    parts = (a.geometry, a.weak, a.strong, a.boxes) == (b.geometry, b.weak, b.strong, b.boxes)
    return parts and np.array_equal(a.channel_noise, b.channel_noise)


def shares(events: list[bool]) -> float:
    return sum(events) / len(events)


def assert_uniform(values: list[float], low: float, high: float) -> None:
    """Within the range, and no further from its distribution than Kolmogorov's 0.1 % quantile, 1.95/√n."""
    unit = np.sort((np.array(values) - low) / (high - low))
    assert unit.min() >= 0
    assert unit.max() <= 1
    assert np.abs(unit - (np.arange(len(unit)) + 0.5) / len(unit)).max() < 1.95 / np.sqrt(len(unit))


@pytest.mark.parametrize("augment", ["histology", "natural"])
def test_a_draw_depends_on_its_arguments_alone(augment):
    settings = settings_of(augment)
    for stream in (LABELLED, UNLABELLED):
        first = draw(settings, 7, stream, 5, 2)
        np.random.seed(0)
        draw(settings, 1, UNLABELLED, 0, 0)
        assert same(first, draw(settings, 7, stream, 5, 2))


def test_seed_stream_step_and_slot_each_change_every_part():
    settings = settings_of("histology")
    base = draw(settings, 7, UNLABELLED, 5, 2)
    others = [(8, UNLABELLED, 5, 2), (7, LABELLED, 5, 2), (7, UNLABELLED, 6, 2), (7, UNLABELLED, 5, 3)]
    for arguments in [*others, (7, UNLABELLED, 2, 5)]:
        other = draw(settings, *arguments)
        assert base.geometry != other.geometry, arguments
        assert base.weak != other.weak, arguments
        assert base.strong != other.strong, arguments
        assert np.intersect1d(base.channel_noise, other.channel_noise).size == 0, arguments


@pytest.mark.parametrize("augment", ["histology", "natural"])
def test_a_labelled_sample_draws_what_it_shows_and_no_more(augment):
    drawn = draw(settings_of(augment), 7, LABELLED, 5, 2)
    assert (drawn.strong, drawn.boxes, drawn.channel_noise.shape) == ((), (), (0,))
    assert drawn.geometry != Geometry(1.0, 0.0, 0.0, False, 0)
    assert drawn.weak != NEUTRAL


def test_neighbours_are_not_one_stream_shifted():
    """A sample takes some dozens of numbers: none of the first thousand is found in a neighbour's."""
    first = generator(7, LABELLED, 5, 2).random(1000)
    for stream, step, slot in ((LABELLED, 5, 3), (LABELLED, 6, 2), (UNLABELLED, 5, 2), (LABELLED, 2, 5)):
        assert np.intersect1d(first, generator(7, stream, step, slot).random(1000)).size == 0


def test_streams_slots_and_steps_are_uncorrelated():
    settings = settings_of("histology")
    noise = {
        stream: np.array(
            [[draw(settings, 0, stream, step, slot).geometry.top for slot in (0, 1)] for step in range(500)]
        )
        for stream in (LABELLED, UNLABELLED)
    }
    a, b = noise[LABELLED], noise[UNLABELLED]
    pairs = [(a[:, 0], b[:, 0]), (a[:, 0], a[:, 1]), (a[:-1, 0], a[1:, 0]), (b[:-1, 1], b[1:, 0])]
    for one, other in pairs:
        assert abs(np.corrcoef(one, other)[0, 1]) < 4 / np.sqrt(len(one))


def test_channels_are_drawn_last_so_that_their_number_changes_nothing_else():
    few = draw(DrawSettings("histology", CROP, (0.5, 2.0), 0.5, 0), 0, UNLABELLED, 1, 1)
    more = draw(DrawSettings("histology", CROP, (0.5, 2.0), 0.5, 5), 0, UNLABELLED, 1, 1)
    assert (few.geometry, few.strong, few.boxes) == (more.geometry, more.strong, more.boxes)
    assert few.channel_noise.shape == (0,)
    assert more.channel_noise.shape == (5,)


@given(seed=st.integers(0, 2**40), length=st.integers(1, 40), epoch=st.integers(0, 5), stream=st.sampled_from([0, 1]))
def test_every_image_stands_once_in_an_epoch(seed, length, epoch, stream):
    places = range(epoch * length, (epoch + 1) * length)
    assert sorted(image_index(seed, stream, place, length) for place in places) == list(range(length))


def test_epochs_streams_and_seeds_are_shuffled_differently():
    def order(seed: int, stream: int, epoch: int) -> list[int]:
        return [image_index(seed, stream, epoch * 30 + place, 30) for place in range(30)]

    orders = [order(0, LABELLED, 0), order(0, LABELLED, 1), order(0, UNLABELLED, 0), order(1, LABELLED, 0)]
    assert len({tuple(one) for one in [*orders, list(range(30))]}) == 5
    assert order(0, LABELLED, 1) == orders[1]


def test_the_order_of_images_is_fair():
    """Over 600 epochs each of five images comes first in about a fifth."""
    first = np.bincount([image_index(0, LABELLED, 5 * epoch, 5) for epoch in range(600)], minlength=5)
    assert np.abs(first - 120).max() < 4 * np.sqrt(600 * 0.2 * 0.8)


@given(
    zoom=st.floats(0.1, 10),
    top=st.floats(0, 1, exclude_max=True),
    left=st.floats(0, 1, exclude_max=True),
    height=st.integers(16, 300),
    width=st.integers(16, 300),
    crop=st.integers(16, 256),
    scale=st.floats(0.05, 8),
)
def test_the_region_lies_inside_the_image_or_starts_at_its_edge(zoom, top, left, height, width, crop, scale):
    y, x, side = Geometry(zoom, top, left, False, 0).region(height, width, crop, scale)
    assert abs(side - crop / (scale * zoom)) <= 0.5 or side == 1
    for start, room in ((y, height), (x, width)):
        assert start >= 0
        assert start + side <= max(room, side)


def test_regions_reach_every_place_equally_often(histology):
    places = [Geometry(1.0, drawn.geometry.top, 0.0, False, 0) for drawn in histology]
    tops = np.bincount([place.region(20, 16, 16, 1.0)[0] for place in places], minlength=5)
    assert len(tops) == 5  # 20 − 16 + 1 places, the last one too
    assert np.abs(tops - COUNT / 5).max() < 4 * np.sqrt(COUNT * 0.2 * 0.8)


def test_geometry_has_the_stated_distributions(histology, natural):
    for drawn in (histology, natural):
        geometries = [one.geometry for one in drawn]
        assert_uniform([np.log(g.zoom) for g in geometries], np.log(0.5), np.log(2))
        assert_uniform([g.top for g in geometries], 0, 1)
        assert_uniform([g.left for g in geometries], 0, 1)
        assert abs(shares([g.flip for g in geometries]) - 0.5) < 0.05
    turns = np.bincount([one.geometry.quarter_turns for one in histology], minlength=4)
    assert len(turns) == 4
    assert np.abs(turns - COUNT / 4).max() < 4 * np.sqrt(COUNT * 3 / 16)
    assert {one.geometry.quarter_turns for one in natural} == {0}


@pytest.mark.parametrize("crop", [16, 64, 256])
def test_cutmix_boxes_have_the_stated_frequency_area_and_ratio(crop):
    settings = settings_of("histology", crop=crop)
    boxes = np.array([draw(settings, 0, UNLABELLED, step, 0).boxes for step in range(600)]).reshape(-1, 4)
    mixed = boxes.any(axis=1)
    assert abs(mixed.mean() - 0.5) < 0.06
    top, left, bottom, right = boxes[mixed].T
    height, width = bottom - top, right - left
    assert boxes.min() >= 0
    assert boxes.max() <= crop
    assert min(height.min(), width.min()) >= 1
    # sides are cut to whole pixels, so the real-valued box lies between (h, w) and (h + 1, w + 1)
    assert (height * width <= 0.4 * crop**2).all()
    assert ((height + 1) * (width + 1) > 0.02 * crop**2).all()
    assert (height / (width + 1) < 1 / 0.3).all()
    assert ((height + 1) / width > 0.3).all()
    if crop == 256:
        area, ratio = height * width / crop**2, height / width
        assert area.min() < 0.05
        assert area.max() > 0.3
        assert ratio.min() < 0.45
        assert ratio.max() > 2.2
        assert top.min() < 20
        assert bottom.max() > 236


def boxes_by_the_formula(crop: int, count: int) -> list[tuple[int, int, int, int]]:
    """UniMatch's boxes once more, with Python's own random numbers: one area, ratio and corner until the box fits."""
    source, boxes = random.Random(11), []
    for _ in range(count):
        if source.random() > 0.5:
            boxes.append((0, 0, 0, 0))
            continue
        pixels, fits = source.uniform(0.02, 0.4) * crop**2, False
        while not fits:
            ratio = source.uniform(0.3, 10 / 3)
            tall, wide = math.floor((pixels * ratio) ** 0.5), math.floor((pixels / ratio) ** 0.5)
            y, x = source.randrange(crop), source.randrange(crop)
            fits = y <= crop - tall and x <= crop - wide
        boxes.append((y, x, y + tall, x + wide))
    return boxes


def assert_same_distribution(ours: np.ndarray, theirs: np.ndarray) -> None:
    """No further apart than Smirnov's 0.1 % quantile, 1.95·√(1/n + 1/m)."""
    places = np.sort(np.concatenate([ours, theirs]))
    shares = [np.searchsorted(np.sort(x), places, side="right") / len(x) for x in (ours, theirs)]
    assert np.abs(shares[0] - shares[1]).max() < 1.95 * np.sqrt(1 / len(ours) + 1 / len(theirs))


def test_cutmix_boxes_are_distributed_as_in_the_public_code():
    """Half of the crops get a box, with a median of a fifth of the crop, so that a tenth of all pixels is mixed. If the
    area too were drawn anew at each try, it would be .118 and .0705."""
    settings = settings_of("natural", crop=256)
    drawn = [draw(settings, 0, UNLABELLED, step, 0).boxes for step in range(3000)]
    ours = np.array(drawn).reshape(-1, 4)
    theirs = np.array(boxes_by_the_formula(256, 20000))
    area_of = {name: (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) / 256**2 for name, b in (("ours", ours), ("", theirs))}
    of_boxes = {name: area[area > 0] for name, area in area_of.items()}
    assert np.median(of_boxes["ours"]) == pytest.approx(0.207, abs=0.015)
    assert area_of["ours"].mean() == pytest.approx(0.104, abs=0.007)
    assert_same_distribution(of_boxes["ours"], of_boxes[""])
    for side in range(4):
        assert_same_distribution(ours[area_of["ours"] > 0, side], theirs[area_of[""] > 0, side])


class LargestArea:
    """A generator that always gives a box, of the largest area, and counts the tries."""

    def __init__(self, seed: int) -> None:
        self.g, self.drawn, self.tries = np.random.default_rng(seed), 0, 0

    def random(self) -> float:
        return 0.0

    def uniform(self, low: float, high: float) -> float:
        self.drawn += 1
        return high if self.drawn == 1 else self.g.uniform(low, high)

    def integers(self, high: int) -> int:
        self.tries += 1
        return int(self.g.integers(high))


def test_the_largest_box_fits_after_a_few_tries():
    """A try fits with probability 1/17: a thousand boxes take 17,000 tries, and 500 for one are as likely as 1e-13."""
    tries = []
    for seed in range(1000):
        counting = LargestArea(seed)
        top, left, bottom, right = _cutmix_box(counting, 256)  # type: ignore[arg-type]
        assert (bottom - top) * (right - left) > 0.38 * 256**2
        tries.append(counting.tries / 2)  # a row and a column each
    assert 14 < np.mean(tries) < 19
    assert max(tries) < 500


def test_the_two_views_of_a_sample_are_drawn_apart(histology):
    first = [one.boxes[0] != (0, 0, 0, 0) for one in histology]
    second = [one.boxes[1] != (0, 0, 0, 0) for one in histology]
    assert abs(shares([a and b for a, b in zip(first, second, strict=True)]) - 0.25) < 0.05
    assert not any(a == b for a, b in (one.strong for one in histology))


def test_channel_noise_is_uniform(histology):
    noise = np.stack([one.channel_noise for one in histology])
    assert noise.dtype == np.float32
    assert noise.shape == (COUNT, CHANNELS)
    assert noise.max() < 1
    assert_uniform(noise.ravel().tolist(), 0, 1)
    assert abs(np.corrcoef(noise[:, 0], noise[:, 1])[0, 1]) < 4 / np.sqrt(COUNT)


def test_histology_colours_have_the_stated_ranges_and_frequencies(histology):
    strong = [view for one in histology for view in one.strong]
    assert_uniform([view.brightness for view in strong], 0.75, 1.25)
    assert_uniform([view.contrast for view in strong], 0.75, 1.25)
    stained = [view for view in strong if view.stain != NEUTRAL.stain]
    assert abs(len(stained) / len(strong) - 0.9) < 0.03
    for place, (low, high) in enumerate([(0.65, 1.35), (-0.08, 0.08)] * 2):
        assert_uniform([view.stain[place] for view in stained], low, high)
    assert abs(shares([view.blur > 0 for view in strong]) - 0.5) < 0.04
    assert_uniform([view.blur for view in strong if view.blur], 0.1, 1.5)
    assert abs(shares([view.jpeg > 0 for view in strong]) - 0.3) < 0.04
    assert {view.jpeg for view in strong if view.jpeg} == set(range(30, 91))
    assert all((view.saturation, view.hue, view.grey) == (1.0, 0.0, False) for view in strong)


def test_natural_colours_have_the_stated_ranges_and_frequencies(natural):
    """UniMatch (CVPR 2023): jitter (.5, .5, .5, .25) with p .8, grey p .2, blur σ U(.1, 2) p .5."""
    strong = [view for one in natural for view in one.strong]
    jittered = [view for view in strong if view.brightness != 1]
    assert abs(len(jittered) / len(strong) - 0.8) < 0.03
    for name in ("brightness", "contrast", "saturation"):
        assert_uniform([getattr(view, name) for view in jittered], 0.5, 1.5)
    assert_uniform([view.hue for view in jittered], -0.25, 0.25)
    untouched = [view for view in strong if view.brightness == 1]
    assert {(view.contrast, view.saturation, view.hue) for view in untouched} == {(1.0, 1.0, 0.0)}
    assert len({view.order for view in jittered}) == 24
    assert abs(shares([view.grey for view in strong]) - 0.2) < 0.04
    assert abs(shares([view.blur > 0 for view in strong]) - 0.5) < 0.04
    assert_uniform([view.blur for view in strong if view.blur], 0.1, 2.0)
    assert all((view.stain, view.jpeg) == (NEUTRAL.stain, 0) for view in strong)


@pytest.mark.parametrize("augment", ["histology", "natural"])
def test_weak_colour_scales_the_weak_view_alone(augment):
    def weak_and_strong(share: float) -> list[tuple[ColourDraw, tuple[ColourDraw, ColourDraw]]]:
        settings = settings_of(augment, weak_colour=share)
        drawn = [draw(settings, 0, LABELLED, step, 0) for step in range(200)]
        return [(one.weak, one.strong) for one in drawn]

    none, half = weak_and_strong(0.0), weak_and_strong(0.5)
    assert [strong for _, strong in none] == [strong for _, strong in half]
    neutral = {(weak.brightness, weak.contrast, weak.saturation, weak.hue) for weak, _ in none}
    assert neutral == {(1.0, 1.0, 1.0, 0.0)}
    assert {(weak.stain, weak.blur, weak.grey, weak.jpeg) for weak, _ in none} == {(NEUTRAL.stain, 0.0, False, 0)}
    spread = 0.125 if augment == "histology" else 0.25
    furthest = max(abs(weak.brightness - 1) for weak, _ in half)
    assert 0.9 * spread < furthest <= spread
    assert 0.15 < shares([weak.blur > 0 for weak, _ in half]) < 0.35
