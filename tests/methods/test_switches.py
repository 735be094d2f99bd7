"""Every switch of the pseudo-labels in every method that has it, against plain float64 torch; teachers and opinions."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mpamatch.batch import Batch
from mpamatch.methods import METHODS as BY_NAME
from mpamatch.methods import Method
from mpamatch.methods.pseudo_labels import PseudoLabelling, growth
from tests.methods import truth, truth_pseudo_labels
from tests.methods.cases import assert_same_numbers, at, batch, drift, method, with_gradients
from tests.methods.truth import Bank

FAMILY = ("fixmatch", "unimatch", "unimatch_v2", "mpamatch")

MOVING: list[dict[str, Any]] = [
    {"threshold": "adaptive", "threshold_momentum": 0.5},
    {"threshold": "corrmatch", "threshold_momentum": 0.8},
    {"class_thresholds": True, "threshold_momentum": 0.5},
    {"threshold": "corrmatch", "class_thresholds": True},
    {"align_classes": True, "share_momentum": 0.5},
    {"unlabelled_start": 4},
    {"unlabelled_start": 2, "unlabelled_ramp": 7},
]
OPINIONS: dict[str, list[list[str]]] = {  # with a teacher
    "fixmatch": [["student"], ["mirror"], ["student", "mirror"]],
    "unimatch": [["dropped"], ["student"], ["mirror"], ["mirror", "dropped", "student"]],
    "unimatch_v2": [["mirror"]],
    "mpamatch": [["image"], ["text"], ["image", "text"], ["text", "mirror", "dropped", "student", "image"]],
}
HEADS: list[dict[str, Any]] = [
    {"weight_head": 0.5},
    {"weight_head": 0.5, "head_share": 0.0},
    {"weight_head": 0.5, "head_share": 0.7},
    {"weight_head": 0.5, "start": 2, "ramp": 7},
    {"weight_head": 0.5, "start": 4},
    {"weight_head": 0.5, "text": True},
    {"weight_head": 0.5, "text": True, "image_prototypes": False, "head_share": 0.3},
    {"weight_head": 0.5, "text": True, "teacher": True, "align_classes": True, "threshold": "adaptive"},
    {"weight_head": 0.5, "text": True, "second_opinion": "average", "head_share": 0.3, "threshold": "corrmatch"},
]
Case = tuple[str, dict[str, Any], dict[str, Any]]  # name, settings to compare with, switch


def _cases() -> list[Case]:
    cases: list[Case] = [(name, {}, switch) for name in FAMILY for switch in MOVING]
    cases += [(name, {}, {"teacher": True}) for name in FAMILY if name != "unimatch_v2"]
    cases += [("unimatch_v2", {}, {"complementary_dropout": False}), ("unimatch_v2", {}, {"unlabelled_loss": "both"})]
    for name, lists in OPINIONS.items():
        base: dict[str, Any] = {} if name == "unimatch_v2" else {"teacher": True}
        base |= {"text": True} if name == "mpamatch" else {}
        for kind in ("agree", "average"):
            cases += [(name, base, {"second_opinion": kind, "opinion_of": asked}) for asked in [*lists, []]]
    for name in ("unimatch", "mpamatch"):  # the student alone
        cases += [(name, {}, {"second_opinion": kind, "opinion_of": ["dropped"]}) for kind in ("agree", "average")]
    cases += [("mpamatch", {}, switch) for switch in HEADS]
    many = {"threshold": "adaptive", "align_classes": True, "second_opinion": "average", "unlabelled_ramp": 7}
    cases += [(name, {}, many if name == "unimatch_v2" else many | {"teacher": True}) for name in FAMILY]
    return cases


def _method(name: str, **settings: Any) -> PseudoLabelling:
    """In the middle of training: the student is not its teacher, and prototypes have moved a few times."""
    ours = method(name, **settings)
    assert isinstance(ours, PseudoLabelling)
    if ours.teacher is not None:
        drift(ours, 0.02)
    bank = getattr(ours, "bank", None)
    if bank is not None:
        bank.updates.copy_(torch.arange(bank.updates.numel()).reshape(bank.updates.shape) + 3)
    return ours


def _bank(ours: Method) -> Bank | None:
    bank = getattr(ours, "bank", None)
    return None if bank is None else Bank(bank.prototypes.clone(), bank.updates.clone())


def _data(ours: Method, seed: int = 0) -> Batch:
    return batch(views=ours.strong_views, seed=seed)


def _logged(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in parts.items() if name != "confident"}


def _checked(ours: PseudoLabelling, data: Batch, step: int) -> dict[str, Tensor]:
    """Loss, gradients, averages and prototypes of a step, compared with the truth."""
    wanted, state, bank = truth_pseudo_labels.step(ours, data, step, truth_pseudo_labels.state_of(ours), _bank(ours))
    parts = ours(data, at(step))
    assert_same_numbers(_logged(parts), _logged(wanted))
    assert float(parts["confident"]) == pytest.approx(float(wanted["confident"]), abs=1e-6)
    assert_same_numbers(dict(ours.pseudo.named_buffers()), state)
    if bank is not None:
        assert_same_numbers(
            {"p": ours.bank.prototypes, "n": ours.bank.updates}, {"p": bank.prototypes, "n": bank.updates}
        )
    gradients = with_gradients(ours, parts["loss"])[1]
    assert_same_numbers(gradients, with_gradients(ours, wanted["loss"])[1])
    return {**_logged(parts), "confident": parts["confident"], **gradients}


@pytest.fixture(scope="module")
def without() -> dict[str, dict[str, Tensor]]:
    """Numbers without the switch, by name and settings."""
    return {}


@pytest.mark.parametrize(("name", "base", "switch"), _cases(), ids=str)
def test_every_switch_is_right_and_has_an_effect(
    name: str, base: dict[str, Any], switch: dict[str, Any], without: dict[str, dict[str, Tensor]]
) -> None:
    key = f"{name} {base}"
    if key not in without:
        ours = _method(name, **base)
        without[key] = _checked(ours, _data(ours), 3)
    ours = _method(name, **base, **switch)
    found, before = _checked(ours, _data(ours), 3), without[key]
    assert any(
        not torch.allclose(found[part], before[part], rtol=1e-6, atol=1e-9) for part in before.keys() & found.keys()
    )


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("fixmatch", {"threshold": "adaptive", "align_classes": True, "teacher": True}),
        ("unimatch_v2", {"threshold": "corrmatch", "threshold_momentum": 0.8}),
        ("mpamatch", {"threshold": "adaptive", "weight_head": 0.5, "start": 1, "second_opinion": "agree"}),
    ],
    ids=str,
)
def test_several_steps_one_after_the_other(name: str, settings: dict[str, Any]) -> None:
    """The truth's averages and prototypes go from step to step on their own."""
    ours = _method(name, **settings)
    state, bank = truth_pseudo_labels.state_of(ours), _bank(ours)
    for step in range(4):
        data = _data(ours, seed=step)
        wanted, state, bank = truth_pseudo_labels.step(ours, data, step, state, bank)
        parts = ours(data, at(step))
        assert_same_numbers(_logged(parts), _logged(wanted))
        assert_same_numbers(dict(ours.pseudo.named_buffers()), state)
        drift(ours, 0.01)
        ours.after_step(at(step))
    assert float(parts["confident"]) > 0


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("count", [1, 3])
def test_a_batch_of_one_and_an_odd_one(name: str, count: int) -> None:
    ours = _method(name, threshold="adaptive", align_classes=True)
    data = batch(count, views=ours.strong_views)
    wanted, _, _ = truth_pseudo_labels.step(ours, data, 0, truth_pseudo_labels.state_of(ours), _bank(ours))
    assert_same_numbers(_logged(ours(data, at(0))), _logged(wanted))


