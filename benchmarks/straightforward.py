"""A training step of MPAMatch as one would first write it, on the very network and prototypes of a `methods.MPAMatch`.

UniMatch's order of passes (CVPR 2023, section 3 and its public loop): the CutMix partners once more for their
pseudo-labels, then labelled and weak views with and without dropped channels, then both strong views. Losses in plain
PyTorch, prototypes class by class as in `loops`. Its loss is that of the method (to rounding), so times compare.
"""

import torch
from torch import Tensor
from torch.nn import functional

from mpamatch.batch import Batch
from mpamatch.benchmarks import loops
from mpamatch.errors import InputError
from mpamatch.methods.consistency import inside, neighbours
from mpamatch.methods.embedding import centre_sample, pixel_embeddings
from mpamatch.methods.losses import SMOOTH
from mpamatch.methods.mpamatch import MPAMatch
from mpamatch.methods.unimatch import Views
from mpamatch.models.transunet import Prediction
from mpamatch.ops import IGNORE


def check(method: object) -> MPAMatch:
    """Raises InputError for a method or a setting that this loop does not know."""
    if not isinstance(method, MPAMatch) or method.bank is None:
        raise InputError("the straightforward loop knows --method.name mpamatch with image prototypes alone.")
    config = method.config
    losses = (config.labelled_loss, config.unlabelled_loss)
    plain = (config.second_opinion, *losses, config.assignment, config.same_class_negatives)
    if plain != ("none", "ce_dice", "ce", "sinkhorn", True):
        raise InputError(
            "the straightforward loop knows second_opinion none, labelled_loss ce_dice, unlabelled_loss ce, assignment "
            "sinkhorn."
        )
    switches = (
        config.align_classes,
        config.teacher,
        config.unlabelled_start,
        config.unlabelled_ramp,
        config.weight_head,
    )
    if isinstance(config.threshold, str) or any(switches):
        raise InputError(
            "the straightforward loop knows none of threshold adaptive or corrmatch, align_classes, teacher, "
            "unlabelled_start, unlabelled_ramp, weight_head."
        )
    return method


def threshold_of(method: MPAMatch) -> float:
    """Returns the fixed threshold, which `check` has made sure of."""
    assert not isinstance(method.config.threshold, str)
    return method.config.threshold


def forward(method: MPAMatch, batch: Batch, step: Tensor) -> dict[str, Tensor]:  # step: () i64
    """The loss, from `start` + `ramp` on, where the prototype terms have their full weight."""
    config, u = method.config, batch.unlabelled
    assert u is not None
    seen, partners = passes(method, batch)
    confidence, pseudo = seen.weak.logits.detach().softmax(1).max(1)
    mixed_confidence, mixed_pseudo = partners.softmax(1).max(1)
    strong = []
    for logits, chosen in ((seen.strong1, seen.mixed1), (seen.strong2, seen.mixed2)):
        label, sure, valid = pseudo.clone(), confidence.clone(), u.valid.clone()
        label[chosen], sure[chosen] = mixed_pseudo[chosen], mixed_confidence[chosen]
        valid[chosen] = neighbours(u.valid)[chosen]
        strong.append(consistency(logits, label, sure >= threshold_of(method), valid))
    feature = consistency(seen.dropped, pseudo, confidence >= threshold_of(method), u.valid)
    supervised = labelled(seen.labelled.logits, batch.labelled.label)
    unlabelled = config.weight_strong * (strong[0] + strong[1]) / 2 + config.weight_feature * feature
    prototype = prototype_terms(method, seen, batch, pseudo, confidence)
    loss = config.weight_labelled * supervised + config.weight_unlabelled * unlabelled
    return {"loss": loss + config.weight_prototype * prototype}


