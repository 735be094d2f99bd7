"""A class label as the assignment of one prototype per class."""

import torch
from torch import Tensor

from mpamatch.ops import checks


def assignment_from_label(label: Tensor) -> Tensor:  # (…) any integer dtype -> (N,) i32
    """The flat assignment for K = 1 (text prototypes): the class itself, −1 where the label is 255 (or negative)."""
    checks.is_integer("label", label)
    flat = label.reshape(-1).to(torch.int32)
    return torch.where(flat == checks.IGNORE, -1, flat.clamp(min=-1))
