"""The terms of PCCS (arXiv 2502.06650): level sets of the signed distance, their prototypes, its losses.

A set without pixels is a slot of weight 0, so shapes are static and no value is read back from the device.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from mpamatch import ops
from mpamatch.methods.losses import over_ranks, weighted_mean
from mpamatch.ops.unit import unit, without_autocast, working
from mpamatch.ranks import all_ranks

NOTHING = -1e9  # the logarithm of an empty sum: exp of it is 0 in float32, and 0 times it stays finite


class LevelSets(NamedTuple):
    """Which cells belong to which set.

    An image has S = 2 + (C − 1)·L + (C − 2)·L sets: two of the background, L levels of each other class, and L levels
    from the other side of each of these but the last.
    """

    member: Tensor  # (B, S, h·w) bool
    owner: Tensor  # (S,) i64: the class of each set
    part: Tensor  # (B, S) f32 in (0, 1): how deep the set lies within its class, 0 at the boundary


class Prototypes(NamedTuple):
    """One mean embedding per set; those of all ranks after `of_all_ranks`."""

    direction: Tensor  # (M, D) unit vectors, 0 if the set is empty
    filled: Tensor  # (M,) bool: whether the set has a pixel
    weight: Tensor  # (M,) exp(H(u)) >= 1, u the mean softmax of the set's pixels
    owner: Tensor  # (M,) i64, class
    part: Tensor  # (M,) depth within the class, as in LevelSets


@torch.no_grad()
def level_sets(
    label: Tensor,  # (B, h, w) u8, 255 = ignore
    uncertain: Tensor,  # (B, h, w) bool
    classes: int,
    levels: int,
) -> LevelSets:
    """Finds the sets whose means are prototypes. The inner boundary (distance 0) is in none, as in the public code.

    Background (class 0): its uncertain cells up to half of its greatest depth in the image, and those beyond. Any other
    class: level l holds the depths in [l, l + 1) for l = 1 … L, the last also all beyond. If an image shows classes on
    either side of c, depths are measured once in (y <= c) and once in (y >= c).
    """
    depth = -ops.signed_distance(label, classes)  # (B, C, h, w), > 0 inside
    background = _near_and_far(depth[:, 0], uncertain)
    own = one_hot(torch.where(label < classes, label, classes).long(), classes + 1).movedim(-1, 1)[:, :-1].bool()
    middle, below, above = _from_both_sides(label, own)
    first = torch.where(own[:, 1:], torch.where(middle, below, depth[:, 1:]), 0.0)
    second = torch.where(own[:, 1:-1] & middle[:, :-1], above, 0.0)
    member, part = zip(background, _levels(first, levels), _levels(second, levels), strict=True)
    others = torch.arange(1, classes, device=label.device)
    owner = torch.cat([others.new_zeros(2), others.repeat_interleave(levels), others[:-1].repeat_interleave(levels)])
    return LevelSets(torch.cat(member, 1).flatten(2), owner, torch.cat(part, 1))


def _near_and_far(depth: Tensor, uncertain: Tensor) -> tuple[Tensor, Tensor]:  # (B, h, w) -> (B, 2, h, w), (B, 2)
    """Splits the background's uncertain cells at half of its greatest depth: members and depth of the two sets."""
    chosen = (depth > 0) & uncertain
    far = depth > depth.amax((1, 2), keepdim=True) / 2
    halves = torch.arange(2, device=depth.device).expand(len(depth), 2)
    return torch.stack([chosen & ~far, chosen & far], 1), (halves + 0.5) / 2


