"""Pseudo-labels and the averages behind them: by hand on few pixels, then over steps; settings that cannot be."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mpamatch.errors import InputError
from mpamatch.methods import METHODS as BY_NAME
from mpamatch.methods.fixmatch import FixMatchConfig
from mpamatch.methods.pseudo_labels import PseudoLabeller, Targets
from tests.methods import truth_pseudo_labels
from tests.methods.cases import CLASSES, assert_same_numbers, method

NO_LABEL = torch.full((1, 1, 1), 255, dtype=torch.uint8)


def _labeller(classes: int = 2, **settings: Any) -> PseudoLabeller:
    """With averages that move fast."""
    momenta = {"threshold_momentum": 0.5, "share_momentum": 0.5}
    return PseudoLabeller(classes, FixMatchConfig(**{**momenta, **settings})).double()


def _row(*probabilities: tuple[float, ...]) -> Tensor:
    """Logits of one image of one row of pixels with these softmaxes."""
    return torch.tensor(probabilities, dtype=torch.float64).log().T[None, :, None]


def _valid(*pixels: int) -> Tensor:
    return torch.tensor(pixels, dtype=torch.bool)[None, None]


def _numbers(state: dict[str, Tensor]) -> dict[str, list[float]]:
    return {name: value.reshape(-1).tolist() for name, value in state.items()}


def _close(found: dict[str, Tensor], **wanted: list[float]) -> None:
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert found[name].reshape(-1).tolist() == pytest.approx(values, abs=1e-7), name


# --- by hand -------------------------------------------------------------------------------------------------


def test_the_thresholds_of_freematch_by_hand() -> None:
    """τ = ½·½ + ½·.7 = .6, p̃ = ½·½ + ½·(.525, .475) = (.5125, .4875): thresholds .6 and .6·.4875/.5125 = .571.

    Both averages have moved before they are used: with those from before, .5 and .5, the third pixel counts.
    """
    ours = _labeller(threshold="adaptive")
    _close(ours.state_dict(), confidence=[0.5], probability=[0.5, 0.5])
    p = [(0.9, 0.1), (0.4, 0.6), (0.55, 0.45), (0.25, 0.75), (0.01, 0.99)]  # the last of padding
    found = ours(_row(*p), _valid(1, 1, 1, 1, 0), NO_LABEL, {})
    _close(ours.state_dict(), confidence=[0.6], probability=[0.5125, 0.4875])
    assert found.label[0, 0].tolist() == [0, 1, 0, 1, 1]
    assert found.weight[0, 0].tolist() == [1, 1, 0, 1, 0]
    _close(ours.diagnostics(), **{"threshold/lowest": [0.6 * 0.4875 / 0.5125], "threshold/highest": [0.6]})
    # τ = ½·.6 + ½·(.8 + .52)/2 = .63, p̃ = ½·(.5125, .4875) + ½·(.64, .36) = (.57625, .42375): .63 and .463
    found = ours(_row((0.8, 0.2), (0.48, 0.52)), _valid(1, 1), NO_LABEL, {})
    _close(ours.state_dict(), confidence=[0.63], probability=[0.57625, 0.42375])
    assert found.weight[0, 0].tolist() == [1, 1]  # one threshold for both classes would leave the second out


def test_a_fixed_threshold_is_lower_for_classes_that_are_predicted_less() -> None:
    """p̃ = ½·½ + ½·(.6, .4) = (.55, .45): .8 for class 0, .8·.45/.55 = .6545 for class 1."""
    ours = _labeller(threshold=0.8, class_thresholds=True)
    p = [(0.9, 0.1), (0.79, 0.21), (0.34, 0.66), (0.35, 0.65), (0.62, 0.38), (0.01, 0.99)]  # the last of padding
    found = ours(_row(*p), _valid(1, 1, 1, 1, 1, 0), NO_LABEL, {})
    _close(ours.state_dict(), probability=[0.55, 0.45])
    assert found.weight[0, 0].tolist() == [1, 0, 1, 0, 0, 0]
    _close(ours.diagnostics(), **{"threshold/lowest": [0.8 * 0.45 / 0.55], "threshold/highest": [0.8]})


def test_the_threshold_of_corrmatch_by_hand() -> None:
    """From .85: the classes that valid pixels have are 0 and 1, their highest confidences .8 and .6, mean .7; ½·.85 +
    ½·.7 = .775. Class 2 is predicted in padding alone."""
    ours = _labeller(3, threshold="corrmatch")
    _close(ours.state_dict(), confidence=[0.85])
    p = [(0.5, 0.3, 0.2), (0.8, 0.1, 0.1), (0.3, 0.6, 0.1), (0.78, 0.11, 0.11), (0.0, 0.01, 0.99), (0.9, 0.1, 0.0)]
    found = ours(_row(*p), _valid(1, 1, 1, 1, 0, 0), NO_LABEL, {})
    _close(ours.state_dict(), confidence=[0.775])
    assert found.weight[0, 0].tolist() == [0, 1, 0, 1, 0, 0]
    _close(ours.diagnostics(), threshold=[0.775])
    ours(_row((0.1, 0.2, 0.7)), _valid(1), NO_LABEL, {})
    _close(ours.state_dict(), confidence=[0.7375])


def test_alignment_by_hand() -> None:
    """Labelled pixels: three of class 0, one of class 1 and two ignored: shares (.75, .25), their average (.625, .375).
    Mean prediction (.65, .35), its average (.575, .425)."""
    ours = _labeller(threshold=0.57, align_classes=True)
    _close(ours.state_dict(), labelled_share=[0.5, 0.5], predicted_share=[0.5, 0.5])
    label = torch.tensor([[[0, 0, 0], [255, 1, 255]]], dtype=torch.uint8)
    p = [(0.9, 0.1), (0.4, 0.6), (0.48, 0.52), (0.49, 0.51)]
    found = ours(_row(*p), _valid(1, 1, 0, 0), label, {})
    _close(ours.state_dict(), labelled_share=[0.625, 0.375], predicted_share=[0.575, 0.425])
    # .4·.625/.575 : .6·.375/.425 = .4348 : .5294, so class 1 with .549; .48 : .52 becomes .5321 : .4588, class 0
    assert found.label[0, 0].tolist() == [0, 1, 0, 0]
    assert found.weight[0, 0].tolist() == [1, 0, 0, 0]  # .6 and .549 stand on either side of .57


def test_ten_steps_of_alignment_bring_the_labelled_shares() -> None:
    """A classifier that favours class 0 and labels that favour class 1: what counts in the end is the labels' share."""
    ours = _labeller(threshold=0.0, align_classes=True)
    logits = torch.randn(4, 2, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits[:, 0] += 1.0
    label = torch.tensor([[[1, 1, 1, 0]]], dtype=torch.uint8)
    valid = torch.ones(4, 16, 16, dtype=torch.bool)
    before = float((logits.argmax(1) == 1).double().mean())
    for _ in range(10):
        found = ours(logits, valid, label, {})
    assert before < 0.3
    assert float((found.label == 1).double().mean()) > 0.6


# --- the labeller over several steps, and what it must not see ---------------------------------------------------

REMEMBERING: list[dict[str, Any]] = [
    {"threshold": "adaptive"},
    {"threshold": "adaptive", "threshold_momentum": 0.9},
    {"threshold": "corrmatch"},
    {"class_thresholds": True, "threshold": 0.6},
    {"align_classes": True, "threshold": 0.6},
    {"align_classes": True, "share_momentum": 0.9, "threshold": 0.6},
    {"align_classes": True, "threshold": "adaptive"},
    {"align_classes": True, "threshold": "corrmatch"},
]


def _logits(seed: int, n: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    tilt = torch.tensor([0.8, 0.0, -0.5], dtype=torch.float64)[:, None, None]
    return torch.randn(n, CLASSES, 8, 8, generator=generator, dtype=torch.float64) + tilt


def _scene(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, valid and labels; a third of the pixels is padding, a third of the labels is ignored."""
    generator = torch.Generator().manual_seed(seed + 100)
    valid = torch.rand(2, 8, 8, generator=generator) > 1 / 3
    label = torch.randint(0, CLASSES, (2, 8, 8), generator=generator, dtype=torch.uint8) // 2 * 2
    label[torch.rand(2, 8, 8, generator=generator) < 1 / 3] = 255
    return _logits(seed), valid, label


class _Remembers:
    """As much of a method as its averages are read from."""

    def __init__(self, pseudo: PseudoLabeller):
        self.pseudo = pseudo


@pytest.mark.parametrize("settings", REMEMBERING, ids=str)
def test_labels_weights_and_averages_over_steps(settings: dict[str, Any]) -> None:
    ours = _labeller(CLASSES, **settings)
    state, weights = truth_pseudo_labels.state_of(_Remembers(ours)), []
    for seed in range(4):
        logits, valid, label = _scene(seed)
        p = logits.softmax(1)
        if ours.config.align_classes:
            p, state = truth_pseudo_labels.aligned(p, valid, label, state, ours.config.share_momentum)
        limits, state = truth_pseudo_labels.thresholds(p, valid, ours.config, state)
        confidence, wanted = p.max(1)
        sure = (confidence >= torch.tensor(limits, dtype=torch.float64)[wanted]) & valid
        found = ours(logits, valid, label, {})
        assert torch.equal(found.label.long(), wanted)
        assert torch.equal(found.weight, sure.double())
        assert_same_numbers(ours.state_dict(), state, 1e-12)
        weights.append(sure.double().mean())
    assert 0 < float(torch.stack(weights).mean()) < float(valid.double().mean())


@pytest.mark.parametrize("settings", REMEMBERING, ids=str)
def test_neither_padding_nor_ignored_labels_are_seen(settings: dict[str, Any]) -> None:
    """Other logits in padding, and more of it; other images to fill the labelled batch with 255."""
    one, other = (_labeller(CLASSES, **settings) for _ in range(2))
    logits, valid, label = _scene(0)
    changed = torch.where(valid[:, None], logits, 50 * _logits(9))
    more = torch.cat([changed, 9 * _logits(8)])
    padded = torch.cat([valid, torch.zeros_like(valid)])
    ignored = torch.cat([label, torch.full_like(label, 255)])
    first, second = one(logits, valid, label, {}), other(more, padded, ignored, {})
    assert torch.equal(second.weight[:2], first.weight)
    assert torch.equal(second.label[:2][valid], first.label[valid])
    assert second.weight[2:].max() == 0
    assert first.weight[~valid].max() == 0
    assert_same_numbers(other.state_dict(), one.state_dict(), 1e-12)


@pytest.mark.parametrize("settings", REMEMBERING, ids=str)
def test_where_nothing_is_seen_the_averages_stay(settings: dict[str, Any]) -> None:
    """The mean of no pixels is not 0."""
    ours = _labeller(CLASSES, **settings)
    ours(*_scene(0), {})
    before = _numbers(ours.state_dict())
    logits, valid, label = _scene(1)
    found = ours(logits, torch.zeros_like(valid), torch.full_like(label, 255), {})
    assert found.weight.max() == 0
    assert _numbers(ours.state_dict()) == before
    ours(logits, valid, label, {})
    after = _numbers(ours.state_dict())
    assert all(after[name] != before[name] for name in before)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, []),
        ({"threshold": "adaptive"}, ["confidence", "probability"]),
        ({"threshold": "corrmatch"}, ["confidence"]),
        ({"class_thresholds": True}, ["probability"]),
        ({"align_classes": True}, ["labelled_share", "predicted_share"]),
    ],
    ids=str,
)
def test_what_is_remembered_lies_in_the_state_dict(settings: dict[str, Any], names: list[str]) -> None:
    ours = method("fixmatch", **settings)
    found = {name for name in ours.state_dict() if not name.startswith("model.")}
    assert found == {f"pseudo.{name}" for name in names}
    assert not list(ours.pseudo.parameters())
    of_classes, one = {"threshold/lowest", "threshold/highest"}, {"threshold"}
    shown = of_classes if "probability" in names else one if "confidence" in names else set()
    assert set(ours.diagnostics()) == shown


@pytest.mark.parametrize("threshold", ["adaptive", "corrmatch"])
def test_the_defaults_of_what_moves(threshold: str) -> None:
    """1/C and .85 at first, momentum .99."""
    config = FixMatchConfig(threshold=threshold, align_classes=True)  # type: ignore[arg-type]
    assert (config.threshold_momentum, config.share_momentum) == (0.99, 0.99)
    state = PseudoLabeller(4, config).state_dict()
    assert float(state["confidence"]) == pytest.approx({"adaptive": 0.25, "corrmatch": 0.85}[threshold])
    for name in ("probability", "labelled_share", "predicted_share"):
        if name in state:
            assert state[name].tolist() == [0.25] * 4


# --- targets and settings ------------------------------------------------------------------------------------


def test_targets_carry_no_gradient() -> None:
    ours = _labeller(CLASSES, threshold="adaptive", align_classes=True)
    logits, valid, label = _scene(0)
    found = ours(logits.requires_grad_(), valid, label, {})
    assert isinstance(found, Targets)
    assert found.label.dtype == torch.uint8
    assert not found.weight.requires_grad
    assert not any(buffer.requires_grad for buffer in ours.buffers())


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("fixmatch", {"threshold": "adaptive", "class_thresholds": True}, "method.class_thresholds: does nothing more"),
        ("fixmatch", {"threshold": "adaptiv"}, "unknown method.threshold 'adaptiv': did you mean 'adaptive'?"),
        ("fixmatch", {"threshold": 1.5}, "method.threshold: expected 0 to 1 or adaptive or corrmatch, got 1.5."),
        (
            "fixmatch",
            {"threshold": True},
            "unknown method.threshold 'True': choose from a number, adaptive, corrmatch.",
        ),
        ("fixmatch", {"threshold_momentum": 1.0}, "method.threshold_momentum: expected 0 <= threshold_momentum < 1"),
        ("unimatch", {"share_momentum": -0.1}, "method.share_momentum: expected 0 <= share_momentum < 1, got -0.1."),
        ("unimatch", {"align_classes": "perhaps"}, "method.align_classes: expected bool, got perhaps."),
        ("unimatch_v2", {"unlabelled_start": -1}, "method.unlabelled_start: expected at least 0, got -1."),
        ("unimatch_v2", {"unlabelled_ramp": 0.5}, "method.unlabelled_ramp: expected int, got 0.5."),
        ("unimatch_v2", {"teacher_decay": 1.0}, "method.teacher_decay: expected 0 <= teacher_decay < 1, got 1.0."),
        ("unimatch_v2", {"teacher": False}, "unknown field 'method.teacher'"),
        ("fixmatch", {"others": ("image",)}, "unknown field 'method.others'"),
        ("mpamatch", {"weight_head": -1.0}, "method.weight_head: expected at least 0, got -1.0."),
        ("mpamatch", {"head_share": -1.0}, "method.head_share: expected at least 0, got -1.0."),
        ("fixmatch", {"second_opinion": "agrees"}, "unknown method.second_opinion 'agrees': did you mean 'agree'?"),
        ("fixmatch", {"opinion_of": ["mirrow"]}, "unknown method.opinion_of 'mirrow': did you mean 'mirror'?"),
        (
            "fixmatch",
            {"opinion_of": "mirror"},
            "method.opinion_of: expected list of one of image, text, dropped, student,",
        ),
        (
            "fixmatch",
            {"second_opinion": "agree"},
            "method.second_opinion: there is nobody to ask without --method.teacher true.",
        ),
        (
            "fixmatch",
            {"second_opinion": "agree", "opinion_of": ["student"]},
            "method.opinion_of: student needs --method.teacher true.",
        ),
        (
            "unimatch",
            {"second_opinion": "average", "opinion_of": ["dropped", "mirror"]},
            "method.opinion_of: mirror needs --method.teacher true.",
        ),
        (
            "fixmatch",
            {"second_opinion": "agree", "teacher": True, "opinion_of": ["dropped"]},
            "method.opinion_of: fixmatch can ask student, mirror, got dropped.",
        ),
        (
            "unimatch",
            {"second_opinion": "agree", "opinion_of": ["image"]},
            "method.opinion_of: unimatch can ask dropped, student, mirror, got image.",
        ),
        (
            "unimatch_v2",
            {"second_opinion": "agree", "opinion_of": ["student"]},
            "method.opinion_of: unimatch_v2 can ask mirror, got student.",
        ),
        (
            "mpamatch",
            {"second_opinion": "agree", "opinion_of": ["text"]},
            "method.opinion_of: text needs --method.text_encoder.",
        ),
        (
            "mpamatch",
            {"second_opinion": "agree", "opinion_of": ["image"], "image_prototypes": False, "text_encoder": "words"},
            "method.opinion_of: image needs --method.image_prototypes true.",
        ),
    ],
    ids=str,
)
def test_settings_that_cannot_be(name: str, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as error:
        BY_NAME[name].configuration(**settings)
    assert str(error.value).startswith(says)
