"""PCCS against float64 numpy: level sets, prototypes, every term, the whole step, and where gradients go."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mpamatch.batch import Batch
from mpamatch.errors import InputError
from mpamatch.methods import pccs_terms as terms
from mpamatch.methods.pccs import PCCS
from tests.methods import truth_pccs as truth
from tests.methods.cases import CLASSES, assert_same_numbers, at, batch, method, with_gradients
from tests.methods.truth import Bank

G = torch.Generator()


def _labels(kind: str, classes: int, images: int = 3, side: int = 14) -> Tensor:  # (B, h, w) u8
    """Blobs of some cells' width, so that classes have an inside; one image has a hole of ignored cells."""
    G.manual_seed(classes)
    coarse = torch.rand(images, 1, 4, 4, generator=G)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")[:, 0]
    label = (smooth * classes).long().clamp(0, classes - 1).to(torch.uint8)
    if kind == "absent":
        label[label == 1] = 0
    if kind == "background":
        label[:] = 0
    if kind == "foreground":
        label[:] = classes - 1
    if kind == "ignored":
        label[:] = 255
    if kind == "some":
        label[0, 2:5, 3:9] = 255
    return label


def _uncertain(share: float, like: Tensor) -> Tensor:
    return torch.rand(like.shape, generator=G) < share


def _comparable(sets: list[truth.Set]) -> list[tuple[int, int, float, bytes]]:
    return sorted((s.image, s.owner, round(s.part, 5), s.cells.tobytes()) for s in sets)


KINDS = ["some", "absent", "background", "foreground", "ignored"]


@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_level_sets(kind: str, classes: int, share: float) -> None:
    """Every cell of every set, at levels that suffice and at levels that do not; shapes do not depend on the label."""
    label = _labels(kind, classes)
    uncertain = _uncertain(share, label)
    for levels in (2, 16):
        ours = terms.level_sets(label, uncertain, classes, levels)
        number = 2 + (classes - 1) * levels + (classes - 2) * levels
        assert ours.member.shape == (3, number, 14 * 14)
        found = [
            truth.Set(b, int(ours.owner[s]), float(ours.part[b, s]), ours.member[b, s].reshape(14, 14).numpy())
            for b, s in torch.argwhere(ours.member.any(2)).tolist()
        ]
        wanted = truth.level_sets(label.numpy(), uncertain.numpy(), classes, levels)
        assert _comparable(found) == _comparable(wanted)
        if kind == "some":
            assert {s.owner for s in wanted} == set(range(0 if share else 1, classes))


def test_level_sets_by_hand() -> None:
    """A square of 5×5 in 9×9: its rim has distance 0, the 8 cells within it 2, its centre 3. Around it 20 cells touch
    it; 4 lie √2 from its corners, half of the √8 in the image's corners, and 32 lie farther."""
    label = torch.zeros(1, 9, 9, dtype=torch.uint8)
    label[0, 2:7, 2:7] = 1
    ours = terms.level_sets(label, torch.ones(1, 9, 9, dtype=torch.bool), 2, 4)
    assert ours.member[0].sum(1).tolist() == [4, 32, 0, 8, 1, 0]
    assert ours.owner.tolist() == [0, 0, 1, 1, 1, 1]
    torch.testing.assert_close(ours.part[0, :5], torch.tensor([0.25, 0.75, 0.5 / 3, 1.5 / 3, 2.5 / 3]))


def _case(kind: str = "some", classes: int = 3, share: float = 0.6) -> tuple[Any, ...]:
    """Level sets with embeddings (B, n, 5) and probabilities (B, n, C), ours and for numpy."""
    label = _labels(kind, classes)
    uncertain = _uncertain(share, label)
    z = torch.randn(3, 14 * 14, 5, generator=G, dtype=torch.float64)
    p = (3 * torch.randn(3, 14 * 14, classes, generator=G, dtype=torch.float64)).softmax(2)
    ours = terms.prototypes_of(z, p, terms.level_sets(label, uncertain, classes, 16))
    sets = truth.level_sets(label.numpy(), uncertain.numpy(), classes, 16)
    shape = (3, 14, 14, -1)
    return ours, truth.prototypes(z.numpy().reshape(shape), p.numpy().reshape(shape), sets)