def _from_both_sides(
    label: Tensor,  # (B, h, w)
    own: Tensor,  # (B, C, h, w) bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Measures the depths of a class together with those below and above it.

    Returns for the classes 1 … C−1 whether an image shows classes on both sides, (B, C−1, 1, 1), and the depth of its
    cells in (y <= c), (B, C−1, h, w); for 1 … C−2 their depth in (y >= c), (B, C−2, h, w).
    """
    classes = own.shape[1]
    shown = own.flatten(2).any(2).long()
    up_to, from_on = shown.cumsum(1), shown.flip(1).cumsum(1).flip(1)
    middle = (up_to[:, :-1] > 0) & ((from_on - shown)[:, 1:] > 0)
    within = own.long().cumsum(1)[:, 1:]  # (y <= c)
    beyond = own.long().flip(1).cumsum(1).flip(1)[:, 1:-1]  # (y >= c)
    sides = torch.cat([within, beyond], 1).to(label.dtype)
    depth = -ops.signed_distance(sides.flatten(0, 1), 2)[:, 1].unflatten(0, sides.shape[:2])
    return middle[:, :, None, None], depth[:, : classes - 1], depth[:, classes - 1 :]


def _levels(depth: Tensor, levels: int) -> tuple[Tensor, Tensor]:  # (B, c, h, w) -> (B, c·L, h, w), (B, c·L)
    """Cuts depths into levels: their members, and how deep each lies within its class, 0 to 1."""
    level = depth.clamp(min=0).floor().clamp(max=levels)  # 0: boundary or outside
    number = torch.arange(1, levels + 1, device=depth.device)
    deepest = level.amax((2, 3)).clamp(min=1)
    member = level[:, :, None] == number[:, None, None]
    return member.flatten(1, 2), ((number - 0.5) / deepest[:, :, None]).flatten(1)


@without_autocast
def prototypes_of(
    embedding: Tensor,  # (B, n, D) any floating dtype
    probability: Tensor,  # (B, n, C), without gradient
    sets: LevelSets,
) -> Prototypes:
    """Computes the direction of each set's mean embedding, and exp of the entropy of its mean probability.

    Embeddings count with their lengths, as in the public code.
    """
    z = working(embedding)
    member = sets.member.to(z.dtype)
    pixels = member.sum(2, keepdim=True)
    mean = (member @ z) / pixels.clamp(min=1)
    seen = (member @ probability.to(z.dtype)) / pixels.clamp(min=1)
    weight = entropy(seen, 2).exp()
    owner = sets.owner.repeat(len(z))
    return Prototypes(
        unit(mean).flatten(0, 1), (pixels > 0).flatten(), weight.flatten(), owner, sets.part.flatten().to(z.dtype)
    )


def of_all_ranks(local: Prototypes) -> Prototypes:
    """Gathers the prototypes of every rank, in the order of ranks; only this rank's have a gradient."""
    group = all_ranks()
    if group is None:
        return local
    ranks, rank = group.size(), group.rank()
    numbers = torch.stack([local.filled.to(local.direction.dtype), local.weight, local.part], 1)
    mine = torch.cat([local.direction, numbers], 1)
    place = one_hot(torch.full((), rank, device=mine.device), ranks).to(mine.dtype)
    everyone = over_ranks(place[:, None, None] * mine).flatten(0, 1)
    direction, (filled, weight, part) = everyone[:, :-3], everyone[:, -3:].detach().unbind(1)
    return Prototypes(direction, filled > 0, weight, local.owner.repeat(ranks), part)


@without_autocast
def level_contrast(
    direction: Tensor,  # (M, D)
    prototypes: Prototypes,  # whether they are filled, their weight and class
    temperature: float,
) -> Tensor:
    """Computes the contrast of prototypes, Σ_i w_i Σ_j a_ij [log(e^{s_ij} + N_i) − s_ij] with s_ij = p_i·p_j/T, ().

    j runs over the other prototypes of the class of i, a_ij is the softmax of s_ij over them, N_i = Σ e^{s_ij} over the
    prototypes of other classes, w_i ∝ exp(H(u_i)) with sum 1. A prototype alone in its class has no term and no weight.
    """
    _, filled, weight, owner, _ = prototypes
    score = direction @ direction.T / temperature
    both = filled[:, None] & filled
    same = owner[:, None] == owner
    positive = both & same & ~torch.eye(len(owner), dtype=torch.bool, device=owner.device)
    others = torch.where(both & ~same, score, NOTHING).logsumexp(1, keepdim=True)
    share = torch.where(positive, score, NOTHING).softmax(1) * positive
    term = torch.logaddexp(others - score, torch.zeros_like(score))
    counted = weight * positive.any(1)
    return (counted * (share * term).sum(1)).sum() / counted.sum().clamp(min=1)  # any weight is at least 1


@without_autocast
@torch.no_grad()
def pooled(
    direction: Tensor,  # (M, D)
    prototypes: Prototypes,
    classes: int,
    per_class: int,
) -> tuple[Tensor, Tensor]:
    """Averages the prototypes in each k-th part of a class's depth: directions (C, K, D), and which parts have a
    prototype, (C, K, 1) bool."""
    part = (prototypes.part * per_class).long().clamp(max=per_class - 1)
    slot = one_hot(prototypes.owner * per_class + part, classes * per_class).to(direction.dtype)
    slot = slot * prototypes.filled[:, None]
    mean = unit(slot.T @ direction).unflatten(0, (classes, per_class))
    return mean, (slot.sum(0) > 0).reshape(classes, per_class, 1)


@without_autocast
def consistency(
    probability: Tensor,  # (B, C, H, W) of the student
    wanted: Tensor,  # (B, C, H, W) of the teacher, without gradient
    valid: Tensor,  # (B, H, W) bool
) -> tuple[Tensor, Tensor]:
    """Computes the mean squared difference over valid pixels and classes, (), and the mean of the root mean squares of
    the student's and the teacher's entropies, ()."""
    pixels = valid.sum()
    difference = (probability - wanted).square().mean(1)
    squares = [(entropy(p, 1).square() * valid).sum() for p in (probability, wanted)]
    # without the clamp the root's gradient at 0 would be infinite
    norms = [weighted_mean(square, pixels).clamp(min=1e-12).sqrt() for square in squares]
    return weighted_mean((difference * valid).sum(), pixels), (norms[0] + norms[1]) / 2


def entropy(probability: Tensor, axis: int) -> Tensor:
    """Computes −Σ p log p in nats over `axis`; 0 log 0 = 0, with gradient 0."""
    p = probability.clamp(min=torch.finfo(probability.dtype).tiny)
    return -(probability * p.log()).sum(axis)
