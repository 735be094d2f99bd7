"""The methods once more, in plain float64 torch with loops over images and classes, written from the formulas.

Every view goes through the network by itself, so the network must treat images one by one (group norm).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mpamatch.batch import Batch
from mpamatch.models.transunet import Prediction, TransUNet
from tests.ops import truth

IGNORE = 255


def dice(logits: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """1 − (2 Σwpy + 1e-5)/(Σwp² + Σwy + 1e-5), the mean over the classes that occur."""
    p = logits.softmax(1)
    w = torch.where(label == IGNORE, 0.0, weight.double())
    terms = []
    for c in range(logits.shape[1]):
        y = (label == c).double()
        if (w * y).sum() > 0:
            both, below = (w * p[:, c] * y).sum(), (w * p[:, c] ** 2).sum() + (w * y).sum()
            terms.append(1 - (2 * both + 1e-5) / (below + 1e-5))
    return torch.stack(terms).mean() if terms else logits.sum() * 0


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:  # (B, H, W), 0 where ignored
    return functional.cross_entropy(logits, label.long(), ignore_index=IGNORE, reduction="none")


def labelled(logits: Tensor, label: Tensor, kind: str = "ce_dice") -> Tensor:
    mean = cross_entropy(logits, label).sum() / max(int((label != IGNORE).sum()), 1)
    return {"ce": mean, "ce_dice": (mean + dice(logits, label, torch.ones_like(label))) / 2}[kind]


def unlabelled(logits: Tensor, label: Tensor, weight: Tensor, valid: Tensor, kind: str = "ce") -> Tensor:
    """Σ CE·[confident ∧ valid] / Σ valid, or the Dice of confident pixels, or the mean of both."""
    mean = (cross_entropy(logits, label) * weight).sum() / max(int(valid.sum()), 1)
    overlap = dice(logits, label, weight)
    return {"ce": mean, "dice": overlap, "both": (mean + overlap) / 2}[kind]


def cutmix(x: Tensor, box: Tensor) -> Tensor:
    """Inside its box an image shows its partner: 0 and 1 swap, 2 and 3, …; the last of an odd batch takes image 0."""
    mixed = x.clone()
    for i, (top, left, bottom, right) in enumerate(box.tolist()):
        partner = i ^ 1 if i ^ 1 < len(x) else 0
        mixed[i, ..., top:bottom, left:right] = x[partner, ..., top:bottom, left:right]
    return mixed


class Pseudo(NamedTuple):
    label: Tensor  # (B, H, W)
    weight: Tensor  # (B, H, W) 0 or 1
    valid: Tensor  # (B, H, W) bool

    def mixed(self, box: Tensor) -> "Pseudo":
        return Pseudo(*(cutmix(x, box) for x in self))


def pseudo(p: Tensor, valid: Tensor, threshold: float) -> Pseudo:
    """From the softmax (B, C, H, W) of the weak view."""
    confidence, label = p.detach().max(1)
    return Pseudo(label, ((confidence >= threshold) & valid).double(), valid)


def see(model: TransUNet, image: Tensor) -> Prediction:
    """Image by image."""
    seen = [model(one[None]) for one in image]
    return Prediction(torch.cat([s.logits for s in seen]), torch.cat([s.embedding for s in seen]))


def see_dropped(model: TransUNet, image: Tensor, noise: Tensor, p: float) -> Tensor:
    """Logits with the channels whose draw is below p set to 0 and the others divided by 1 − p."""
    maps, start = [], 0
    for level in model.encode(image):
        draws = noise[:, start : start + level.shape[1]]
        start += level.shape[1]
        keep = (draws >= p).double() / (1 - p)
        maps.append(level * keep[:, :, None, None])
    assert start == noise.shape[1]
    return model.decode(tuple(maps), (image.shape[-2], image.shape[-1])).logits


def supervised(method: Any, batch: Batch, step: int) -> dict[str, Tensor]:
    seen = see(method.model, batch.labelled.image).logits
    return {"loss": labelled(seen, batch.labelled.label, method.config.labelled_loss)}


def mean_teacher(method: Any, batch: Batch, step: int) -> dict[str, Tensor]:
    config, u = method.config, batch.unlabelled
    assert u is not None
    own = labelled(see(method.model, batch.labelled.image).logits, batch.labelled.label, config.labelled_loss)
    with torch.no_grad():
        wanted = see(method.teacher, u.weak).logits.softmax(1)
    squares = (see(method.model, u.strong1).logits.softmax(1) - wanted) ** 2
    consistency = squares.movedim(1, -1)[u.valid].mean()
    ramp = torch.tensor(-5 * (1 - min(step / config.ramp, 1)) ** 2, dtype=torch.float64).exp()
    return {"loss": own + config.weight * ramp * consistency, "labelled": own, "consistency": consistency}


def growth(step: int, start: int, ramp: int) -> float:
    """0 before `start`; then, over `ramp` steps, up to 1."""
    return 0.0 if step < start else min((step - start + 1) / (ramp + 1), 1.0)


def grown(config: Any, step: int) -> float:
    return growth(step, config.unlabelled_start, config.unlabelled_ramp)


def fixmatch(method: Any, batch: Batch, step: int, target: Pseudo | None = None) -> dict[str, Tensor]:
    """With pseudo-labels of the student at a fixed threshold, unless others are given."""
    config, u = method.config, batch.unlabelled
    assert u is not None
    if target is None:
        target = pseudo(see(method.model, u.weak).logits.softmax(1), u.valid, config.threshold)
    own = labelled(see(method.model, batch.labelled.image).logits, batch.labelled.label, config.labelled_loss)
    mixed = see(method.model, cutmix(u.strong1, u.box1)).logits
    strong = unlabelled(mixed, *target.mixed(u.box1), config.unlabelled_loss)
    confident = target.weight.sum() / u.valid.sum()
    loss = (own + grown(config, step) * strong) / 2
    return {"loss": loss, "labelled": own, "strong": strong, "confident": confident}


def unimatch_parts(method: Any, batch: Batch, target: Pseudo) -> dict[str, Tensor]:
    config, u = method.config, batch.unlabelled
    assert u is not None
    assert u.strong2 is not None
    assert u.box2 is not None
    assert u.channel_noise is not None
    strong1 = see(method.model, cutmix(u.strong1, u.box1)).logits
    strong2 = see(method.model, cutmix(u.strong2, u.box2)).logits
    dropped = see_dropped(method.model, u.weak, u.channel_noise, config.feature_dropout)
    s1 = unlabelled(strong1, *target.mixed(u.box1), config.unlabelled_loss)
    s2 = unlabelled(strong2, *target.mixed(u.box2), config.unlabelled_loss)
    return {
        "labelled": labelled(
            see(method.model, batch.labelled.image).logits, batch.labelled.label, config.labelled_loss
        ),
        "strong": (s1 + s2) / 2,
        "feature": unlabelled(dropped, *target, config.unlabelled_loss),
        "confident": target.weight.sum() / u.valid.sum(),
    }


def unimatch(method: Any, batch: Batch, step: int, target: Pseudo | None = None) -> dict[str, Tensor]:
    """(L_x + .25 s1 + .25 s2 + .5 fp)/2 at the default weights."""
    config, u = method.config, batch.unlabelled
    assert u is not None
    if target is None:
        target = pseudo(see(method.model, u.weak).logits.softmax(1), u.valid, config.threshold)
    parts = unimatch_parts(method, batch, target)
    unlabelled = config.weight_strong * parts["strong"] + config.weight_feature * parts["feature"]
    return {"loss": (parts["labelled"] + grown(config, step) * unlabelled) / 2, **parts}


def see_complementary(model: TransUNet, image: Tensor, noise: Tensor, *, second: bool) -> Tensor:
    """Logits of one strong view of UniMatch V2: images 0, 2, … with channels doubled where the draw is at least .5 and
    0 where not, for the second view the other way round; images 1, 3, … as they are."""
    logits = []
    for i, one in enumerate(image):
        maps, start = [], 0
        for level in model.encode(one[None]):
            level = level.clone()
            for c in range(level.shape[1]):
                high = float(noise[i, start + c]) >= 0.5
                if i % 2 == 0:
                    level[:, c] = level[:, c] * (2.0 if high != second else 0.0)
            start += level.shape[1]
            maps.append(level)
        assert start == noise.shape[1]
        logits.append(model.decode(tuple(maps), (image.shape[-2], image.shape[-1])).logits)
    return torch.cat(logits)


def unimatch_v2(method: Any, batch: Batch, step: int, target: Pseudo | None = None) -> dict[str, Tensor]:
    """(L_x + (s1 + s2)/2)/2 with pseudo-labels of the teacher."""
    config, u = method.config, batch.unlabelled
    assert u is not None
    assert u.strong2 is not None
    assert u.box2 is not None
    assert u.channel_noise is not None
    if target is None:
        target = pseudo(see(method.teacher, u.weak).logits.softmax(1), u.valid, config.threshold)
    own = labelled(see(method.model, batch.labelled.image).logits, batch.labelled.label, config.labelled_loss)
    views = [cutmix(u.strong1, u.box1), cutmix(u.strong2, u.box2)]
    if config.complementary_dropout:
        seen = [see_complementary(method.model, x, u.channel_noise, second=i == 1) for i, x in enumerate(views)]
    else:
        seen = [see(method.model, x).logits for x in views]
    s1 = unlabelled(seen[0], *target.mixed(u.box1), config.unlabelled_loss)
    s2 = unlabelled(seen[1], *target.mixed(u.box2), config.unlabelled_loss)
    strong = (s1 + s2) / 2
    loss = (own + grown(config, step) * strong) / 2
    return {"loss": loss, "labelled": own, "strong": strong, "confident": target.weight.sum() / u.valid.sum()}


class Bank(NamedTuple):
    """State of the image prototypes."""

    prototypes: Tensor  # (C, K, D)
    updates: Tensor  # (C, K)


def embed(method: Any, embedding: Tensor) -> Tensor:  # (B, D', h, w) -> (B·h·w, D) unit vectors
    """1×1 → ReLU → 1×1 → LayerNorm → L2, pixels in the order image, row, column."""
    first, _, second, norm = method.project
    rows = torch.stack([embedding[b, :, y, x] for b, y, x in torch.cartesian_prod(*map(torch.arange, _bhw(embedding)))])
    hidden = functional.linear(rows, first.weight, first.bias).clamp(min=0)
    wide = functional.linear(hidden, second.weight, second.bias)
    return functional.normalize(functional.layer_norm(wide, (wide.shape[1],), norm.weight, norm.bias), dim=-1)


def _bhw(x: Tensor) -> tuple[int, int, int]:
    return x.shape[0], x.shape[2], x.shape[3]


def contrast(z: Tensor, prototypes: Tensor, assignment: Tensor, weight: Tensor, config: Any) -> tuple[Tensor, Tensor]:
    """L_PCL and L_PAL: weighted means over the pixels whose weight is not 0, here one by one. Prototypes (C, K, D)."""
    per_class = prototypes.shape[1]
    flat = functional.normalize(prototypes, dim=-1).flatten(0, 1)
    pcl, pal = z.sum() * 0, z.sum() * 0
    for i in torch.nonzero(weight)[:, 0].tolist():
        own = int(assignment[i])
        cosine = flat @ z[i]
        others = [
            m for m in range(len(flat)) if m == own or config.same_class_negatives or m // per_class != own // per_class
        ]
        pcl = pcl + weight[i] * (
            torch.logsumexp(cosine[others] / config.temperature, 0) - cosine[own] / config.temperature
        )
        pal = pal + weight[i] * (1 - cosine[own]) ** 2
    total = max(float(weight.sum()), 1.0)
    return pcl / total, pal / total


class Pixels(NamedTuple):
    """What enters the prototype step."""

    z: Tensor  # (N, D)
    label: Tensor  # (N,), 255 where the weight is 0
    weight: Tensor  # (N,)
    correct: Tensor  # (N,) the weight where the classifier agrees with the label, else 0


def pixels(method: Any, batch: Batch, target: Pseudo) -> Pixels:
    assert batch.unlabelled is not None
    x, weak = see(method.model, batch.labelled.image), see(method.model, batch.unlabelled.weak)
    own = batch.labelled.label
    label = torch.cat([own, target.label])[:, 2::4, 2::4].flatten().long()
    weight = torch.cat([(own != IGNORE).double(), target.weight])[:, 2::4, 2::4].flatten()
    predicted = torch.cat([x.logits, weak.logits]).argmax(1)[:, 2::4, 2::4].flatten()
    z = embed(method, torch.cat([x.embedding, weak.embedding]))
    return Pixels(z, torch.where(weight > 0, label, IGNORE), weight, weight * (predicted == label))


def prototype_step(method: Any, seen: Pixels, bank: Bank) -> tuple[Tensor, Bank]:
    """Assignment (N,), and the bank after the update by the correctly classified pixels."""
    config = method.config
    z, label = seen.z.detach().numpy(), seen.label.numpy()
    old = bank.prototypes.numpy()
    if config.assignment == "sinkhorn":
        assignment = truth.sinkhorn_assign(z, old, label, epsilon=config.epsilon, iterations=config.iterations)
    else:
        nearest = truth.prototype_distance(z, old)[1]
        rows = range(len(label))
        flat = [-1 if label[i] == IGNORE else label[i] * old.shape[1] + nearest[i, label[i]] for i in rows]
        assignment = torch.tensor(flat).numpy()
    new = truth.prototype_update(
        old, bank.updates.numpy(), z, assignment, weight=seen.correct.numpy(), momentum=config.momentum
    )
    return torch.from_numpy(assignment), Bank(torch.from_numpy(new.prototypes), torch.from_numpy(new.updates))


def mpamatch_target(method: Any, batch: Batch, bank: Bank | None, *, started: bool) -> Pseudo:
    """Pseudo-labels, with the second opinion of the prototypes from before this step's update."""
    config, u = method.config, batch.unlabelled
    assert u is not None
    weak = see(method.model, u.weak)
    p = weak.logits.softmax(1)
    own = pseudo(p, u.valid, config.threshold)
    if config.second_opinion == "none" or bank is None or not started:
        return own
    z = embed(method, weak.embedding).detach()
    best = torch.einsum("nd,ckd->nck", z, bank.prototypes).max(-1).values  # (N, C)
    b, h, w = _bhw(weak.embedding)
    score = best.reshape(b, h, w, -1).permute(0, 3, 1, 2) / config.temperature
    score = functional.interpolate(score, size=p.shape[-2:], mode="bilinear", align_corners=False)
    if config.second_opinion == "agree":
        return own._replace(weight=own.weight * (score.argmax(1) == own.label))
    return pseudo((p + score.softmax(1)) / 2, u.valid, config.threshold)


