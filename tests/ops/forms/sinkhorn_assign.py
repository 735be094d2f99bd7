"""What the shared tests have to know of sinkhorn_assign."""

import math

import torch

from mpamatch import ops
from tests.ops import truth
from tests.ops.form import C, Form, K, Kernel, N

FORMS = [
    Form(
        "sinkhorn_assign",
        lambda **tensors: (ops.sinkhorn_assign(**tensors),),
        ("embedding", "prototypes", "label"),
        lambda **arrays: (truth.sinkhorn_assign(**arrays),),
        free=("prototypes",),
        indices=(torch.int32,),
        scores=truth.sinkhorn_scores,
        scale_of_scores=1 / 0.05,  # cosines over ε
    )
]
KERNELS = {
    "sinkhorn_assign": Kernel(
        lambda x: (x.embedding, x.prototypes, x.label, 0.05, 3, True),
        free=("prototypes",),
        refused={"epsilon": (0.0, -1.0, math.nan), "iterations": (-1,)},
    ),
    "sinkhorn_score": Kernel(
        lambda x: (x.embedding, x.prototypes, x.label, 0.05, True),
        free=("prototypes",),
        refused={"epsilon": (0.0, -1.0, math.nan)},
    ),
    "sinkhorn_step": Kernel(lambda x: (x.randn(N, K), x.label, *_log_u_and_total(x), True)),
    "sinkhorn_pick": Kernel(lambda x: (x.randn(N, K), x.label, *_log_u_and_total(x))),
}


def _log_u_and_total(x):
    log_u = x.randn(C, K)
    return log_u, log_u.exp()
