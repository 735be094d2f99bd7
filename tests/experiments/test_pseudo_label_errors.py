"""Pixels counted by hand."""

import numpy as np
import torch

from experiments.pseudo_label_errors import Errors


def test_a_row_of_twenty_pixels():
    """Ten of class 0, nine of class 1, one ignored: the predictions are right but for three pixels."""
    label = np.array([[0] * 10 + [1] * 9 + [255]], np.uint8)
    one = torch.tensor([[0.1] * 10 + [0.97] * 9 + [0.97]])
    one[0, 0] = 0.96  # confidently wrong, 10 pixels from the boundary
    one[0, 9] = 0.99  # confidently wrong at the boundary
    one[0, 10] = 0.4  # wrong, not confident
    errors = Errors(2, 0.95)
    errors.add(torch.stack([1 - one, one]), label)
    # 16 of 19 right; confident: 2 wrong ones and 8 of class 1; 2 of 10 wrong; pixels 0 and 1 lie more than 8 from
    # what is of another class (the last of class 1 is beside an ignored one), one of them confidently wrong; class 0
    # loses 2 of 10
    assert errors.cells() == ["84.2", "52.6", "20.0", "50.0", "20.0", "0.0"]
