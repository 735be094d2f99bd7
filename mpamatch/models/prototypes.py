"""The bank of image prototypes: buffers that online clustering moves, never a gradient."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mpamatch import ops
from mpamatch.ops.unit import unit


class PrototypeBank(nn.Module):
    """Image prototypes, moved by online clustering (ProtoSeg, CVPR 2022); all state is in buffers.

    They stay float32 whatever the precision of training: with momentum .999 a step would be lost in half precision.

    Args:
        classes: C.
        per_class: K, the number of prototypes of each class.
        width: D, the size of a pixel embedding.

    Attributes:
        prototypes: (C, K, D), unit vectors; they start from N(0, .02) as in ProtoSeg.
        updates: (C, K) i64, how often each prototype was moved.
        idle: (C, K) i64, steps since it was last moved, for `health` alone.
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
        embedding: Tensor,  # (N, D)
        label: Tensor,  # (N,)
        *,
        iterations: int,
        epsilon: float,
        group: dist.ProcessGroup | None,
    ) -> Tensor:
        """Assigns each pixel to a prototype of its class (`ops.sinkhorn_assign`).

        Args:
            embedding: pixel embeddings, of any length.
            label: class of each pixel; 255 = ignore.
            iterations: of Sinkhorn; 0: each pixel goes to the nearest prototype.
            epsilon: Sinkhorn's entropy.
            group: the ranks whose pixels are balanced together; None: this process alone.

        Returns:
            The flat assignment c·K + k, −1 for ignored pixels: (N,) i32.

        Raises:
            TypeError: an argument of another dtype.
            ValueError: an argument of another shape or range.
        """
        return ops.sinkhorn_assign(
            embedding, self.prototypes, label, epsilon=epsilon, iterations=iterations, process_group=group
        )

    def update(
        self,
        embedding: Tensor,  # (N, D)
        assignment: Tensor,  # (N,) of `assign`
        weight: Tensor,  # (N,) >= 0
        *,
        momentum: float,
        group: dist.ProcessGroup | None,
    ) -> None:
        """Moves the prototypes towards their pixels, one step of online clustering (`ops.prototype_update_`).

        Args:
            embedding: pixel embeddings, of any length.
            assignment: flat assignment, −1 = ignored.
            weight: of each pixel in the mean; prototypes without pixels of positive weight stay.
            momentum: share of the old prototype, 0 to 1, once past its start.
            group: the ranks whose pixels are summed; None: this process alone.

        Raises:
            TypeError: an argument of another dtype.
            ValueError: an argument of another shape or range.
        """
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
        """Measures how the prototypes are used and spread.

        Returns:
            0-d tensors: `in_use`, the share of prototypes moved within the last 100 steps; `cosine_within` and
            `cosine_between`, the mean cosine of different prototypes of one class and of different classes (0 if there
            are none).
        """
        return {"in_use": (self.idle < self.IN_USE).to(self.prototypes.dtype).mean(), **mean_cosines(self.prototypes)}


@torch.no_grad()
def mean_cosines(prototypes: Tensor) -> dict[str, Tensor]:  # (C, K, D)
    """Computes `cosine_within` and `cosine_between`, the mean cosine of different prototypes of one class and of
    prototypes of different classes, each (); 0 if there are none."""
    classes, per_class, width = prototypes.shape
    flat = unit(prototypes).reshape(-1, width)
    cosine = flat @ flat.T
    owner = torch.arange(classes, device=flat.device).repeat_interleave(per_class)
    same = owner[:, None] == owner
    other = ~torch.eye(classes * per_class, dtype=torch.bool, device=flat.device)

    def mean_where(chosen: Tensor) -> Tensor:
        return (cosine * chosen).sum() / chosen.sum().clamp(min=1)

    return {"cosine_within": mean_where(same & other), "cosine_between": mean_where(~same)}