# --- start and ramp of the unlabelled terms ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "ramp", "shares"),
    [
        (0, 0, {0: 1.0, 9: 1.0}),
        (5, 0, {4: 0.0, 5: 1.0, 6: 1.0}),
        (0, 3, {0: 0.25, 2: 0.75, 3: 1.0, 99: 1.0}),
        (4, 7, {0: 0.0, 3: 0.0, 4: 0.125, 6: 0.375, 10: 0.875, 11: 1.0, 99: 1.0}),
    ],
)
def test_growth(start: int, ramp: int, shares: dict[int, float]) -> None:
    assert {step: float(growth(at(step), start, ramp)) for step in shares} == shares


@pytest.mark.parametrize("name", FAMILY)
def test_before_their_start_the_unlabelled_terms_count_nothing_and_train_nothing(name: str) -> None:
    """The labelled term is the same at every step."""
    settings = {"weight_prototype": 0.0} if name == "mpamatch" else {}
    late = _method(name, unlabelled_start=3, unlabelled_ramp=1, **settings)
    data = _data(late)
    parts = {2: late(data, at(2))}
    _, gradients = with_gradients(late, parts[2]["loss"])
    parts |= {step: late(data, at(step)) for step in (3, 4, 50)}
    labelled = parts[2]["labelled"]
    share = 0.5
    torch.testing.assert_close(parts[2]["loss"].detach(), share * labelled, rtol=1e-12, atol=0)
    added = {step: float(found["loss"].detach() - share * labelled) for step, found in parts.items()}
    assert added[4] > 1e-3
    assert added[3] == pytest.approx(added[4] / 2, rel=1e-9)
    assert added[50] == pytest.approx(added[4], rel=1e-9)
    assert all(torch.equal(found["labelled"], labelled) for found in parts.values())
    wanted = truth.labelled(truth.see(late.model, data.labelled.image).logits, data.labelled.label)
    assert_same_numbers(gradients, with_gradients(late, share * wanted)[1])


