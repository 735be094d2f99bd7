"""What the shared tests have to know of signed_distance."""

import torch

from mpamatch import ops
from tests.ops import truth
from tests.ops.form import C, Form, Kernel

TOO_LONG = [torch.zeros(1, *sides, dtype=torch.uint8) for sides in ((1, 16_385), (16_385, 1))]
FORMS = [
    Form(
        "signed_distance",
        lambda label: (ops.signed_distance(label, 4),),  # one class more than there is
        ("label",),
        lambda label: (truth.signed_distance(label, 4),),
        of_maps=True,
        free=("label",),
    )
]
KERNELS = {
    "signed_distance": Kernel(
        lambda x: (x.map_label.to(torch.uint8), C),
        free=("label",),
        refused={"num_classes": (0, -1, 256, 2**62), "label": TOO_LONG},
    )
}
