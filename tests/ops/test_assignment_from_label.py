"""assignment_from_label: a label is the assignment of one prototype per class."""

import pytest
import torch

from mpamatch import ops


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
def test_255_becomes_minus_1(dtype: torch.dtype) -> None:
    assignment = ops.assignment_from_label(torch.tensor([0, 3, 255, 254, 255], dtype=dtype))
    assert assignment.dtype == torch.int32
    assert assignment.tolist() == [0, 3, -1, 254, -1]


def test_no_pixels() -> None:
    assert ops.assignment_from_label(torch.zeros(0, dtype=torch.uint8)).shape == (0,)


def test_a_map_of_labels_keeps_its_pixels_in_order() -> None:
    label = torch.tensor([[[0, 1], [255, 2]]], dtype=torch.uint8)
    assert ops.assignment_from_label(label.flatten()).tolist() == [0, 1, -1, 2]


def test_a_float_label_is_refused() -> None:
    with pytest.raises((TypeError, ValueError), match="label"):
        ops.assignment_from_label(torch.zeros(3))