@pytest.mark.parametrize("name", FAMILY)
def test_every_term_counts_in_full_from_where_it_says(name: str) -> None:
    made = BY_NAME[name].configuration
    assert BY_NAME[name].settled(made(unlabelled_start=3, unlabelled_ramp=4)) == 7
    assert float(growth(at(7), 3, 4)) == 1
    assert float(growth(at(6), 3, 4)) < 1
    if name == "mpamatch":
        assert BY_NAME[name].settled(made(unlabelled_start=3, unlabelled_ramp=4, start=5, ramp=6)) == 11


# --- opinions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [["image"], ["text"], ["text", "image"]], ids=str)
@pytest.mark.parametrize("kind", ["agree", "average"])
def test_prototypes_are_asked_from_their_start_on(kind: str, asked: list[str]) -> None:
    settings = {"text": True, "second_opinion": kind, "opinion_of": asked}
    own, early, late = (
        _logged(_method("mpamatch", **extra)(batch(), at(3)))["strong"]
        for extra in ({"text": True}, {**settings, "start": 4}, {**settings, "start": 3})
    )
    assert torch.equal(early, own)
    assert not torch.equal(late, own)


def test_who_else_is_asked_is_asked_before_the_start_of_the_prototypes() -> None:
    settings = {"second_opinion": "average", "opinion_of": ["image", "dropped"], "start": 9}
    both = _checked(_method("mpamatch", **settings), batch(), 3)
    alone = _checked(_method("mpamatch", **settings | {"opinion_of": ["dropped"]}), batch(), 3)
    assert torch.equal(both["strong"], alone["strong"])


def test_more_opinions_leave_fewer_pixels() -> None:
    """Agreement of all: what one list leaves, a longer one leaves or takes away."""
    shares = []
    for asked in (["student"], ["student", "mirror"], ["student", "mirror", "dropped"]):
        ours = _method("unimatch", teacher=True, second_opinion="agree", opinion_of=asked)
        shares.append(float(ours(batch(), at(0))["confident"]))
    own = float(_method("unimatch", teacher=True)(batch(), at(0))["confident"])
    assert own > shares[0] > shares[1] > shares[2] > 0


@pytest.mark.parametrize(
    ("name", "settings", "who"),
    [
        ("fixmatch", {"teacher": True}, ["student"]),
        ("unimatch", {}, ["dropped"]),
        ("unimatch", {"teacher": True}, ["dropped"]),
        ("unimatch_v2", {}, ["mirror"]),
        ("mpamatch", {"text": True}, ["image"]),
        ("mpamatch", {"text": True, "image_prototypes": False}, ["text"]),
    ],
    ids=str,
)
def test_who_is_asked_if_nobody_is_named(name: str, settings: dict[str, Any], who: list[str]) -> None:
    data = batch(views=BY_NAME[name].strong_views)
    for kind in ("agree", "average"):
        silent, named = (
            _method(name, **settings, second_opinion=kind, opinion_of=asked)(data, at(0))["loss"].detach()
            for asked in ([], who)
        )
        assert torch.equal(silent, named)


