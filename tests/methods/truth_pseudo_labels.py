"""Pseudo-labels with all their switches once more, in plain float64 torch: pixel by pixel, class by class.

What a switch remembers from step to step comes in and goes out as numbers by name, those of the methods' buffers.
"""

from typing import Any

import torch
from torch import Tensor

from mpamatch.batch import Batch
from tests.methods import truth
from tests.methods.truth import IGNORE, Bank, Pseudo

State = dict[str, Tensor]
LIKELIEST = ("image", "text", "dropped", "student", "mirror")  # who is asked if nobody is named: the first there is


def state_of(method: Any) -> State:
    """What the method remembers now."""
    return {name: buffer.detach().clone().double() for name, buffer in method.pseudo.named_buffers()}


def rows(x: Tensor, valid: Tensor) -> list[Tensor]:
    """The valid pixels of x (B, C, H, W), each (C,)."""
    return [x[b, :, i, j] for b, i, j in torch.nonzero(valid).tolist()]


def mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).sum(0) / len(values)


def moved(old: Tensor, new: Tensor, momentum: float) -> Tensor:
    return momentum * old + (1 - momentum) * new


def aligned(p: Tensor, valid: Tensor, label: Tensor, state: State, momentum: float) -> tuple[Tensor, State]:
    """Distribution alignment (ReMixMatch, ICLR 2020): p times the labelled share over the predicted one, normalised."""
    classes, state = p.shape[1], dict(state)
    if valid.any():
        state["predicted_share"] = moved(state["predicted_share"], mean(rows(p, valid)), momentum)
    counted = [int((label == c).sum()) for c in range(classes)]
    assert sum(counted) == int((label != IGNORE).sum())
    if sum(counted):
        shares = torch.tensor([count / sum(counted) for count in counted], dtype=torch.float64)
        state["labelled_share"] = moved(state["labelled_share"], shares, momentum)
    scaled = torch.stack(
        [p[:, c] * state["labelled_share"][c] / state["predicted_share"][c] for c in range(classes)], dim=1
    )
    return scaled / scaled.sum(1, keepdim=True), state


def thresholds(p: Tensor, valid: Tensor, config: Any, state: State) -> tuple[list[float], State]:
    """Of each class: fixed, FreeMatch's (ICLR 2023), or CorrMatch's (CVPR 2024), after the averages have moved; the
    first and the last may have FreeMatch's factor of each class."""
    classes, m, state = p.shape[1], config.threshold_momentum, dict(state)
    pixels = rows(p, valid)
    one: Any = config.threshold
    if one == "adaptive":
        if pixels:
            state["confidence"] = moved(state["confidence"], mean([pixel.max() for pixel in pixels]), m)
        one = float(state["confidence"])
    if one == "corrmatch":
        best: dict[int, float] = {}
        for pixel in pixels:
            c = int(pixel.argmax())
            best[c] = max(best.get(c, 0.0), float(pixel[c]))
        if best:
            now = torch.tensor(sum(best.values()) / len(best), dtype=torch.float64)
            state["confidence"] = moved(state["confidence"], now, m)
        one = float(state["confidence"])
    if config.threshold != "adaptive" and not config.class_thresholds:
        return [one] * classes, state
    if pixels:
        state["probability"] = moved(state["probability"], mean(pixels), m)
    highest = max(state["probability"].tolist())
    return [one * share / highest for share in state["probability"].tolist()], state


def asked(method: Any) -> list[str]:
    config = method.config
    if config.second_opinion == "none":
        return []
    there = {
        "image": getattr(method, "bank", None) is not None,
        "text": getattr(method, "text", None) is not None,
        "dropped": method.name in ("unimatch", "mpamatch"),
        "student": method.teacher is not None and method.name != "unimatch_v2",
        "mirror": method.teacher is not None,
    }
    return list(config.opinion_of) or [next(name for name in LIKELIEST if there[name])]


def weak_heads(method: Any, batch: Batch, step: int, bank: Bank | None) -> dict[str, Tensor]:
    """Logits of the cosine heads for the weak view; none before the prototypes start."""
    if method.name != "mpamatch" or step < method.config.start:
        return {}
    assert batch.unlabelled is not None
    weak = truth.see(method.model, batch.unlabelled.weak)
    found = truth.heads(method, weak.embedding, weak.logits.shape[-2:], bank)
    return {name: logits.detach() for name, logits in found.items()}


def opinions(method: Any, batch: Batch, step: int, bank: Bank | None) -> list[Tensor]:
    """The softmaxes of those who are asked."""
    u, found = batch.unlabelled, weak_heads(method, batch, step, bank)
    assert u is not None
    names, said = asked(method), []
    for name in names:
        if name == "student":
            said.append(truth.see(method.model, u.weak).logits)
        if name == "mirror":
            said.append(mirrored(truth.see(method.teacher, mirrored(u.weak)).logits))
        if name == "dropped":
            assert u.channel_noise is not None
            said.append(truth.see_dropped(method.model, u.weak, u.channel_noise, method.config.feature_dropout))
        if name in found:
            said.append(found[name])
    return [logits.detach().softmax(1) for logits in said]


def mirrored(x: Tensor) -> Tensor:
    """Left is right."""
    return torch.stack([x[..., x.shape[-1] - 1 - column] for column in range(x.shape[-1])], dim=-1)


def target(method: Any, batch: Batch, step: int, state: State, bank: Bank | None = None) -> tuple[Pseudo, State]:
    """The pseudo-labels of a step, and what is remembered after it."""
    config, u = method.config, batch.unlabelled
    assert u is not None
    with torch.no_grad():
        logits = truth.see(method.model if method.teacher is None else method.teacher, u.weak).logits
        if getattr(config, "weight_head", 0):
            for head in weak_heads(method, batch, step, bank).values():
                logits = logits + config.head_share * head
        p = logits.softmax(1)
        if config.align_classes:
            p, state = aligned(p, u.valid, batch.labelled.label, state, config.share_momentum)
        own, others = p.argmax(1), opinions(method, batch, step, bank)
        if config.second_opinion == "average":
            p = sum(others, p) / (1 + len(others))
        limits, state = thresholds(p, u.valid, config, state)
        confidence, label = p.max(1)
        weight = torch.zeros_like(confidence)
        for c, limit in enumerate(limits):
            weight[(label == c) & (confidence >= limit) & u.valid] = 1
        if config.second_opinion == "agree":
            for other in others:
                weight[other.argmax(1) != own] = 0
    return Pseudo(label, weight, u.valid), state


def step(
    method: Any, batch: Batch, step: int, state: State, bank: Bank | None = None
) -> tuple[dict[str, Tensor], State, Bank | None]:
    """The parts of the loss of FixMatch, UniMatch, UniMatch V2 or MPAMatch; state and bank after the step."""
    labels, state = target(method, batch, step, state, bank)
    if method.name == "mpamatch":
        parts, bank = truth.mpamatch(method, batch, step, bank, labels)
        return parts, state, bank
    return getattr(truth, method.name)(method, batch, step, labels), state, None
