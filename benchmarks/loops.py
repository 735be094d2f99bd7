"""What ProtoSeg-style training code does, class by class: boolean masks, a product per class, questions to the device.

Written from the description of the method (CVPR 2022, section 3; docs/METHODS.md), with the meanings of
`mpamatch.ops` where they differ (argmax of the plan, the ramp of the momentum), so that the results are comparable.
"""

import torch
from torch import Tensor
from torch.nn import functional


def distance(
    embedding: Tensor,  # (N, D)
    prototypes: Tensor,  # (C, K, D)
) -> tuple[Tensor, Tensor]:
    z = functional.normalize(embedding.to(prototypes.dtype), dim=-1)
    found = [(z @ functional.normalize(own, dim=-1).T).max(1) for own in prototypes]
    return 1 - torch.stack([highest for highest, _ in found], 1), torch.stack([k for _, k in found], 1).int()


@torch.no_grad()
def assign(
    embedding: Tensor,  # (N, D)
    prototypes: Tensor,  # (C, K, D)
    label: Tensor,  # (N,)
    epsilon: float = 0.05,
    iterations: int = 3,
) -> Tensor:  # (N,) i32
    assignment = torch.full_like(label, -1, dtype=torch.int32)
    z = functional.normalize(embedding.to(prototypes.dtype), dim=-1)
    for c, own in enumerate(functional.normalize(prototypes, dim=-1)):
        mask = label == c
        if not mask.any():
            continue
        plan = balanced_plan(z[mask] @ own.T, epsilon, iterations)
        assignment[mask] = (c * len(own) + plan.argmax(0)).int()
    return assignment


def balanced_plan(
    cosine: Tensor,  # (n, K)
    epsilon: float,
    iterations: int,
) -> Tensor:  # (K, n)
    plan = (cosine / epsilon).exp().T
    per_class, pixels = plan.shape
    plan = plan / plan.sum()
    for _ in range(iterations):
        plan = plan / plan.sum(1, keepdim=True) / per_class
        plan = plan / plan.sum(0, keepdim=True) / pixels
    return plan * pixels


@torch.no_grad()
def update_(
    prototypes: Tensor,  # (C, K, D), changed in place
    updates: Tensor,  # (C, K) i64, changed in place
    embedding: Tensor,  # (N, D)
    assignment: Tensor,  # (N,) i32
    momentum: float = 0.999,
) -> None:
    z = functional.normalize(embedding.to(prototypes.dtype), dim=-1)
    per_class = prototypes.shape[1]
    for c in range(len(prototypes)):
        mask = (assignment >= c * per_class) & (assignment < (c + 1) * per_class)
        member = functional.one_hot(assignment[mask].long() - c * per_class, per_class).to(z.dtype)
        count = member.sum(0)
        if not count.any():
            continue
        mean = functional.normalize(member.T @ z[mask], dim=-1)
        m = (1 - 1 / (updates[c] + 1).float()).clamp(max=momentum)[:, None]
        chosen = count > 0
        moved = functional.normalize(m * prototypes[c] + (1 - m) * mean, dim=-1)
        prototypes[c, chosen] = moved[chosen]
        updates[c, chosen] += 1
