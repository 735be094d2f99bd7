"""The bank of image prototypes: buffers, moved by online clustering, never by a gradient."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mpamatch import ops
from mpamatch.ops.unit import unit


class PrototypeBank(nn.Module):
    """K prototypes of D channels for each of C classes, float32 whatever the precision of training.

    Buffers: prototypes (C,K,D), unit vectors from N(0, .02) (ProtoSeg's start, CVPR 2022); updates (C,K) i64;
    idle (C,K) i64, steps since each prototype was last moved (health only).
    """

    IN_USE = 100  # steps within which a prototype must have been moved to count as in use

    def __init__(self, classes: int, per_class: int, width: int):
        super().__init__()
        start = unit(torch.empty(classes, per_class, width).normal_(0, 0.02))
        self.prototypes: Tensor
        self.updates: Tensor
        self.idle: Tensor
        self.register_buffer("prototypes", start)
        self.register_buffer("updates", torch.zeros(classes, per_class, dtype=torch.int64))
        self.register_buffer("idle", torch.full((classes, per_class), self.IN_USE))

    def _apply(self, fn, recurse=True):
        # momentum .999 stalls in half precision: .half() and .bfloat16() move the bank to its device, no more
        exact = dict(self.named_buffers(recurse=False))
        module = super()._apply(fn, recurse)
        for name, buffer in self.named_buffers(recurse=False):
            if buffer.dtype in (torch.float16, torch.bfloat16):
                setattr(self, name, exact[name].to(buffer.device))
        return module

    def assign(
        self,
        embedding: Tensor,
        label: Tensor,
        *,
        iterations: int,
        epsilon: float,
        group: dist.ProcessGroup | None,
    ) -> Tensor:
        """embedding (N,D), label (N,) → (N,) i32 flat assignment; 0 iterations: the nearest prototype of the class."""
        return ops.sinkhorn_assign(
            embedding, self.prototypes, label, epsilon=epsilon, iterations=iterations, process_group=group
        )

    def update(
        self,
        embedding: Tensor,
        assignment: Tensor,
        weight: Tensor,
        *,
        momentum: float,
        group: dist.ProcessGroup | None,
    ) -> None:
        """embedding (N,D), assignment (N,), weight (N,): one step of online clustering."""
        before = self.updates.clone()
        ops.prototype_update_(
            self.prototypes,
            self.updates,
            embedding,
            assignment,
            weight=weight,
            momentum=momentum,
            process_group=group,
        )
        self.idle.copy_(torch.where(self.updates > before, 0, self.idle + 1))

    @torch.no_grad()
    def health(self) -> dict[str, Tensor]:
        """Each (): `in_use`, the share of prototypes moved within the last 100 steps; `cosine_within` and
        `cosine_between`, the mean cosine of different prototypes of one class and of different classes."""
        return {"in_use": (self.idle < self.IN_USE).to(self.prototypes.dtype).mean(), **mean_cosines(self.prototypes)}


@torch.no_grad()
def mean_cosines(prototypes: Tensor) -> dict[str, Tensor]:  # (C, K, D)
    """Each (): `cosine_within` and `cosine_between`, the mean cosine of different prototypes of one class and of
    different classes; 0 where there are none."""
    classes, per_class, width = prototypes.shape
    flat = unit(prototypes).reshape(-1, width)
    cosine = flat @ flat.T
    owner = torch.arange(classes, device=flat.device).repeat_interleave(per_class)
    same = owner[:, None] == owner
    other = ~torch.eye(classes * per_class, dtype=torch.bool, device=flat.device)

    def mean_where(chosen: Tensor) -> Tensor:
        return (cosine * chosen).sum() / chosen.sum().clamp(min=1)

    return {"cosine_within": mean_where(same & other), "cosine_between": mean_where(~same)}