def passes(method: MPAMatch, batch: Batch) -> tuple[Views, Tensor]:
    """All views in the published order of passes, and the logits of the CutMix partners."""
    model, u = method.model, batch.unlabelled
    assert u is not None
    assert u.strong2 is not None
    assert u.box2 is not None
    assert u.channel_noise is not None
    partner = neighbours(u.weak)
    model.eval()
    with torch.no_grad():
        partners = model(partner).logits
    model.train()
    strong = [u.strong1.clone(), u.strong2.clone()]
    mixed = [inside(box, *u.valid.shape[1:]) for box in (u.box1, u.box2)]
    for image, chosen, own in zip(strong, mixed, (u.strong1, u.strong2), strict=True):
        everywhere = chosen[:, None].expand_as(own)
        image[everywhere] = neighbours(own)[everywhere]
    n, size = len(batch.labelled.image), (u.weak.shape[-2], u.weak.shape[-1])
    maps = model.encode(torch.cat([batch.labelled.image, u.weak]))
    # the published code drops channels of the labelled images too and then leaves them aside
    noise = torch.cat([u.channel_noise.new_ones(n, u.channel_noise.shape[1]), u.channel_noise])
    dropped = method.drop(maps, noise)
    logits, embedding, _ = model.decode(tuple(torch.cat(pair) for pair in zip(maps, dropped, strict=True)), size)
    clean, perturbed = logits.chunk(2)
    strong1, strong2 = model(torch.cat(strong)).logits.chunk(2)
    first, weak = Prediction(clean[:n], embedding[:n]), Prediction(clean[n:], embedding[n : len(clean)])
    return Views(first, weak, strong1, strong2, perturbed[n:], *mixed), partners


def consistency(logits: Tensor, label: Tensor, confident: Tensor, valid: Tensor) -> Tensor:
    loss = functional.cross_entropy(logits, label, reduction="none")
    return (loss * (confident & valid)).sum() / valid.sum().clamp(min=1)


def labelled(logits: Tensor, label: Tensor) -> Tensor:
    """(CE + Dice)/2."""
    known, classes = label != IGNORE, logits.shape[1]
    cross_entropy = functional.cross_entropy(logits, label.long(), ignore_index=IGNORE)
    truth = functional.one_hot(torch.where(known, label, 0).long(), classes).movedim(-1, 1) * known[:, None]
    p = logits.softmax(1) * known[:, None]
    losses = []
    for c in range(classes):
        if truth[:, c].any():
            both, one, other = (p[:, c] * truth[:, c]).sum(), p[:, c].square().sum(), truth[:, c].sum()
            losses.append(1 - (2 * both + SMOOTH) / (one + other + SMOOTH))
    return (cross_entropy + torch.stack(losses).mean()) / 2


def prototype_terms(method: MPAMatch, seen: Views, batch: Batch, pseudo: Tensor, confidence: Tensor) -> Tensor:
    config, bank = method.config, method.bank
    assert bank is not None
    size = (seen.labelled.embedding.shape[-2], seen.labelled.embedding.shape[-1])
    assert batch.unlabelled is not None
    sure = (confidence >= threshold_of(method)) & batch.unlabelled.valid
    z = torch.cat([pixel_embeddings(method.project, one.embedding) for one in (seen.labelled, seen.weak)])
    label = torch.cat([batch.labelled.label.long(), torch.where(sure, pseudo, IGNORE)])
    label = centre_sample(label, size)
    predicted = torch.cat([seen.labelled.logits, seen.weak.logits]).argmax(1)
    correct = centre_sample(predicted, size) == label
    assignment = loops.assign(z, bank.prototypes, label, config.epsilon, config.iterations)
    moved = torch.where(correct, assignment, -1)
    loops.update_(bank.prototypes, bank.updates, z.detach(), moved, config.momentum)
    total = config.weight_image * contrast(z, bank.prototypes.flatten(0, 1), assignment.long(), method)
    if method.text is not None and method.to_text is not None:
        words = method.to_text(functional.normalize(z, dim=-1))
        own = torch.where(label == IGNORE, -1, label)
        total = total + config.weight_text * contrast(words, method.text(), own, method)
    return total


def contrast(z: Tensor, prototypes: Tensor, assignment: Tensor, method: MPAMatch) -> Tensor:
    """Cross entropy over all prototypes, and alignment with the own one, over the pixels that have one."""
    config, chosen = method.config, assignment >= 0
    if not chosen.any():
        return z.sum() * 0
    cosine = functional.normalize(z[chosen], dim=-1) @ functional.normalize(prototypes, dim=-1).T
    own = assignment[chosen]
    alignment = (1 - cosine.gather(1, own[:, None])).square().mean()
    return functional.cross_entropy(cosine / config.temperature, own) + config.weight_alignment * alignment