def heads(method: Any, embedding: Tensor, size: Any, bank: Bank | None) -> dict[str, Tensor]:
    """Logits (B, C, H, W) of the cosine heads: cosine with a class's nearest prototype over temperature, resized."""
    z, (b, h, w) = embed(method, embedding), _bhw(embedding)
    rows = {}
    if bank is not None:
        classes = functional.normalize(bank.prototypes, dim=-1)
        rows["image"] = torch.stack([(one @ z.T).max(0).values for one in classes], dim=-1)
    if method.text is not None:
        g = functional.normalize(functional.linear(z, method.to_text.weight, method.to_text.bias), dim=-1)
        rows["text"] = g @ method.text().T
    found = {name: (cosine / method.config.temperature).reshape(b, h, w, -1) for name, cosine in rows.items()}
    return {
        name: functional.interpolate(logits.permute(0, 3, 1, 2), size=size, mode="bilinear", align_corners=False)
        for name, logits in found.items()
    }


def head_term(method: Any, batch: Batch, bank: Bank | None) -> Tensor:
    """Mean over the heads of their mean cross-entropy on labelled pixels."""
    x = batch.labelled
    found = heads(method, see(method.model, x.image).embedding, x.label.shape[-2:], bank)
    pixels = max(int((x.label != IGNORE).sum()), 1)
    return torch.stack([cross_entropy(logits, x.label).sum() / pixels for logits in found.values()]).mean()


