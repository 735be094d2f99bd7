"""The bootstrap over groups against plain numpy that draws groups and pools their pixels."""

import numpy as np
import pytest

from mpamatch.engine.intervals import bootstrap, sum_by_group

GROUPS = ["a", "a", "b", "c", "c", "c", "d", "e", "e", "f"]


def shares(sums):
    return sums[:, :1] / sums[:, 1:]


def images(seed=0):
    """Right pixels and all pixels of ten images."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(50, 200, len(GROUPS))
    return np.stack([rng.binomial(pixels, rng.uniform(0.5, 0.95, len(GROUPS))), pixels], axis=1).astype(float)


def test_intervals_are_those_of_drawing_groups_by_name():
    """Another generator, another way to draw: both ends agree within the error of 20,000 draws."""
    sums, rng = images(), np.random.default_rng(99)
    names = np.array(GROUPS)
    unique = np.unique(names)
    found = []
    for _ in range(20_000):
        chosen = rng.choice(unique, size=len(unique), replace=True)
        rows = np.concatenate([np.flatnonzero(names == name) for name in chosen])
        found.append(sums[rows, 0].sum() / sums[rows, 1].sum())
    (low, high) = bootstrap(sums, GROUPS, shares, draws=20_000)[0]
    np.testing.assert_allclose([low, high], np.percentile(found, [2.5, 97.5]), atol=0.004)
    assert low < sums[:, 0].sum() / sums[:, 1].sum() < high


def test_the_same_draws_give_the_same_numbers_exactly():
    sums = images()
    times = np.random.default_rng(7).multinomial(6, np.full(6, 1 / 6), size=300)
    by_group = {name: sums[np.array(GROUPS) == name].sum(0) for name in "abcdef"}
    values = []
    for row in times:
        total = np.sum([count * by_group[name] for count, name in zip(row, "abcdef", strict=True)], axis=0)
        values.append(total[0] / total[1])
    found = bootstrap(sums, GROUPS, shares, draws=300, seed=7)[0]
    np.testing.assert_allclose(found, np.percentile(values, [2.5, 97.5]), rtol=1e-12)


def test_images_of_one_patient_are_no_independent_ones():
    """Ten copies of each image in its group leave the interval as it is; as groups of their own they would not."""
    sums = images()
    copied, groups = np.repeat(sums, 10, axis=0), list(np.repeat(GROUPS, 10))
    np.testing.assert_allclose(bootstrap(copied, groups, shares)[0], bootstrap(sums, GROUPS, shares)[0], rtol=1e-12)
    low, high = bootstrap(sums, GROUPS, shares)[0]
    narrow = bootstrap(copied, [str(number) for number in range(len(copied))], shares)[0]
    assert narrow[1] - narrow[0] < 0.6 * (high - low)


def test_one_patient_has_no_interval():
    assert bootstrap(images(), ["a"] * len(GROUPS), shares) == [None]


def test_what_no_draw_has_has_no_interval_and_what_some_lack_has_one():
    sums = np.array([[1.0, 2.0], [0.0, 0.0], [3.0, 4.0]])

    def both(drawn):
        with np.errstate(invalid="ignore"):
            return np.concatenate([shares(drawn), np.full((len(drawn), 1), np.nan)], axis=1)

    found = bootstrap(sums, ["a", "b", "c"], both)
    assert found[1] is None
    assert found[0] is not None
    assert 0.5 <= found[0][0] <= found[0][1] <= 0.75


def test_groups_are_added_up_in_the_order_of_their_names():
    found = sum_by_group(np.array([[1.0], [2.0], [4.0]]), ["b", "a", "b"])
    np.testing.assert_array_equal(found, [[2.0], [5.0]])


@pytest.mark.parametrize("seed", [0, 1])
def test_the_seed_decides(seed):
    assert bootstrap(images(), GROUPS, shares, seed=seed) == bootstrap(images(), GROUPS, shares, seed=seed)
    assert bootstrap(images(), GROUPS, shares, seed=seed) != bootstrap(images(), GROUPS, shares, seed=seed + 1)
