"""Calibration against plain numpy, pixel by pixel."""

import numpy as np
import pytest
import torch

from mpamatch.engine.calibration import (
    BINS,
    THRESHOLDS,
    Confidence,
    above,
    edges_with,
    expected_calibration_error,
    reliability,
)

OWN = 0.9333


def drawn(seed=0, shape=(40, 50)):
    """Confidences on and between the edges, predictions, and labels with ignored pixels."""
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.3, 1, shape)
    confidence[0, : len(THRESHOLDS)] = THRESHOLDS
    confidence[1, :BINS] = np.arange(BINS) / BINS
    confidence[2, :5] = [1.0, 1.0 + 1e-7, 0.0, OWN, 0.95]
    predicted = rng.integers(0, 3, shape)
    label = np.where(rng.random(shape) < 0.7, predicted, rng.integers(0, 3, shape)).astype(np.uint8)
    label[rng.random(shape) < 0.1] = 255
    return confidence, predicted, label


def counted(*seeds):
    edges = edges_with(OWN)
    each = [
        Confidence.count(edges, torch.from_numpy(confidence), torch.from_numpy(predicted), label).sums()
        for confidence, predicted, label in map(drawn, seeds)
    ]
    return edges, np.sum(each, axis=0)


def pixels(*seeds):
    """Confidence and whether it is right of every pixel that counts."""
    values, right = [], []
    for confidence, predicted, label in map(drawn, seeds):
        known = label != 255
        values.append(confidence[known])
        right.append((predicted == label)[known])
    return np.concatenate(values), np.concatenate(right)


def test_reliability_and_error_are_those_of_plain_numpy():
    edges, sums = counted(0, 1, 2)
    confidence, right = pixels(0, 1, 2)
    found, error = reliability(edges, sums), 0.0
    for number in range(BINS):
        low, high = number / BINS, (number + 1) / BINS
        mine = (confidence >= low) & ((confidence < high) | (number == BINS - 1))
        assert found[0, number] == mine.sum()
        if mine.any():
            np.testing.assert_allclose(found[1:, number], [right[mine].mean(), confidence[mine].mean()], rtol=1e-12)
            error += mine.mean() * abs(right[mine].mean() - confidence[mine].mean())
        else:
            assert np.isnan(found[1:, number]).all()
    assert expected_calibration_error(edges, sums) == pytest.approx(error, rel=1e-12)
    assert error > 0.01


@pytest.mark.parametrize("threshold", [*THRESHOLDS, OWN])
def test_what_lies_above_a_threshold_is_counted_exactly(threshold):
    edges, sums = counted(3, 4)
    confidence, right = pixels(3, 4)
    sure = confidence >= threshold
    np.testing.assert_allclose(above(edges, sums, threshold), [sure.mean(), right[sure].mean()], rtol=1e-12)


def test_several_sums_at_once_are_each_by_itself():
    edges, one = counted(5)
    _, other = counted(6)
    both = np.stack([one, other])
    np.testing.assert_array_equal(reliability(edges, both)[1], reliability(edges, other))
    np.testing.assert_array_equal(above(edges, both, 0.9)[0], above(edges, one, 0.9))
    assert expected_calibration_error(edges, both).shape == (2,)


def test_float32_confidences_are_compared_as_numbers():
    """.95 in float32 is below .95; of a tie between bins the upper one takes it."""
    edges = edges_with(None)
    value = torch.tensor([[0.95, 0.5]], dtype=torch.float32)
    found = Confidence.count(edges, value, torch.zeros(1, 2, dtype=torch.long), np.zeros((1, 2), np.uint8))
    assert above(edges, found.sums(), 0.95)[0] == 0
    assert reliability(edges, found.sums())[0, 10] == 1


def test_a_perfectly_calibrated_model_has_no_error():
    edges = edges_with(None)
    confidence = torch.full((10, 10), 0.8, dtype=torch.float64)
    label = np.zeros((10, 10), np.uint8)
    label[:2] = 1  # a fifth is wrong
    found = Confidence.count(edges, confidence, torch.zeros(10, 10, dtype=torch.long), label)
    assert expected_calibration_error(edges, found.sums()) == pytest.approx(0, abs=1e-12)