# --- the teacher ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILY)
def test_the_teacher_makes_the_labels_in_evaluation_mode_and_predicts(name: str) -> None:
    """With batch norm the modes differ: evaluation asks the running statistics and leaves them as they are."""
    settings = {} if name == "unimatch_v2" else {"teacher": True}
    ours = method(name, norm="batch", threshold=0.5, **settings)
    assert ours.deployed is ours.teacher
    assert not any(p.requires_grad for p in ours.teacher.parameters())
    drift(ours, 0.02)
    ours.train()
    assert ours.model.training
    assert not any(module.training for module in ours.teacher.modules())
    data = _data(ours)
    assert data.unlabelled is not None
    before = {key: value.clone() for key, value in ours.teacher.state_dict().items()}
    parts = ours(data, at(0))
    assert_same_numbers(dict(ours.teacher.state_dict()), before, 0)
    with torch.no_grad():
        p = ours.teacher(data.unlabelled.weak).logits.softmax(1)
    confident = (p.max(1).values >= 0.5)[data.unlabelled.valid].double().mean()
    assert float(parts["confident"]) == pytest.approx(float(confident), abs=1e-6)
    parts["loss"].backward()
    assert all(p.grad is None for p in ours.teacher.parameters())


@pytest.mark.parametrize("name", [name for name in FAMILY if name != "unimatch_v2"])
def test_without_a_teacher_there_is_none(name: str) -> None:
    ours = method(name)
    assert ours.teacher is None
    assert ours.deployed is ours.model
    assert not any(key.startswith("teacher") for key in ours.state_dict())


@pytest.mark.parametrize(("step", "m"), [(0, 0.0), (1, 0.5), (4, 0.8), (9, 0.9), (500, 0.9)])
@pytest.mark.parametrize("name", FAMILY)
def test_the_teacher_is_an_average_of_the_students_past(name: str, step: int, m: float) -> None:
    settings = {} if name == "unimatch_v2" else {"teacher": True}
    ours = method(name, teacher_decay=0.9, **settings)
    drift(ours)
    before = {key: value.clone() for key, value in ours.teacher.state_dict().items()}
    student = {key: value.clone() for key, value in ours.model.state_dict().items()}
    wanted = {key: m * value + (1 - m) * student[key] for key, value in before.items()}
    ours.after_step(at(step))
    assert_same_numbers(dict(ours.teacher.state_dict()), wanted, 1e-7)  # m is computed in float32
    assert_same_numbers(dict(ours.model.state_dict()), student, 0)


def test_the_decay_of_the_teachers() -> None:
    assert {name: BY_NAME[name].configuration().teacher_decay for name in FAMILY} == {
        "fixmatch": 0.99,
        "unimatch": 0.99,
        "unimatch_v2": 0.996,
        "mpamatch": 0.99,
    }


def test_a_fixmatch_with_a_teacher_shows_the_student_the_weak_view_only_if_it_is_asked() -> None:
    data, seen = batch(views=1), {}
    for asked in (["mirror"], ["student"]):
        ours = _method("fixmatch", teacher=True, second_opinion="agree", opinion_of=asked)
        ours.model.register_forward_hook(lambda _, images, __, key=asked[0]: seen.update({key: len(images[0])}))
        ours(data, at(0))
    assert seen == {"mirror": 4, "student": 6}


@pytest.mark.parametrize("name", FAMILY)
def test_a_step_under_autocast_is_finite_and_near(name: str) -> None:
    """The averages stay in float32."""
    settings: dict[str, Any] = {"threshold": "adaptive", "align_classes": True, "second_opinion": "average"}
    settings |= {} if name == "unimatch_v2" else {"teacher": True}
    settings |= {"weight_head": 0.5, "text": True} if name == "mpamatch" else {}
    exact, half = (method(name, dtype=torch.float32, **settings) for _ in range(2))
    data = batch(views=exact.strong_views, dtype=torch.float32)
    wanted = exact(data, at(0))["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = half(data, at(0))["loss"]
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=0.05)
    assert all(g.isfinite().all() for g in with_gradients(half, loss)[1].values())
    assert {buffer.dtype for buffer in half.pseudo.buffers()} == {torch.float32}
    assert_same_numbers(dict(half.pseudo.named_buffers()), dict(exact.pseudo.named_buffers()), 1e-3)
