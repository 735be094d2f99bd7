"""What the shared tests have to know of prototype_update_."""

import math

import torch

from mpamatch import ops
from tests.ops import truth
from tests.ops.form import C, D, Form, K, Kernel


def update(prototypes, updates, **others):
    prototypes, updates = prototypes.detach().clone(), updates.clone()
    ops.prototype_update_(prototypes, updates, **others)
    return prototypes, updates


FORMS = [
    Form(
        "prototype_update_",
        update,
        ("prototypes", "updates", "embedding", "assignment", "weight"),
        lambda **arrays: truth.prototype_update(**arrays)[:2],
        indices=(torch.int64,),
    )
]
KERNELS = {
    "prototype_sum": Kernel(
        lambda x: (x.embedding, x.assignment, x.weight, C * K), refused={"prototypes": (0, -1, 2**31, 2**62)}
    ),
    "prototype_move_": Kernel(
        lambda x: (x.prototypes, torch.zeros(C, K, dtype=torch.int64), x.randn(C * K, D), 0.9),
        refused={"momentum": (-0.1, 1.1, math.nan)},
    ),
}
