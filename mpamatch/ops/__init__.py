"""The operations of a training step, usable alone: fused kernels, and eager PyTorch that says what they compute.

The file of an operation holds its public function and its `reference`, the specification. Pixels are the rows of a
table; an ignored pixel has weight 0, so shapes are static and no value is read back from the device. Losses are sums
over pixels, which the caller divides (`methods.losses`). Half precision accumulates in float32.
"""

from mpamatch.ops import native
from mpamatch.ops.assignment_from_label import assignment_from_label
from mpamatch.ops.checks import IGNORE
from mpamatch.ops.operation import operations
from mpamatch.ops.prototype_contrast import prototype_contrast
from mpamatch.ops.prototype_distance import prototype_distance
from mpamatch.ops.prototype_update_ import prototype_update_
from mpamatch.ops.pseudo_label import pseudo_label
from mpamatch.ops.segmentation_loss import segmentation_loss
from mpamatch.ops.signed_distance import signed_distance
from mpamatch.ops.sinkhorn_assign import sinkhorn_assign

for _operation in operations().values():
    native.register_fakes(_operation.kernels)

__all__ = [
    "IGNORE",
    "assignment_from_label",
    "prototype_contrast",
    "prototype_distance",
    "prototype_update_",
    "pseudo_label",
    "segmentation_loss",
    "signed_distance",
    "sinkhorn_assign",
]
