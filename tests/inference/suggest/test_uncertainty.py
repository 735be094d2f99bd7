"""How unsure a model is: against numpy in float64, whatever batches the looks share."""

import numpy as np
import pytest
import torch

from mpamatch.data.augment import strong_views
from mpamatch.errors import InputError
from mpamatch.inference.suggest.uncertainty import entropy, features_of, look_at_each
from tests.inference.slides import small_segmenter
from tests.inference.suggest.network import looking, noise

SIZES = [(32, 32), (32, 32), (20, 50), (75, 52), (32, 32)]


def images() -> list[np.ndarray]:
    return [noise(seed, *size) for seed, size in enumerate(SIZES)]


def entropy_in_numpy(probability: np.ndarray) -> np.ndarray:
    p = probability.astype(np.float64)
    return -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(0) / np.log(len(p))


def test_entropy_is_that_of_numpy_and_between_0_and_1() -> None:
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 9, 7)) * 6)
    p = logits.softmax(0)
    p[:, 0, 0] = torch.tensor([1.0, 0, 0, 0])
    p[:, 0, 1] = 0.25
    found = entropy(p.float()).numpy()
    np.testing.assert_allclose(found, entropy_in_numpy(p.numpy()), atol=1e-6)
    assert found[0, 0] == 0
    assert found[0, 1] == pytest.approx(1)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_look_is_the_entropy_of_the_mean_over_flips(scale: float) -> None:
    segmenter = looking(scale=scale)
    for image, look in zip(images(), look_at_each(segmenter, images()), strict=True):
        turned = [(image, ())] + [(np.flip(image, axes).copy(), axes) for axes in ((0,), (1,), (0, 1))]
        each = [np.flip(segmenter.probabilities(one).double().numpy(), [a + 1 for a in axes]) for one, axes in turned]
        mean = np.mean(each, axis=0)
        np.testing.assert_allclose(look.uncertainty, entropy_in_numpy(mean), atol=2e-6)
        assert look.score == pytest.approx(entropy_in_numpy(mean).mean(), abs=2e-6)
        clear = np.sort(mean, axis=0)[-1] - np.sort(mean, axis=0)[-2] > 1e-5
        assert (look.label == mean.argmax(0))[clear].all()
        assert look.label.shape == look.uncertainty.shape == image.shape[:2]


@pytest.mark.parametrize("augment", ["histology", "natural"])
def test_disagreement_is_the_share_of_views_that_say_otherwise(augment: str) -> None:
    segmenter = looking()

    def views(image: np.ndarray) -> list[np.ndarray]:
        return strong_views(image, augment)

    scores = []
    for image, look in zip(images(), look_at_each(segmenter, images(), "disagreement", views), strict=True):
        label = segmenter.predict(image)
        others = np.stack([segmenter.predict(view) for view in views(image)])
        np.testing.assert_array_equal(look.label, label)
        np.testing.assert_array_equal(look.uncertainty, (others != label).mean(0))
        scores.append(look.score)
    assert max(scores) > 0


def test_strong_views_change_colours_alone_and_are_always_the_same() -> None:
    image = noise(3, 40, 24)
    first, second = strong_views(image, "histology")
    assert first.shape == second.shape == image.shape
    assert first.dtype == np.uint8
    for one, again in zip((first, second), strong_views(image, "histology"), strict=True):
        np.testing.assert_array_equal(one, again)
        assert (one != image).mean() > 0.5
    assert (first != second).any()


@pytest.mark.parametrize("threads", [1, 2])
def test_the_feature_is_the_mean_of_the_deepest_map_in_the_order_of_the_images(threads: int) -> None:
    own = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        segmenter = looking()
        small = [noise(seed) for seed in range(20)]
        found = list(features_of(segmenter, small))
        looks = [look.feature for look in look_at_each(segmenter, small)]
    finally:
        torch.set_num_threads(own)
    for image, feature, look in zip(small, found, looks, strict=True):
        pixels = (torch.from_numpy(image).permute(2, 0, 1) / 255 - torch.tensor([0.7, 0.6, 0.7])[:, None, None]) / 0.2
        deepest = segmenter.model.encoder(pixels[None])[1][0].double().mean((1, 2)).numpy()
        np.testing.assert_allclose(feature, deepest / np.linalg.norm(deepest), atol=1e-5)
        np.testing.assert_allclose(look, feature, atol=1e-6)


def test_the_feature_of_a_large_image_is_the_mean_over_its_windows() -> None:
    segmenter = looking(overlap=0.0)
    image = noise(9, 32, 64)
    parts = list(segmenter.probabilities_and_features([image[:, :32], image[:, 32:]]))
    ((_, whole),) = segmenter.probabilities_and_features([image])
    np.testing.assert_allclose(whole, (parts[0][1] + parts[1][1]) / 2, atol=1e-6)


def test_no_more_images_are_taken_than_fill_the_batches_under_way() -> None:
    taken = 0

    def counted():
        nonlocal taken
        for seed in range(100):
            taken += 1
            yield noise(seed)

    for done, _ in enumerate(look_at_each(looking(), counted()), start=1):
        assert taken - done <= 4  # batches of 3 views, of which an image has 4


def test_a_network_without_an_encoder_is_refused() -> None:
    with pytest.raises(InputError, match="no encoder"):
        list(look_at_each(small_segmenter(), images()))


def test_the_hook_is_gone_after_a_look_and_after_an_error() -> None:
    segmenter = looking()
    list(features_of(segmenter, images()))
    with pytest.raises(InputError):
        list(look_at_each(segmenter, [images()[0], np.zeros((4, 4), np.uint8)]))
    assert not segmenter.model.encoder._forward_hooks