def mpamatch(
    method: Any, batch: Batch, step: int, bank: Bank | None, target: Pseudo | None = None
) -> tuple[dict[str, Tensor], Bank | None]:
    """The parts of the loss, given the bank before the step, and the bank after it."""
    config = method.config
    begun = step >= config.start
    started = growth(step, config.start, config.ramp)
    if target is None:
        target = mpamatch_target(method, batch, bank, started=begun)
    head = head_term(method, batch, bank) if config.weight_head else None
    parts = unimatch_parts(method, batch, target)
    seen = pixels(method, batch, target)
    prototype = seen.z.sum() * 0
    if bank is not None:
        assignment, moved = prototype_step(method, seen, bank)
        bank = moved if begun else bank
        pcl, pal = contrast(seen.z, bank.prototypes, assignment, seen.weight, config)
        prototype = prototype + config.weight_image * (pcl + config.weight_alignment * pal)
        parts |= {"image_contrast": pcl, "image_alignment": pal}
    if method.text is not None:
        g = functional.normalize(functional.linear(seen.z, method.to_text.weight, method.to_text.bias), dim=-1)
        pcl, pal = contrast(g, method.text()[:, None], seen.label, seen.weight, config)
        prototype = prototype + config.weight_text * (pcl + config.weight_alignment * pal)
        parts |= {"text_contrast": pcl, "text_alignment": pal}
    loss = (
        config.weight_labelled * parts["labelled"]
        + config.weight_unlabelled
        * grown(config, step)
        * (config.weight_strong * parts["strong"] + config.weight_feature * parts["feature"])
        + config.weight_prototype * started * prototype
    )
    if head is not None:
        loss, parts = loss + config.weight_head * started * head, {**parts, "head": head}
    return {"loss": loss, **parts}, bank
