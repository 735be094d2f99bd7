"""Scores against cases worked by hand and against slow, separately written numpy."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mpamatch.engine.metrics import SegmentationMetrics
from mpamatch.errors import InputError

Label = NDArray[np.uint8]
THREE = ("background", "benign", "malignant")
TWO = ("background", "gland")


def scores(pairs: list[tuple[Label, Label]], class_names: tuple[str, ...] = TWO, **options: Any) -> dict[str, Any]:
    metrics = SegmentationMetrics(class_names, **{"objects": True, **options})
    for pred, true in pairs:
        metrics.update(pred, true)
    return metrics.compute()


def drawn(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (20, 30), index: int = 1) -> Label:
    """Rectangles (top, left, bottom, right) of class `index`."""
    label = np.zeros(size, dtype=np.uint8)
    for top, left, bottom, right in boxes:
        label[top:bottom, left:right] = index
    return label


def noise(seed: int, classes: int, size: tuple[int, int] = (14, 17), ignored: float = 0.1) -> tuple[Label, Label]:
    """Blobs rather than pixel noise, so that there are objects of several sizes."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, classes, (2, size[0] // 3 + 1, size[1] // 3 + 1))
    pred, true = np.kron(coarse, np.ones((1, 3, 3), int))[:, : size[0], : size[1]].astype(np.uint8)
    pred = np.where(generator.random(size) < 0.2, generator.integers(0, classes, size), pred).astype(np.uint8)
    agree = generator.random(size) < 0.5
    true = np.where(agree, pred, true).astype(np.uint8)
    true[generator.random(size) < ignored] = 255
    return pred, true


# --- separately written ----------------------------------------------------------------------------


def slow_dice_iou(pairs: list[tuple[Label, Label]], index: int) -> tuple[float, float] | None:
    both = either = total = 0
    for pred, true in pairs:
        a, b = (pred == index) & (true != 255), true == index
        both += int((a & b).sum())
        either += int((a | b).sum())
        total += int(a.sum() + b.sum())
    return (2 * both / total, both / either) if total else None


