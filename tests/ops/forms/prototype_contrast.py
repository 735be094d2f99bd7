"""What the shared tests have to know of prototype_contrast."""

import math

from mpamatch import ops
from tests.ops import truth
from tests.ops.form import Form, Kernel, N


def form(name: str, *weight: str, same_class_negatives: bool = True) -> Form:
    return Form(
        "prototype_contrast",
        lambda **tensors: ops.prototype_contrast(**tensors, same_class_negatives=same_class_negatives),
        ("embedding", "prototypes", "assignment", *weight),
        lambda **arrays: truth.prototype_contrast(**arrays, same_class_negatives=same_class_negatives),
        lambda **arrays: truth.prototype_contrast_gradient(**arrays, same_class_negatives=same_class_negatives),
        name=name,
        free=("prototypes",),
    )


FORMS = [
    form("prototype_contrast", "weight"),
    form("prototype_contrast_without_own_class", "weight", same_class_negatives=False),
    form("prototype_contrast_without_weight"),
]
REFUSED = {"temperature": (0.0, -1.0, math.nan)}
KERNELS = {
    "prototype_contrast": Kernel(
        lambda x: (x.embedding, x.prototypes, x.assignment, x.weight, 0.1, True), free=("prototypes",), refused=REFUSED
    ),
    "prototype_contrast_backward": Kernel(
        lambda x: (
            *(x.one, x.one, x.embedding, x.prototypes, x.assignment, x.weight, x.randn(N), 0.1, False),
            *x.wanted,
        ),
        free=("prototypes",),
        refused=REFUSED,
    ),
}