def _by_owner_and_part(direction: Any, owner: Any, weight: Any, part: Any) -> Any:
    table = np.column_stack([owner, np.round(part, 5), weight, direction])
    return table[np.lexsort(np.round(table.T, 9)[::-1])]


@pytest.mark.parametrize("kind", KINDS)
def test_prototypes(kind: str) -> None:
    ours, wanted = _case(kind)
    kept = ours.filled
    found = _by_owner_and_part(*(x[kept].numpy() for x in (ours.direction, ours.owner, ours.weight, ours.part)))
    np.testing.assert_allclose(found, _by_owner_and_part(*wanted), atol=1e-7)
    assert (ours.direction[~kept] == 0).all()
    assert (ours.weight[kept] > 1).all()


def _chosen(direction: Tensor, owner: list[int], filled: list[bool] | None = None) -> terms.Prototypes:
    filled = filled or [True] * len(owner)
    weight = 1 + torch.rand(len(owner), generator=G, dtype=torch.float64)
    part = torch.rand(len(owner), generator=G, dtype=torch.float64)
    return terms.Prototypes(direction, torch.tensor(filled), weight, torch.tensor(owner), part)


def _numpy(of: terms.Prototypes) -> truth.Prototypes:
    kept = of.filled
    return truth.Prototypes(
        of.direction.detach()[kept].numpy(),
        of.owner[kept].tolist(),
        of.weight[kept].numpy(),
        of.part[kept].tolist(),
    )


OWNERS: dict[str, tuple[list[int], list[bool] | None]] = {
    "two classes": ([0, 0, 1, 1, 1], None),
    "three classes": ([0, 1, 2, 2, 1, 0, 0], None),
    "a single prototype of a class": ([0, 1, 1, 1], None),
    "one class alone": ([1, 1, 1], None),
    "one prototype alone": ([2], None),
    "single prototypes only": ([0, 1, 2], None),
    "empty slots": ([0, 0, 1, 1, 1, 2, 2], [True, True, False, True, True, False, False]),
    "nothing": ([0, 0, 1, 1], [False] * 4),
}


@pytest.mark.parametrize("name", OWNERS)
def test_level_contrast(name: str) -> None:
    """Value by the formula's loops, gradient by finite differences; never NaN."""
    owner, filled = OWNERS[name]
    G.manual_seed(3)
    direction = torch.randn(len(owner), 4, generator=G, dtype=torch.float64)
    direction = torch.nn.functional.normalize(direction, dim=1).requires_grad_()
    of = _chosen(direction, owner, filled)
    for temperature in (0.05, 0.5):
        ours = terms.level_contrast(direction, of, temperature)
        assert float(ours.detach()) == pytest.approx(
            truth.level_contrast(_numpy(of), temperature), rel=1e-10, abs=1e-12
        )
        torch.autograd.gradcheck(lambda d, t=temperature: terms.level_contrast(d, of, t), direction, atol=1e-6)
    if name in ("two classes", "empty slots"):
        assert float(ours.detach()) > 0.1


