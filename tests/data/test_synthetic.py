"""Synthetic tissue: repeatable, of both classes, varied by patient, not to be had by a colour threshold."""

import time

import numpy as np
import pytest
from skimage.color import rgb2hed, rgb2hsv
from skimage.filters import threshold_otsu

from mpamatch.data.synthetic import IMAGES_PER_PATIENT, group_of, synthesize
from mpamatch.errors import InputError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tissue():
    """100 images and labels, and the seconds of processor time they took."""
    start = time.thread_time()
    pairs = [synthesize(index, seed=0) for index in range(100)]
    seconds = time.thread_time() - start
    return np.stack([image for image, _ in pairs]), np.stack([label for _, label in pairs]), seconds


@pytest.mark.parametrize("size", [16, 97, 128, 256])
def test_shapes_and_ranges(size):
    image, label = synthesize(1, 0, size)
    assert image.shape == (size, size, 3)
    assert image.dtype == np.uint8
    assert label.shape == (size, size)
    assert label.dtype == np.uint8
    assert set(np.unique(label)) <= {0, 1}
    assert image.std() > 10


def test_same_arguments_same_image_whatever_came_before():
    image, label = synthesize(5, 3, 97)
    synthesize(6, 3, 97)
    np.random.default_rng().standard_normal(100)
    again, label_again = synthesize(5, 3, 97)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(label, label_again)


def test_index_and_seed_each_change_the_tissue():
    image, label = synthesize(0, 0)
    for other, label_other in (synthesize(1, 0), synthesize(0, 1)):
        assert (image != other).mean() > 0.5
        assert (label != label_other).any()


def test_glands_cover_a_third_and_are_missing_from_some_images(tissue):
    share = tissue[1].mean(axis=(1, 2))
    assert 0.2 < share.mean() < 0.4
    assert 0.03 <= (share == 0).mean() <= 0.35
    assert share.max() < 0.8  # background is in every image
    assert (share > 0.4).mean() > 0.1


def test_label_follows_the_picture(tissue):
    """Nuclei stand along the inner side of a gland's border: more haematoxylin there than just outside."""
    images, labels, _ = tissue
    inner, outer = [], []
    for image, label in zip(images, labels, strict=True):
        grown = _shift_or(label)
        shrunk = label.astype(bool)
        for _ in range(5):
            shrunk = ~_shift_or(~shrunk)
        darkness = 255 - image[..., 0].astype(float)
        inner.append(darkness[label.astype(bool) & ~shrunk].mean() if label.any() else np.nan)
        outer.append(darkness[_shift_or(grown) & ~label.astype(bool)].mean() if label.any() else np.nan)
    difference = np.array(inner) - np.array(outer)
    assert np.mean(difference[np.isfinite(difference)] > 10) > 0.9


def _shift_or(label):
    """The label grown by one pixel in the four directions."""
    padded = np.pad(label.astype(bool), 1, mode="edge")
    return padded[1:-1, 1:-1] | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]


def test_patients_differ_more_than_their_images(tissue):
    """Mean colour: the variance between patients is over 1.5 times that within; by chance it is a third."""
    colour = tissue[0].mean(axis=(1, 2)).reshape(-1, IMAGES_PER_PATIENT, 3)
    between = colour.mean(axis=1).var(axis=0)
    within = colour.var(axis=1).mean(axis=0)
    assert np.all(between > 1.5 * within)
    assert [group_of(index) for index in (0, 3, 4)] == ["patient-0000", "patient-0000", "patient-0001"]


def test_no_colour_threshold_finds_glands(tissue):
    """Otsu per image on red, green, blue, stains and saturation, either side: pooled Dice below 0.60."""
    labels = tissue[1][:40].astype(bool)
    high = np.stack([_above_otsu(image) for image in tissue[0][:40]], axis=-1)  # (128, 128, 7, 40)
    scores = []
    for channel in range(high.shape[2]):
        found = high[:, :, channel].transpose(2, 0, 1)
        scores += [_dice(found, labels), _dice(~found, labels)]
    assert max(scores) < 0.60


def _above_otsu(image):
    channels = np.concatenate([image / 255, rgb2hed(image), rgb2hsv(image)[..., 1:2]], axis=-1)
    return channels > [threshold_otsu(channels[..., channel]) for channel in range(channels.shape[-1])]


def _dice(found, label):
    return 2 * (found & label).sum() / (found.sum() + label.sum())


def test_two_hundred_images_in_under_fifteen_seconds(tissue):
    assert 2 * tissue[2] < 15


@pytest.mark.parametrize(("arguments", "field"), [((-1, 0), "index"), ((0, -1), "seed"), ((0, 0, 15), "size")])
def test_bad_arguments_are_named(arguments, field):
    with pytest.raises(InputError, match=field):
        synthesize(*arguments)
    if field == "index":
        with pytest.raises(InputError, match=field):
            group_of(-1)
