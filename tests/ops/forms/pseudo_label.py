"""What the shared tests have to know of pseudo_label."""

import numpy as np
import torch

from mpamatch import ops
from tests.ops import truth
from tests.ops.form import Form, Kernel

FORMS = [
    Form(
        "pseudo_label",
        ops.pseudo_label,
        ("logits",),
        truth.pseudo_label,
        of_maps=True,
        free=("logits",),
        indices=(torch.uint8,),
        scores=lambda logits: np.moveaxis(logits, 1, -1),
    )
]
KERNELS = {"pseudo_label": Kernel(lambda x: (x.logits,), free=("logits",))}