def test_level_contrast_by_hand() -> None:
    """Two prototypes of class 0 at cosine 1, one of class 1 at cosine 0 to them; T = 1: log(e + 1) − 1 for either."""
    direction = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    value = float(terms.level_contrast(direction, _chosen(direction, [0, 0, 1]), 1.0))
    assert value == pytest.approx(math.log(math.e + 1) - 1, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("per_class", [1, 2, 3])
def test_pooled_by_depth(kind: str, per_class: int) -> None:
    ours, wanted = _case(kind)
    bank = torch.nn.functional.normalize(torch.randn(3, per_class, 5, generator=G, dtype=torch.float64), dim=2)
    mean, filled = terms.pooled(ours.direction, ours, 3, per_class)
    moved = torch.where(filled, torch.nn.functional.normalize(0.7 * bank + 0.3 * mean, dim=2), bank)
    expected = truth.mixed(bank.numpy(), wanted, 0.3)
    np.testing.assert_allclose(moved.numpy(), expected, atol=1e-9)
    assert np.array_equal(filled[..., 0].numpy(), (expected != bank.numpy()).any(-1))
    assert torch.equal(moved[~filled[..., 0]], bank[~filled[..., 0]])


@pytest.mark.parametrize("valid", [0.0, 0.5, 1.0])
def test_consistency(valid: float) -> None:
    G.manual_seed(1)
    logits, wanted = (2 * torch.randn(2, 3, 3, 4, generator=G, dtype=torch.float64) for _ in range(2))
    seen = torch.rand(2, 3, 4, generator=G) < valid
    p = logits.softmax(1).requires_grad_()
    ours = terms.consistency(p, wanted.softmax(1), seen)
    expected = truth.consistency(p.detach().numpy(), wanted.softmax(1).numpy(), seen.numpy())
    assert [float(x.detach()) for x in ours] == pytest.approx(expected, rel=1e-10)
    torch.autograd.gradcheck(
        lambda x: terms.consistency(x.softmax(1), wanted.softmax(1), seen), logits.requires_grad_()
    )


@pytest.mark.parametrize("height", [0.0, 1e3])
def test_consistency_of_maps_that_are_all_uncertain_or_all_certain_has_a_finite_gradient(height: float) -> None:
    logits = torch.zeros(1, 2, 2, 2)
    logits[:, 0] = height
    logits.requires_grad_()
    squares, entropies = terms.consistency(logits.softmax(1), logits.detach().softmax(1), torch.ones(1, 2, 2) > 0)
    (squares + entropies).backward()
    assert float(squares.detach()) == 0
    assert float(entropies.detach()) == pytest.approx(math.log(2) if height == 0 else 0, abs=1e-5)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


# --- the whole step ------------------------------------------------------------------------------------------


def _pccs(**settings: Any) -> PCCS:
    """Student and teacher differ, and the bank is as if it had been updated a few times."""
    ours = method("pccs", **settings)
    assert isinstance(ours, PCCS)
    ours.bank.updates.copy_(torch.arange(ours.bank.updates.numel()).reshape(ours.bank.updates.shape) + 3)
    G.manual_seed(5)
    with torch.no_grad():
        for parameter in [*ours.model.parameters(), *ours.project.parameters()]:
            parameter.add_(0.1 * torch.rand(parameter.shape, generator=G, dtype=torch.float64))
    return ours


def _batch() -> Batch:
    """Smooth views of 64×64, so that classes have an inside."""
    data = batch(views=1, side=64, seed=5)
    u = data.unlabelled
    assert u is not None
    smooth = torch.nn.functional.interpolate(u.weak[:, :, ::9, ::9], size=64, mode="bicubic")
    return Batch(data.labelled, u._replace(weak=3 * smooth, strong1=3 * smooth + 0.3 * u.strong1))


def _step(settings: dict[str, Any], step: int = 3) -> dict[str, Tensor]:
    """Parts of the loss and the bank afterwards, compared with the truth."""
    ours, data = _pccs(**settings), _batch()
    wanted, bank = truth.pccs(ours, data, step, Bank(ours.bank.prototypes.clone(), ours.bank.updates.clone()))
    parts = ours(data, at(step))
    found = {name: value.detach().double() for name, value in parts.items()}
    agreed = float(found.pop("agreed")), wanted.pop("agreed")
    assert agreed[0] == pytest.approx(agreed[1], abs=1e-6)
    assert_same_numbers(found, {name: torch.tensor(value, dtype=torch.float64) for name, value in wanted.items()})
    assert_same_numbers({"bank": ours.bank.prototypes}, {"bank": bank.prototypes})
    assert torch.equal(ours.bank.updates, bank.updates)
    return found | {"bank": ours.bank.prototypes}


@pytest.fixture(scope="module")
def default() -> dict[str, Tensor]:
    return _step({})


@pytest.mark.parametrize(
    "settings",
    [
        {"labelled_loss": "ce"},
        {"prototypes": 3},
        {"prototypes": 1},
        {"embedding_width": 4},
        {"levels": 1},
        {"uncertain": 0.9},
        {"temperature": 0.3},
        {"epsilon": 0.5},
        {"iterations": 1},
        {"momentum": 0.1},
        {"distance_share": 0.4},
        {"weight_contrast": 0.5},
        {"weight_auxiliary": 0.1},
        {"weight_consistency": 0.9},
        {"weight_entropy": 0.7},
        {"contrast_start": 4},
        {"start": 4, "contrast_start": 4},
        {"ramp": 50},
    ],
    ids=str,
)
def test_every_setting_is_right_and_has_an_effect(settings: dict[str, Any], default: dict[str, Tensor]) -> None:
    found = _step(settings)
    assert any(
        value.shape != default[name].shape or not torch.allclose(value, default[name], rtol=1e-6, atol=1e-9)
        for name, value in found.items()
    )


def test_the_case_has_prototypes_of_every_class(default: dict[str, Tensor]) -> None:
    """What the comparison rests on."""
    ours, u = _pccs(), _batch().unlabelled
    assert u is not None
    taught = ours.teach(u)
    sets = terms.level_sets(taught.label, taught.uncertain, CLASSES, 16)
    per_class = [int(sets.member.any(2)[:, sets.owner == c].sum()) for c in range(CLASSES)]
    assert min(per_class) >= 2
    assert float(default["level_contrast"]) > 0.1
    assert 0 < float(taught.uncertain.double().mean()) < 1


def test_the_weights_and_stages_of_the_paper() -> None:
    """(CE + Dice)/2 alone, from step 200 consistency, from 500 on also .01 contrast and .3 auxiliary; the ramp ends at
    200 epochs of 150 iterations."""
    data = _batch()
    ours = _pccs(start=200, contrast_start=500, ramp=30000)
    for step in (0, 199, 200, 499, 500, 40000):
        parts = {k: float(v.detach()) for k, v in copy.deepcopy(ours)(data, at(step)).items()}
        ramp = math.exp(-5 * (1 - min(step / 30000, 1)) ** 2)
        wanted = parts["labelled"]
        if step >= 200:
            wanted += 0.1 * ramp * (parts["consistency"] + 0.1 * parts["entropy"])
        if step >= 500:
            wanted += 0.01 * parts["level_contrast"] + 0.3 * parts["auxiliary"]
        assert parts["loss"] == pytest.approx(wanted, abs=1e-9)


def test_before_its_start_nothing_moves_the_bank() -> None:
    ours = _pccs(start=5, contrast_start=7, distance_share=0.5)
    before = ours.bank.prototypes.clone(), ours.bank.updates.clone()
    ours(_batch(), at(4))
    assert torch.equal(ours.bank.prototypes, before[0])
    assert torch.equal(ours.bank.updates, before[1])
    ours(_batch(), at(5))
    assert (ours.bank.updates == before[1] + 1).any()


@pytest.mark.parametrize("weight", ["labelled", "consistency", "entropy", "contrast", "auxiliary"])
def test_the_gradient_of_each_term_by_finite_differences(weight: str) -> None:
    """Along one direction of all trained parameters; no distance prototype is mixed in, as that carries no gradient."""
    off = dict.fromkeys(("weight_consistency", "weight_entropy", "weight_contrast", "weight_auxiliary"), 0.0)
    on = {"entropy": {"weight_consistency": 1.0, "weight_entropy": 9.0}, "labelled": {}}
    settings = on.get(weight, {f"weight_{weight}": 5.0})
    ours, data = _pccs(**(off | settings | {"distance_share": 0.0})), _batch()
    start = copy.deepcopy(ours.state_dict())
    _, gradients = with_gradients(ours, ours(data, at(4))["loss"])
    G.manual_seed(11)
    along = {k: torch.randn(g.shape, generator=G, dtype=torch.float64) for k, g in gradients.items()}

    def moved(by: float) -> float:
        ours.load_state_dict(start)
        with torch.no_grad():
            for name, parameter in ours.named_parameters():
                if name in along:
                    parameter.add_(by * along[name])
            return float(ours(data, at(4))["loss"])

    step = 1e-7  # a larger one crosses a kink of the network's rectifiers
    wanted = (moved(step) - moved(-step)) / (2 * step)
    found = sum(float((gradients[name] * along[name]).sum()) for name in along)
    assert found == pytest.approx(wanted, rel=1e-4)
    reaches_projection = gradients["project.0.weight"].abs().max() > 0
    assert bool(reaches_projection) == (weight in ("contrast", "auxiliary"))


@pytest.mark.parametrize("case", ["background", "foreground", "uncertain", "certain", "invalid", "ignored"])
def test_degenerate_images_give_finite_numbers(case: str) -> None:
    """The teacher sees one class alone, is sure nowhere or everywhere, or no pixel counts at all."""
    ours, data = _pccs(uncertain=0.25), _batch()
    u = data.unlabelled
    assert u is not None
    with torch.no_grad():
        head = ours.teacher.decoder.head
        assert head.bias is not None
        if case in ("background", "foreground"):
            head.bias[0 if case == "background" else 1] += 1e4
        head.weight.mul_({"uncertain": 0.0, "certain": 1e4}.get(case, 1.0))
        if case == "uncertain":
            head.bias.zero_()
    if case == "invalid":
        data = Batch(data.labelled, u._replace(valid=torch.zeros_like(u.valid)))
    if case == "ignored":
        data = Batch(data.labelled._replace(label=torch.full_like(data.labelled.label, 255)), data.unlabelled)
    for step in range(2):
        parts = ours(data, at(step))
        _, gradients = with_gradients(ours, parts["loss"])
        assert all(value.isfinite() for value in parts.values())
        assert all(g.isfinite().all() for g in gradients.values())
    assert ours.bank.prototypes.isfinite().all()
    torch.testing.assert_close(ours.bank.prototypes.norm(dim=-1), torch.ones(CLASSES, 2, dtype=torch.float64))
    if case in ("background", "foreground", "invalid"):
        assert float(parts["level_contrast"]) == pytest.approx(0, abs=1e-9)


# --- the teacher ---------------------------------------------------------------------------------------------


def test_the_teacher_is_averaged_with_its_projection_and_predicts() -> None:
    ours = _pccs(decay=0.9)
    assert ours.deployed is ours.teacher
    before, project = (copy.deepcopy(x.state_dict()) for x in (ours.teacher, ours.teacher_project))
    ours.after_step(at(50))
    for old, teacher, student in ((before, ours.teacher, ours.model), (project, ours.teacher_project, ours.project)):
        mine = student.state_dict()
        wanted = {k: 0.9 * v + 0.1 * mine[k] if v.is_floating_point() else mine[k] for k, v in old.items()}
        assert_same_numbers(dict(teacher.state_dict()), wanted, 1e-7)
    ours.train()
    assert not ours.teacher.training
    assert ours.model.training
    ours(_batch(), at(3))["loss"].backward()
    assert all(p.grad is None for p in [*ours.teacher.parameters(), *ours.teacher_project.parameters()])


def test_teacher_and_student_see_their_own_view() -> None:
    """Another weak view changes what is taught; another strong view leaves pseudo-labels as they were."""
    ours, data = _pccs(), _batch()
    u = data.unlabelled
    assert u is not None
    taught = ours.teach(u)
    assert torch.equal(ours.teach(u._replace(strong1=-u.strong1)).label, taught.label)
    assert not torch.equal(ours.teach(u._replace(weak=-u.weak)).label, taught.label)
    invalid = ~u.valid[:, 2::4, 2::4]
    assert torch.equal(taught.label == 255, invalid)


# --- settings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"decay": 1.0}, "method.decay: expected 0 <= decay < 1, got 1.0"),
        ({"prototypes": 0}, "method.prototypes: expected at least 1"),
        ({"embedding_width": 0}, "method.embedding_width"),
        ({"levels": 0}, "method.levels"),
        ({"iterations": 0}, "method.iterations"),
        ({"ramp": 0}, "method.ramp"),
        ({"momentum": 1.1}, "method.momentum: expected 0 to 1"),
        ({"distance_share": -0.1}, "method.distance_share"),
        ({"uncertain": 1.5}, "method.uncertain"),
        ({"temperature": 0.0}, "method.temperature: expected more than 0"),
        ({"epsilon": float("nan")}, "method.epsilon"),
        ({"weight_contrast": -1.0}, "method.weight_contrast: expected at least 0"),
        ({"weight_entropy": float("nan")}, "method.weight_entropy"),
        ({"start": -1}, "method.start: expected at least 0"),
        ({"start": 5, "contrast_start": 4}, "method.start, method.contrast_start"),
    ],
    ids=str,
)
def test_settings_that_cannot_be(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        method("pccs", **settings)
