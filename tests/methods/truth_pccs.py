"""PCCS once more, in float64 numpy with loops over images, cells and prototypes, written from the formulas."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mpamatch.batch import Batch
from tests.methods.truth import Bank, labelled, see
from tests.ops import truth
from tests.ops.truth import F64, IGNORE, unit

Bools = NDArray[np.bool_]
Labels = NDArray[np.uint8]


class Set(NamedTuple):
    """The cells of one image that make one prototype."""

    image: int
    owner: int
    part: float
    cells: Bools  # (h, w)


class Prototypes(NamedTuple):
    direction: F64  # (M, D)
    owner: list[int]
    weight: F64  # (M,)
    part: list[float]


def depth(member: Bools) -> F64:  # (h, w) -> (h, w)
    """Distance to the nearest cell outside, 0 where that is 1 or the cell is outside; √(h²+w²) where none is."""
    out = np.zeros(member.shape)
    outside = np.argwhere(~member)
    for y, x in np.argwhere(member):
        nearest = np.sqrt(((outside - (y, x)) ** 2).sum(1)).min() if len(outside) else np.hypot(*member.shape)
        out[y, x] = 0.0 if nearest == 1 else nearest
    return out


def level_sets(label: Labels, uncertain: Bools, classes: int, levels: int) -> list[Set]:
    sets = []
    for image, y in enumerate(label):
        known = y != IGNORE
        background = depth(y == 0)
        chosen = (background > 0) & uncertain[image]
        far = background > background.max() / 2
        sets += [Set(image, 0, 0.25, chosen & ~far), Set(image, 0, 0.75, chosen & far)]
        for c in range(1, classes):
            own = y == c
            if (y < c).any() and (known & (y > c)).any():
                sides = [depth(known & (y <= c)) * own, depth(known & (y >= c)) * own]
            else:
                sides = [depth(own)]
            for side in sides:
                level = np.minimum(np.floor(side), levels)
                sets += [Set(image, c, (n - 0.5) / level.max(), level == n) for n in range(1, int(level.max()) + 1)]
    return [one for one in sets if one.cells.any()]


def prototypes(
    z: F64,  # (B, h, w, D)
    probability: F64,  # (B, h, w, C)
    sets: list[Set],
) -> Prototypes:
    directions, weights = [], []
    for one in sets:
        directions.append(unit(z[one.image][one.cells].mean(0)))
        u = probability[one.image][one.cells].mean(0)
        weights.append(np.exp(-sum(p * np.log(p) for p in u if p > 0)))
    direction = np.array(directions).reshape(len(sets), z.shape[-1])
    return Prototypes(direction, [s.owner for s in sets], np.array(weights), [s.part for s in sets])


def level_contrast(of: Prototypes, temperature: float) -> float:
    numbers = range(len(of.owner))
    total = weights = 0.0
    for i in numbers:
        s = [of.direction[i] @ of.direction[j] / temperature for j in numbers]
        mates = [j for j in numbers if j != i and of.owner[j] == of.owner[i]]
        if not mates:
            continue
        negatives = sum(np.exp(s[j]) for j in numbers if of.owner[j] != of.owner[i])
        below = sum(np.exp(s[j]) for j in mates)
        term = sum(np.exp(s[j]) / below * (np.log(np.exp(s[j]) + negatives) - s[j]) for j in mates)
        total, weights = total + of.weight[i] * term, weights + of.weight[i]
    return total / weights if weights else 0.0


def mixed(bank: F64, of: Prototypes, share: float) -> F64:
    """The bank (C, K, D) after a share of the mean direction of each part of a class's depth."""
    new, (classes, per_class, _) = bank.copy(), bank.shape
    for c in range(classes):
        for k in range(per_class):
            parts = [(owner, min(int(part * per_class), per_class - 1)) for owner, part in zip(*of[1::2], strict=True)]
            chosen = [i for i, place in enumerate(parts) if place == (c, k)]
            if chosen:
                new[c, k] = unit((1 - share) * bank[c, k] + share * unit(of.direction[chosen].mean(0)))
    return new


