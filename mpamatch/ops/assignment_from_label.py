"""The assignment of pixels to prototypes if every class has one."""

import torch
from torch import Tensor

from mpamatch.ops import checks


def assignment_from_label(
    label: Tensor,  # (…) any integer dtype
) -> Tensor:
    """Turns labels into the flat assignment for K = 1, one prototype per class, such as text prototypes.

    Args:
        label: class of each pixel; 255 or negative = ignore.

    Returns:
        The class of each pixel, −1 for ignored ones: (N,) i32.

    Raises:
        TypeError: `label` has no integer dtype.
    """
    checks.is_integer("label", label)
    flat = label.reshape(-1).to(torch.int32)
    return torch.where(flat == checks.IGNORE, -1, flat.clamp(min=-1))
