"""The operations once more, in float64 numpy with gradients, written from the formulas.

Sinkhorn is the loop over the plan of all pixels of a class, not the form with one K-vector, so that each
checks the other.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Int = NDArray[np.int64]
IGNORE = 255
SMALLEST_NORM = 1e-6


def unit(
    x: F64,  # (..., D)
) -> F64:
    norm = np.sqrt((x * x).sum(-1, keepdims=True))
    return np.where(norm < SMALLEST_NORM, 0.0, x / np.where(norm < SMALLEST_NORM, 1.0, norm))


def unit_gradient(x: F64, grad: F64) -> F64:
    """The gradient in x, given that in unit(x): (g − x̂ (x̂·g)) / ‖x‖, and 0 for a zero vector."""
    norm = np.sqrt((x * x).sum(-1, keepdims=True))
    along = (unit(x) * grad).sum(-1, keepdims=True)
    return np.where(norm < SMALLEST_NORM, 0.0, (grad - unit(x) * along) / np.maximum(norm, SMALLEST_NORM))


def cosines(
    embedding: F64,  # (N, D)
    prototypes: F64,  # (C, K, D)
) -> F64:  # (N, C·K)
    return unit(embedding) @ unit(prototypes).reshape(-1, prototypes.shape[-1]).T


def _through_cosines(embedding: F64, prototypes: F64, grad: F64) -> tuple[F64, F64]:
    """The gradients in embedding and prototypes, given that in the cosines (N, C·K)."""
    flat = unit(prototypes).reshape(-1, prototypes.shape[-1])
    in_prototypes = (grad.T @ unit(embedding)).reshape(prototypes.shape)
    return unit_gradient(embedding, grad @ flat), unit_gradient(prototypes, in_prototypes)


def prototype_distance(embedding: F64, prototypes: F64) -> tuple[F64, Int]:
    classes, per_class, _ = prototypes.shape
    score = cosines(embedding, prototypes).reshape(len(embedding), classes, per_class)
    return 1 - score.max(-1), score.argmax(-1)


def prototype_distance_gradient(
    embedding: F64,
    prototypes: F64,
    grad: F64,  # (N, C), in the distance
) -> tuple[F64, F64]:
    _, nearest = prototype_distance(embedding, prototypes)
    per_class = prototypes.shape[1]
    chosen = nearest[..., None] == np.arange(per_class)
    in_cosines = np.where(chosen, -grad[..., None], 0.0).reshape(len(embedding), len(prototypes) * per_class)
    return _through_cosines(embedding, prototypes, in_cosines)


def sinkhorn_plan(
    score: F64,  # (n, K), the cosines of one class's pixels with its prototypes
    epsilon: float,
    iterations: int,
) -> F64:  # (n, K), every row sums to 1
    plan = np.exp(score / epsilon)
    pixels, per_class = plan.shape
    plan /= plan.sum()
    for _ in range(iterations):
        plan /= plan.sum(0, keepdims=True)
        plan /= per_class
        plan /= plan.sum(1, keepdims=True)
        plan /= pixels
    return plan * pixels


def sinkhorn_scores(
    embedding: F64, prototypes: F64, label: Int, *, epsilon: float = 0.05, iterations: int = 3
) -> F64:  # (N, C·K): the logarithm of the plan within a pixel's own class, −inf elsewhere
    classes, per_class, _ = prototypes.shape
    score = cosines(embedding, prototypes)
    result = np.full_like(score, -np.inf)
    for c in range(classes):
        rows = np.flatnonzero(label == c)
        columns = slice(c * per_class, (c + 1) * per_class)
        if len(rows):
            result[rows, columns] = np.log(sinkhorn_plan(score[rows, columns], epsilon, iterations))
    return result


def sinkhorn_assign(embedding: F64, prototypes: F64, label: Int, *, epsilon: float = 0.05, iterations: int = 3) -> Int:
    scores = sinkhorn_scores(embedding, prototypes, label, epsilon=epsilon, iterations=iterations)
    return np.where(label == IGNORE, -1, scores.argmax(-1))


class Update(NamedTuple):
    """State after the step, and the length of the shortest vector on the way that was normalised."""

    prototypes: F64  # (C, K, D)
    updates: Int  # (C, K)
    length: F64  # (C, K), 0 = not chosen


def prototype_update(
    prototypes: F64,
    updates: Int,  # (C, K)
    embedding: F64,
    assignment: Int,  # (N,)
    *,
    weight: F64 | None = None,  # (N,)
    momentum: float = 0.999,
) -> Update:
    weight = np.ones(len(embedding)) if weight is None else weight
    z = unit(embedding)
    result, counts, length = prototypes.copy(), updates.copy(), np.zeros(updates.shape)
    for c, k in np.ndindex(updates.shape):
        chosen = (assignment == c * prototypes.shape[1] + k) & (weight > 0)
        if not chosen.any():
            continue
        total = (weight[chosen, None] * z[chosen]).sum(0)
        if np.linalg.norm(total) < SMALLEST_NORM:
            continue
        m = min(1 - 1 / (int(updates[c, k]) + 1), momentum)
        mixed = m * prototypes[c, k] + (1 - m) * unit(total)
        result[c, k] = unit(mixed)
        counts[c, k] += 1
        length[c, k] = min(np.linalg.norm(total), np.linalg.norm(mixed))
    return Update(result, counts, length)


def _competitors(assignment: Int, classes: int, per_class: int, same_class_negatives: bool) -> NDArray[np.bool_]:
    """(N, C·K): the prototypes in the denominator of each pixel; an ignored pixel has them all."""
    flat = np.arange(classes * per_class)
    own = flat == assignment[:, None]
    other_class = flat // per_class != np.maximum(assignment, 0)[:, None] // per_class
    everyone = (assignment[:, None] < 0) | same_class_negatives
    return own | other_class | everyone


def _contrast_parts(
    embedding: F64,
    prototypes: F64,
    assignment: Int,
    temperature: float,
    weight: F64 | None,
    same_class_negatives: bool,
) -> tuple[F64, F64, F64, F64]:
    """Cosines, softmax over the competitors, own prototype as one-hot, each (N, C·K), and weights (N,)."""
    classes, per_class, _ = prototypes.shape
    score = cosines(embedding, prototypes)
    keep = _competitors(assignment, classes, per_class, same_class_negatives)
    exponential = np.where(keep, np.exp((score - 1) / temperature), 0.0)
    softmax = exponential / exponential.sum(-1, keepdims=True)
    own = (np.arange(classes * per_class) == assignment[:, None]).astype(np.float64)
    w = np.ones(len(embedding)) if weight is None else weight
    return score, softmax, own, np.where(assignment < 0, 0.0, w)


def prototype_contrast(
    embedding: F64,
    prototypes: F64,
    assignment: Int,
    *,
    temperature: float = 0.1,
    weight: F64 | None = None,
    same_class_negatives: bool = True,
) -> tuple[float, float]:
    score, softmax, own, w = _contrast_parts(
        embedding, prototypes, assignment, temperature, weight, same_class_negatives
    )
    positive = np.where(assignment < 0, 1.0, (softmax * own).sum(-1))
    alignment = np.where(assignment < 0, 0.0, (1 - (score * own).sum(-1)) ** 2)
    return float(np.sum(-w * np.log(positive))), float(np.sum(w * alignment))


def prototype_contrast_gradient(
    embedding: F64,
    prototypes: F64,
    assignment: Int,
    grad: tuple[float, float],  # in contrast and alignment
    *,
    temperature: float = 0.1,
    weight: F64 | None = None,
    same_class_negatives: bool = True,
) -> tuple[F64, F64]:
    score, softmax, own, w = _contrast_parts(
        embedding, prototypes, assignment, temperature, weight, same_class_negatives
    )
    in_cosines = grad[0] * (softmax - own) / temperature - 2 * grad[1] * (1 - score) * own
    return _through_cosines(embedding, prototypes, w[:, None] * in_cosines)


def _log_softmax(
    logits: F64,  # (B, C, H, W)
) -> F64:
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def _segmentation_parts(logits: F64, label: Int, weight: F64 | None) -> tuple[F64, F64]:
    """The one-hot label (B, C, H, W) and the weight (B, 1, H, W), both 0 where ignored."""
    one_hot = (label[:, None] == np.arange(logits.shape[1])[:, None, None]).astype(np.float64)
    w = np.ones(label.shape) if weight is None else weight
    return one_hot, np.where(label == IGNORE, 0.0, w)[:, None]


def segmentation_loss(
    logits: F64,
    label: Int,  # (B, H, W)
    *,
    weight: F64 | None = None,  # (B, H, W)
) -> tuple[F64, F64]:
    one_hot, w = _segmentation_parts(logits, label, weight)
    log_p = _log_softmax(logits)
    p = np.exp(log_p)
    overlap = [(w * p * one_hot).sum((0, 2, 3)), (w * p * p).sum((0, 2, 3)), (w * one_hot).sum((0, 2, 3))]
    return -(w * one_hot * log_p).sum(), np.stack(overlap)


def segmentation_loss_gradient(
    logits: F64,
    label: Int,
    grad: tuple[float, F64],  # in cross_entropy and overlap (3, C)
    *,
    weight: F64 | None = None,
) -> F64:
    one_hot, w = _segmentation_parts(logits, label, weight)
    p = np.exp(_log_softmax(logits))
    in_py, in_pp, _ = grad[1][:, None, :, None, None]
    in_p = in_py * one_hot + 2 * in_pp * p
    return w * (grad[0] * (p - one_hot) + p * (in_p - (p * in_p).sum(1, keepdims=True)))


def pseudo_label(logits: F64) -> tuple[Int, F64]:
    return logits.argmax(1), np.exp(_log_softmax(logits)).max(1)


def signed_distance(label: Int, classes: int) -> F64:
    """By a search of all pixels."""
    batch, height, width = label.shape
    place = np.stack(np.mgrid[:height, :width], -1).reshape(-1, 2)
    apart = ((place[:, None] - place) ** 2).sum(-1)  # (HW, HW)
    result = np.empty((batch, classes, height * width))
    for b, c in np.ndindex(batch, classes):
        inside = label[b].ravel() == c
        other = inside[:, None] != inside
        nearest = np.where(other, apart, height**2 + width**2).min(1, initial=height**2 + width**2)
        result[b, c] = np.where(inside, np.where(nearest == 1, 0, -np.sqrt(nearest)), np.sqrt(nearest))
    return result.reshape(batch, classes, height, width)