def entropy(p: F64, axis: int) -> F64:
    return -np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0)), 0.0), axis)


def consistency(probability: F64, wanted: F64, valid: Bools) -> tuple[float, float]:
    if not valid.any():
        return 0.0, 1e-6
    squares = ((probability - wanted) ** 2).mean(1)[valid].mean()
    norms = [np.sqrt((entropy(p, 1)[valid] ** 2).mean()) for p in (probability, wanted)]
    return float(squares), float(sum(norms) / 2)


def auxiliary(z: F64, bank: F64, assignment: NDArray[Any], temperature: float) -> float:
    rows = [i for i in range(len(z)) if assignment[i] >= 0]
    if not rows:
        return 0.0
    score = truth.cosines(z, bank) / temperature
    return float(np.mean([np.log(np.exp(score[i]).sum()) - score[i, assignment[i]] for i in rows]))


def softmax(x: F64, axis: int) -> F64:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def pccs(method: Any, batch: Batch, step: int, bank: Bank) -> tuple[dict[str, float], Bank]:
    """The parts of the loss, given the bank before the step, and the bank after it."""
    config, u = method.config, batch.unlabelled
    assert u is not None
    with torch.no_grad():
        student, teacher = see(method.model, u.strong1), see(method.teacher, u.weak)
        seen = see(method.model, batch.labelled.image).logits
        supervised = float(labelled(seen, batch.labelled.label, config.labelled_loss))
        z, z_teacher = (
            project(seen.embedding.movedim(1, -1)).numpy()
            for project, seen in ((method.project, student), (method.teacher_project, teacher))
        )
    classes, width = method.model.classes, z.shape[-1]
    cells = teacher.logits[:, :, 2::4, 2::4].numpy()
    p = softmax(cells, 1)
    valid = u.valid[:, 2::4, 2::4].numpy()
    label = np.where(valid, cells.argmax(1), IGNORE).astype(np.uint8)
    sets = level_sets(label, entropy(p, 1) >= config.uncertain * np.log(classes), classes, config.levels)
    of = prototypes(z, np.moveaxis(p, 1, -1), sets)

    begun, contrasts = step >= config.start, step >= config.contrast_start
    flat = z_teacher.reshape(-1, width)
    assignment = truth.sinkhorn_assign(
        flat, bank.prototypes.numpy(), label.ravel(), epsilon=config.epsilon, iterations=config.iterations
    )
    agreed = (label == student.logits[:, :, 2::4, 2::4].numpy().argmax(1)).ravel()
    new, updates = bank.prototypes.numpy(), bank.updates.numpy()
    if begun:
        new, updates = truth.prototype_update(
            new, updates, flat, assignment, weight=agreed.astype(np.float64), momentum=config.momentum
        )[:2]
    if contrasts:
        new = mixed(new, of, config.distance_share)

    score = (truth.prototype_distance(flat, new)[0] / -config.temperature).reshape(*label.shape, classes)
    score = torch.nn.functional.interpolate(
        torch.from_numpy(score).movedim(-1, 1), size=u.valid.shape[1:], mode="bilinear", align_corners=False
    ).numpy()
    squares, entropies = consistency(softmax(student.logits.numpy(), 1), softmax(score, 1), u.valid.numpy())
    parts = {
        "labelled": supervised,
        "consistency": squares,
        "entropy": entropies,
        "level_contrast": level_contrast(of, config.temperature),
        "auxiliary": auxiliary(z.reshape(-1, width), new, assignment, config.temperature),
    }
    ramp = np.exp(-5 * (1 - min(step / config.ramp, 1)) ** 2)
    loss = supervised
    if begun:
        loss += ramp * config.weight_consistency * (squares + config.weight_entropy * entropies)
    if contrasts:
        loss += config.weight_contrast * parts["level_contrast"] + config.weight_auxiliary * parts["auxiliary"]
    parts |= {"loss": loss, "agreed": agreed.sum() / valid.sum()}
    return parts, Bank(torch.from_numpy(new), torch.from_numpy(updates))
