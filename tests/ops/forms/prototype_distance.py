"""What the shared tests have to know of prototype_distance."""

import torch

from mpamatch import ops
from tests.ops import truth
from tests.ops.form import C, Form, K, Kernel, N


def scores(embedding, prototypes):
    classes, per_class, _ = prototypes.shape
    return truth.cosines(embedding, prototypes).reshape(-1, classes, per_class)


FORMS = [
    Form(
        "prototype_distance",
        ops.prototype_distance,
        ("embedding", "prototypes"),
        truth.prototype_distance,
        lambda embedding, prototypes, grad: truth.prototype_distance_gradient(embedding, prototypes, grad[0]),
        free=("embedding", "prototypes"),
        indices=(torch.int32,),
        scores=scores,
    )
]
OUTSIDE = [torch.full((N, C), k, dtype=torch.int32) for k in (-1, K, 2**31 - 1, -(2**31))]
KERNELS = {
    "prototype_distance": Kernel(lambda x: (x.embedding, x.prototypes), free=("embedding", "prototypes")),
    "prototype_distance_backward": Kernel(
        lambda x: (
            *(x.randn(N, C), x.embedding, x.prototypes),
            *(x.rand(N, C), torch.randint(0, K, (N, C), dtype=torch.int32), *x.wanted),
        ),
        refused={"nearest": OUTSIDE},
    ),
}
