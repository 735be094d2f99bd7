"""signed_distance against a search of all pixels in float64 numpy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from mpamatch import ops
from mpamatch.ops import dispatch, native
from tests.ops import truth
from tests.ops.cases import IGNORE, array
from tests.ops.strategies import SEEDS, SHARES

pytestmark = pytest.mark.usefixtures("backend")


def blobs(shape: tuple[int, int, int], classes: int, ignored: float, grain: int, seed: int) -> Tensor:
    """Squares of `grain` pixels of random classes, the last of several absent; some pixels ignored: (B, H, W) u8."""
    generator = torch.Generator().manual_seed(seed)
    batch, height, width = shape
    coarse = (batch, height // grain + 1, width // grain + 1)
    label = torch.randint(0, max(1, classes - 1), coarse, generator=generator)
    label = label.repeat_interleave(grain, 1).repeat_interleave(grain, 2)[:, :height, :width]
    return torch.where(torch.rand(shape, generator=generator) < ignored, IGNORE, label).to(torch.uint8)


LABELS = st.builds(
    blobs,
    shape=st.tuples(st.integers(0, 2), st.sampled_from([1, 2, 5, 13, 33]), st.sampled_from([1, 3, 8, 17, 31])),
    classes=st.integers(1, 4),
    ignored=SHARES,
    grain=st.sampled_from([1, 4, 40]),
    seed=SEEDS,
)


@given(LABELS, st.integers(1, 4))
@example(blobs((1, 0, 5), 2, 0.0, 1, 0), 2)
@example(blobs((1, 37, 53), 5, 0.01, 9, 0), 5)
def test_distances(label: Tensor, classes: int) -> None:
    distance = ops.signed_distance(label, classes)
    assert distance.dtype == torch.float32
    exact = truth.signed_distance(array(label), classes)
    np.testing.assert_array_equal(distance.numpy(), exact.astype(np.float32))


def test_by_hand() -> None:
    """A square of 4 pixels, 3 of them in a row of their own; the border of the image is no boundary."""
    label = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 1, 1]])[None]
    one = ops.signed_distance(label, 2)[0, 1]
    two, five = math.sqrt(2), math.sqrt(5)
    expected = [[13**0.5, 8**0.5, five, 2, 2], [10**0.5, five, two, 1, 1], [3, 2, 1, 0, 0], [3, 2, 1, 0, -2]]
    torch.testing.assert_close(one, torch.tensor(expected))


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 4, 7), (2, 1, 9), (1, 9, 1)])
def test_a_class_that_is_absent_or_fills_the_image(shape: tuple[int, int, int]) -> None:
    distance = ops.signed_distance(torch.zeros(shape, dtype=torch.int64), 2)
    diagonal = math.hypot(*shape[1:])
    torch.testing.assert_close(distance[:, 0], torch.full(shape, -diagonal))
    torch.testing.assert_close(distance[:, 1], torch.full(shape, diagonal))


def test_one_image_does_not_see_another() -> None:
    label = torch.stack([blobs((1, 9, 11), 3, 0.1, 3, seed)[0] for seed in range(3)])
    together = ops.signed_distance(label, 3)
    alone = torch.cat([ops.signed_distance(image[None], 3) for image in label])
    assert torch.equal(together, alone)


def test_an_ignored_pixel_is_outside_every_class() -> None:
    label = torch.zeros(1, 5, 5, dtype=torch.uint8)
    label[0, 2, 2] = IGNORE
    distance = ops.signed_distance(label, 1)[0, 0]
    assert distance[2, 2] == 1
    assert distance[1, 2] == 0
    assert distance[0, 0] == -torch.tensor(8.0).sqrt()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_a_label_outside_the_classes_is_of_no_class(dtype: torch.dtype) -> None:
    limits = torch.iinfo(dtype)
    beyond = [3, limits.max, limits.min if limits.min < 0 else 4, 100]
    beyond += [2**32, 2**32 + 1, -(2**32)] if dtype == torch.int64 else []
    label = blobs((1, 2, len(beyond)), 4, 0.0, 1, 1)
    wrong, ignored = label.to(dtype), label.clone()
    wrong[0, 1], ignored[0, 1] = torch.tensor(beyond, dtype=dtype), IGNORE
    assert torch.equal(ops.signed_distance(wrong, 3), ops.signed_distance(ignored, 3))


def test_a_flip_or_a_quarter_turn_of_the_image_is_one_of_the_distances() -> None:
    label = blobs((2, 23, 23), 4, 0.05, 5, 3)
    distance = ops.signed_distance(label, 3)
    assert torch.equal(ops.signed_distance(label.flip(-1), 3), distance.flip(-1))
    assert torch.equal(ops.signed_distance(label.rot90(1, (1, 2)), 3), distance.rot90(1, (2, 3)))


def test_the_same_bits_twice_and_on_both_backends() -> None:
    """Also where a squared distance is no float32: a single pixel in the corner of an image 4,200 pixels wide."""
    wide = torch.zeros(1, 2, 4200, dtype=torch.uint8)
    wide[0, 0, 0] = 1
    for label, classes in ((blobs((2, 130, 67), 5, 0.01, 20, 4), 5), (wide, 1)):
        distance = ops.signed_distance(label, classes)
        assert torch.equal(distance, ops.signed_distance(label, classes))
        if native.missing("cpu") is None:
            with dispatch.using("cpp"):
                assert torch.equal(distance, ops.signed_distance(label, classes))


def test_255_classes() -> None:
    label = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
    distance = ops.signed_distance(label, 255)
    inside = distance.flatten(2) <= 0
    assert torch.equal(inside.sum(2), torch.ones(1, 255, dtype=torch.int64))
    assert torch.equal(inside.int().argmax(2)[0], torch.arange(255))


@pytest.mark.parametrize(
    ("label", "classes", "name"),
    [
        (torch.zeros(4, 5, dtype=torch.uint8), 2, "label"),
        (torch.zeros(1, 2, 4, 5, dtype=torch.uint8), 2, "label"),
        (torch.zeros(1, 4, 5), 2, "label"),
        (torch.zeros(1, 1, 16_385, dtype=torch.uint8), 2, "label"),
        (torch.zeros(1, 16_385, 1, dtype=torch.uint8), 2, "label"),
        (torch.zeros(1, 4, 5, dtype=torch.uint8), 0, "num_classes"),
        (torch.zeros(1, 4, 5, dtype=torch.uint8), 256, "num_classes"),
    ],
)
def test_bad_input_is_refused_by_name(label: Tensor, classes: int, name: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{name}: expected"):
        ops.signed_distance(label, classes)