def slow_objects(label: Label, index: int, smallest: int) -> list[set[tuple[int, int]]]:
    """Flood fill over eight neighbours."""
    left = {(int(y), int(x)) for y, x in np.argwhere(label == index)}
    found = []
    while left:
        grown: set[tuple[int, int]] = set()
        edge = [left.pop()]
        while edge:
            y, x = edge.pop()
            grown.add((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            edge += near
        if len(grown) >= smallest:
            found.append(grown)
    return found


def slow_hausdorff(a: set[tuple[int, int]], b: set[tuple[int, int]]) -> float:
    table = np.array([[math.dist(p, q) for q in b] for p in a])
    return float(max(table.min(axis=0).max(), table.min(axis=1).max()))


def slow_partner(one: set[tuple[int, int]], others: list[set[tuple[int, int]]]) -> set[tuple[int, int]]:
    return max(others, key=lambda other: len(other & one), default=set())


def slow_object_scores(pairs: list[tuple[Label, Label]], classes: int, smallest: int = 0) -> dict[str, float | None]:
    hits = extra = missed = 0
    weights: tuple[list[float], list[float]] = ([], [])
    dices: tuple[list[float], list[float]] = ([], [])
    distances: tuple[list[float], list[float]] = ([], [])
    for pred, true in pairs:
        for index in range(1, classes):
            truths = slow_objects(true, index, smallest)
            guesses = slow_objects(np.where(true == 255, 0, pred), index, smallest)
            hit_truths = []
            for guess in guesses:
                best = slow_partner(guess, truths)
                if best & guess and len(best & guess) >= 0.5 * len(best):
                    hits += 1
                    hit_truths.append(best)
                else:
                    extra += 1
            missed += sum(truth not in hit_truths for truth in truths)
            for side, (mine, others) in enumerate(((truths, guesses), (guesses, truths))):
                for one in mine:
                    best = slow_partner(one, others)
                    weights[side].append(len(one))
                    dices[side].append(2 * len(one & best) / (len(one) + len(best)))
                    if one & best:
                        distances[side].append(slow_hausdorff(one, best))
                    else:
                        far = math.hypot(*true.shape)
                        distances[side].append(min((slow_hausdorff(one, other) for other in others), default=far))
    sides = [side for side in (0, 1) if weights[side]]
    if not sides:
        return {"f1": None, "dice": None, "hausdorff": None}
    return {
        "f1": 2 * hits / (2 * hits + extra + missed),
        "dice": float(np.mean([np.average(dices[side], weights=weights[side]) for side in sides])),
        "hausdorff": float(np.mean([np.average(distances[side], weights=weights[side]) for side in sides])),
    }


def unique_partners(pairs: list[tuple[Label, Label]], classes: int) -> bool:
    """Whether no object shares equally many pixels with two others (either could then be its partner)."""
    for pred, true in pairs:
        for index in range(1, classes):
            truths = slow_objects(true, index, 0)
            guesses = slow_objects(np.where(true == 255, 0, pred), index, 0)
            table = np.array([[len(a & b) for b in guesses] for a in truths]).reshape(len(truths), len(guesses))
            for rows in (table, table.T):
                for row in rows:
                    top = np.sort(row)[::-1]
                    if len(top) > 1 and top[0] > 0 and top[0] == top[1]:
                        return False
    return True


# --- by hand ---------------------------------------------------------------------------------------


def test_pooled_and_per_image_by_hand() -> None:
    first = (np.array([[1, 1, 0, 0]]), np.array([[1, 0, 0, 0]]))
    second = (np.array([[0, 0, 0, 0]]), np.array([[1, 0, 255, 0]]))
    result = scores([first, second])
    # gland: hits 1, predicted 2, true 2; background: hits 2 + 2, predicted 2 + 3, true 3 + 2
    assert result["dice"] == pytest.approx({"background": 8 / 10, "gland": 2 / 4})
    assert result["iou"] == pytest.approx({"background": 4 / 6, "gland": 1 / 3})
    assert result["mdice"] == pytest.approx(0.65)
    assert result["miou"] == pytest.approx(0.5)
    assert result["foreground_dice"] == pytest.approx(0.5)
    assert result["foreground_iou"] == pytest.approx(1 / 3)
    # per image: gland 2/3 and 0, background 4/5 and 4/5
    assert result["per_image"] == pytest.approx(
        {
            "mdice": ((2 / 3 + 4 / 5) / 2 + (0 + 4 / 5) / 2) / 2,
            "miou": ((1 / 2 + 2 / 3) / 2 + (0 + 2 / 3) / 2) / 2,
            "foreground_dice": 1 / 3,
            "foreground_iou": 1 / 4,
        }
    )


def test_class_that_is_nowhere_is_none_and_in_no_mean() -> None:
    label = drawn((2, 2, 9, 9))
    result = scores([(label, label)], THREE)
    assert result["dice"] == {"background": 1.0, "benign": 1.0, "malignant": None}
    assert result["mdice"] == result["foreground_iou"] == 1.0
    only_predicted = scores([(drawn((2, 2, 9, 9), index=2), drawn())], THREE)
    assert only_predicted["dice"]["malignant"] == 0
    assert only_predicted["dice"]["benign"] is None


def test_background_only_images_do_not_count_for_the_foreground() -> None:
    gland = drawn((0, 0, 10, 10))
    result = scores([(drawn(), drawn()), (gland, gland)])
    assert result["per_image"] == {"mdice": 1.0, "miou": 1.0, "foreground_dice": 1.0, "foreground_iou": 1.0}
    nothing = scores([(drawn(), drawn())])
    assert nothing["mdice"] == 1.0
    assert nothing["foreground_dice"] is None
    assert nothing["per_image"]["foreground_dice"] is None


@pytest.mark.parametrize("pairs", [[], [(drawn((0, 0, 5, 5)), np.full((20, 30), 255, np.uint8))]])
def test_nothing_counted_is_all_none(pairs: list[tuple[Label, Label]]) -> None:
    result = scores(pairs)
    none = {"mdice": None, "miou": None, "foreground_dice": None, "foreground_iou": None}
    assert result == {
        **none,
        "dice": {"background": None, "gland": None},
        "iou": {"background": None, "gland": None},
        "precision": {"background": None, "gland": None},
        "recall": {"background": None, "gland": None},
        "per_image": none,
        "objects": {"f1": None, "dice": None, "hausdorff": None},
    }
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_objects_by_hand() -> None:
    """A gland of 10 × 10 found shifted by two columns, one of 5 × 5 missed, and a false one of 4 × 4."""
    true = drawn((0, 0, 10, 10), (14, 0, 19, 5))
    pred = drawn((0, 2, 10, 12), (14, 20, 18, 24))
    result = scores([(pred, true)])["objects"]
    assert result["f1"] == pytest.approx(2 * 1 / (2 * 1 + 1 + 1))
    dice = 2 * 80 / 200
    assert result["dice"] == pytest.approx((100 * dice / 125 + 100 * dice / 116) / 2)
    # the missed gland is nearest to the shifted one, of which the pixel (0, 11) is farthest, from (14, 4);
    # the false one is nearest to the missed one, of which the pixel (18, 0) is farthest, from (17, 20)
    missed, false = math.hypot(14, 7), math.hypot(1, 20)
    assert result["hausdorff"] == pytest.approx(((100 * 2 + 25 * missed) / 125 + (100 * 2 + 16 * false) / 116) / 2)


def test_half_of_the_true_object_is_detected_and_less_is_not() -> None:
    true = drawn((0, 0, 10, 10))
    assert scores([(drawn((0, 0, 5, 10)), true)])["objects"]["f1"] == 1.0
    assert scores([(drawn((0, 0, 5, 10)), drawn((0, 0, 11, 10)))])["objects"]["f1"] == 0.0


def test_no_predicted_object_costs_the_diagonal() -> None:
    result = scores([(drawn(size=(30, 40)), drawn((0, 0, 10, 10), size=(30, 40)))])["objects"]
    assert result == {"f1": 0.0, "dice": 0.0, "hausdorff": pytest.approx(50.0)}
    other_way = scores([(drawn((0, 0, 10, 10), size=(30, 40)), drawn(size=(30, 40)))])["objects"]
    assert other_way == result


def test_corners_connect() -> None:
    true = np.eye(6, dtype=np.uint8)
    assert scores([(true, true)])["objects"] == {"f1": 1.0, "dice": 1.0, "hausdorff": 0.0}
    half = true.copy()
    half[3:] = 0
    assert scores([(half, true)])["objects"]["f1"] == 1.0  # half of one object of six, not three of six objects


def test_inside_of_a_ring_counts() -> None:
    """The disc that fills a ring is farthest from it in its middle, not at its border."""
    disc = drawn((0, 0, 9, 9))
    ring = disc.copy()
    ring[1:8, 1:8] = 0
    assert scores([(ring, disc)])["objects"]["hausdorff"] == 4.0


def test_small_objects_are_left_out_where_asked() -> None:
    true, speckled = drawn((0, 0, 10, 10)), drawn((0, 0, 10, 10), (15, 15, 17, 16))
    assert scores([(speckled, true)])["objects"]["f1"] == pytest.approx(2 / 3)
    assert scores([(speckled, true)], smallest_object=2)["objects"]["f1"] == pytest.approx(2 / 3)
    assert scores([(speckled, true)], smallest_object=3)["objects"] == {
        "f1": 1.0,
        "dice": 1.0,
        "hausdorff": 0.0,
    }


def test_objects_meet_their_own_class_only() -> None:
    result = scores([(drawn((0, 0, 9, 9), index=2), drawn((0, 0, 9, 9), index=1))], THREE)["objects"]
    assert result == {"f1": 0.0, "dice": 0.0, "hausdorff": pytest.approx(math.hypot(20, 30))}


def test_objects_only_where_asked() -> None:
    assert "objects" not in scores([(drawn(), drawn())], objects=False)


# --- against the slow ones -------------------------------------------------------------------------


@given(seed=st.integers(0, 10**6), classes=st.integers(2, 4), images=st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_pixel_scores_equal_slow_ones(seed: int, classes: int, images: int) -> None:
    names = tuple("abcd"[:classes])
    pairs = [noise(seed + image, classes) for image in range(images)]
    result = scores(pairs, names, objects=False)
    pooled = [slow_dice_iou(pairs, index) for index in range(classes)]
    for index, name in enumerate(names):
        expected = pooled[index]
        assert (result["dice"][name], result["iou"][name]) == (pytest.approx(expected) if expected else (None, None))
    assert result["mdice"] == pytest.approx(np.mean([score[0] for score in pooled if score]))
    assert result["foreground_iou"] == pytest.approx(np.mean([score[1] for score in pooled[1:] if score]))
    means = [
        np.mean([score[1] for index in range(classes) if (score := slow_dice_iou([pair], index))]) for pair in pairs
    ]
    assert result["per_image"]["miou"] == pytest.approx(np.mean(means))


@given(seed=st.integers(0, 10**6), classes=st.integers(2, 3), smallest=st.sampled_from([0, 4]))
@settings(max_examples=25, deadline=None)
def test_object_scores_equal_slow_ones(seed: int, classes: int, smallest: int) -> None:
    pairs = [noise(seed + image, classes, ignored=0.02) for image in range(2)]
    pairs = [pair for pair in pairs if unique_partners([pair], classes)]
    expected = slow_object_scores(pairs, classes, smallest)
    assert scores(pairs, tuple("abc"[:classes]), smallest_object=smallest)["objects"] == pytest.approx(expected)


def test_comparison_with_slow_objects_is_no_empty_one() -> None:
    """Enough of the drawn labels have unique partners, several objects and unmatched ones."""
    kept = [pair for seed in range(40) if unique_partners([pair := noise(seed, 2, ignored=0.02)], 2)]
    assert len(kept) >= 10
    assert any(len(slow_objects(true, 1, 0)) >= 3 for _, true in kept)


# --- merging and bad input -------------------------------------------------------------------------


def test_merged_parts_equal_the_whole() -> None:
    pairs = [noise(seed, 3) for seed in range(6)]
    parts = [SegmentationMetrics(THREE, objects=True) for _ in range(2)]
    for index, (pred, true) in enumerate(pairs):
        parts[index % 2].update(pred, true)
    parts[0].merge(parts[1])
    whole = scores(pairs, THREE)
    merged = parts[0].compute()
    assert merged["dice"] == whole["dice"]
    for part in ("per_image", "objects"):
        assert merged[part] == pytest.approx(whole[part], rel=1e-12)


def test_merge_refuses_other_settings() -> None:
    with pytest.raises(InputError, match="class_names"):
        SegmentationMetrics(TWO, objects=True).merge(SegmentationMetrics(THREE, objects=True))
    with pytest.raises(InputError, match="smallest_object"):
        SegmentationMetrics(TWO, objects=True).merge(SegmentationMetrics(TWO, objects=True, smallest_object=9))


def test_tensors_and_arrays_give_the_same() -> None:
    pred, true = noise(3, 2)
    assert scores([(pred, true)]) == scores([(torch.from_numpy(pred), torch.from_numpy(true))])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("pred", "true", "words"),
    [
        (drawn(), drawn(size=(20, 31)), "of one size"),
        (np.zeros((1, 20, 30), np.uint8), np.zeros((1, 20, 30), np.uint8), "of one size"),
        (drawn((0, 0, 2, 2), index=2), drawn(), "predicted label: has index 2, classes are 0..1"),
        (drawn(), drawn((0, 0, 2, 2), index=3), "true label: has index 3"),
        (drawn(), drawn().astype(np.int16) - 1, "true label: has index -1"),
    ],
)
def test_labels_refused(pred: Label, true: Label, words: str) -> None:
    metrics = SegmentationMetrics(TWO, objects=True)
    with pytest.raises(InputError, match=words):
        metrics.update(pred, true)
    assert metrics.confusion.sum() == 0


def test_settings_refused() -> None:
    with pytest.raises(InputError, match="at least two"):
        SegmentationMetrics(("gland",), objects=False)
    with pytest.raises(InputError, match="ignore index 1"):
        SegmentationMetrics(TWO, objects=False, ignore=1)


def test_numbers_tell_objects_apart_that_regions_do_not() -> None:
    """Two squares that touch: as numbers both are found, as one region one is, and its Dice is that of the larger."""
    label = np.zeros((10, 20), dtype=np.uint8)
    label[2:8, 2:14] = 1
    numbers = np.zeros(label.shape, dtype=np.uint16)
    numbers[2:8, 2:8], numbers[2:8, 8:14] = 7, 40_000
    apart, merged = (SegmentationMetrics(("background", "gland"), objects=True) for _ in range(2))
    apart.update(label, label, numbers, numbers)
    merged.update(label, label, None, numbers)
    assert apart.compute()["objects"] == {"f1": 1, "dice": 1, "hausdorff": 0}
    assert merged.object_sums[:3].tolist() == [1, 0, 1]
    assert merged.compute()["objects"]["f1"] == pytest.approx(2 / 3)
    assert merged.compute()["objects"]["dice"] == pytest.approx(2 * 36 / (36 + 72))


def test_an_object_in_two_pieces_is_one_and_ignored_pixels_are_of_none() -> None:
    label = np.zeros((10, 20), dtype=np.uint8)
    label[2:8, 2:6] = label[2:8, 10:14] = 1
    numbers = (3 * label).astype(np.uint16)
    metrics = SegmentationMetrics(("background", "gland"), objects=True)
    metrics.update(label, label, numbers, numbers)
    assert metrics.object_sums[:3].tolist() == [1, 0, 0]
    ignored = np.where(numbers > 0, 255, 0)
    nothing = SegmentationMetrics(("background", "gland"), objects=True)
    nothing.update(label, ignored, numbers, numbers)
    assert nothing.object_sums.tolist() == [0] * 9
