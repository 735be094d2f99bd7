"""Every method's loss and gradients against plain float64 torch; teachers; what the optimizer gets."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mpamatch.errors import InputError
from mpamatch.methods import METHODS as BY_NAME
from mpamatch.methods import Method
from mpamatch.methods.mean_teacher import MeanTeacher
from mpamatch.methods.supervised import Supervised, SupervisedConfig
from mpamatch.models.layers import ChannelDropout, ComplementaryDropout
from tests.methods import truth
from tests.methods.cases import METHODS, assert_same_numbers, at, batch, drift, method, network, with_gradients

VIEWS = {
    "supervised": 0,
    "mean_teacher": 1,
    "fixmatch": 1,
    "unimatch": 2,
    "unimatch_v2": 2,
    "mpamatch": 2,
    "pccs": 1,
    "lpd": 0,
}


def _detached(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    # the share of confident pixels is for the log, in float32
    return {name: value.detach() for name, value in parts.items() if name != "confident"}


def _assert_method(ours: Method, name: str, step: int = 0, tolerance: float = 1e-9) -> None:
    """Every part of the loss, and the gradient of every parameter."""
    data = batch(views=VIEWS[name])
    parts, wanted = ours(data, at(step)), getattr(truth, name)(ours, data, step)
    assert_same_numbers(_detached(parts), _detached(wanted), tolerance)
    if "confident" in wanted:
        assert float(parts["confident"]) == pytest.approx(float(wanted["confident"]), abs=1e-6)
        assert 0.1 < float(parts["confident"]) < 0.9
    in_ours, in_truth = (with_gradients(ours, x["loss"])[1] for x in (parts, wanted))
    assert_same_numbers(in_ours, in_truth, tolerance)


def test_supervised() -> None:
    _assert_method(method("supervised"), "supervised")


@pytest.mark.parametrize("name", ["supervised", "mean_teacher", "fixmatch", "unimatch"])
def test_cross_entropy_alone_on_labelled_images(name: str) -> None:
    """UniMatch's natural images; another number than (CE + Dice)/2."""
    ours = method(name, labelled_loss="ce")
    _assert_method(ours, name, tolerance=1e-6 if name == "mean_teacher" else 1e-9)
    parts, usual = (one(batch(views=VIEWS[name]), at(0)) for one in (ours, method(name)))
    assert abs(float(parts["loss"].detach() - usual["loss"].detach())) > 1e-3


@pytest.mark.parametrize("step", [0, 7, 20, 1000])
def test_mean_teacher(step: int) -> None:
    ours = method("mean_teacher", weight=3.0, ramp=20)
    drift(ours)
    _assert_method(ours, "mean_teacher", step, tolerance=1e-6)  # the ramp is computed in float32


@pytest.mark.parametrize("kind", ["ce", "dice", "both"])
def test_fixmatch(kind: str) -> None:
    _assert_method(method("fixmatch", unlabelled_loss=kind), "fixmatch")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"unlabelled_loss": "dice"},
        {"unlabelled_loss": "both", "weight_strong": 0.2, "weight_feature": 0.7},
        {"feature_dropout": 0.1, "threshold": 0.5},
    ],
    ids=str,
)
def test_unimatch(settings: dict[str, Any]) -> None:
    _assert_method(method("unimatch", **settings), "unimatch")


@pytest.mark.parametrize(
    "settings",
    [{}, {"unlabelled_loss": "dice"}, {"unlabelled_loss": "both"}, {"complementary_dropout": False, "threshold": 0.5}],
    ids=str,
)
def test_unimatch_v2(settings: dict[str, Any]) -> None:
    ours = method("unimatch_v2", **settings)
    drift(ours, 0.02)
    _assert_method(ours, "unimatch_v2")


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", ["fixmatch", "unimatch", "unimatch_v2"])
def test_a_batch_of_one_and_an_odd_one(name: str, count: int) -> None:
    ours, data = method(name), batch(count)
    wanted = getattr(truth, name)(ours, data, 0)
    assert_same_numbers(_detached(ours(data, at(0))), _detached(wanted))


def test_the_weights_of_the_papers() -> None:
    """FixMatch (L_x + s)/2; UniMatch (L_x + .25 s1 + .25 s2 + .5 fp)/2; UniMatch V2 (L_x + (s1 + s2)/2)/2; `strong` is
    the mean of s1 and s2."""
    for name in ("fixmatch", "unimatch_v2"):
        parts = method(name)(batch(views=VIEWS[name]), at(0))
        torch.testing.assert_close(parts["loss"].detach(), (parts["labelled"] + parts["strong"]) / 2)
    parts = method("unimatch")(batch(), at(0))
    wanted = (parts["labelled"] + 0.5 * parts["strong"] + 0.5 * parts["feature"]) / 2
    torch.testing.assert_close(parts["loss"].detach(), wanted)


def test_the_ramp_of_mean_teacher() -> None:
    """exp(−5(1 − t/ramp)²), 1 from the end of the ramp on."""
    ours, data = method("mean_teacher", weight=2.0, ramp=200), batch(views=1)
    drift(ours)
    for step, ramp in [(0, math.exp(-5)), (100, math.exp(-1.25)), (200, 1.0), (5000, 1.0)]:
        parts = ours(data, at(step))
        added = float(parts["loss"].detach() - parts["labelled"]) / float(parts["consistency"])
        assert added == pytest.approx(2 * ramp, rel=1e-6)


def test_channel_dropout_drops_by_the_given_draws() -> None:
    maps = (torch.ones(2, 2, 4, 4), torch.ones(2, 3, 2, 2))
    noise = torch.tensor([[0.0, 0.3, 0.29, 0.99, 0.5], [0.9, 0.1, 0.9, 0.1, 0.9]])
    first, second = ChannelDropout((2, 3), 0.3)(maps, noise)
    torch.testing.assert_close(first[:, :, 0, 0] * 0.7, torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    torch.testing.assert_close(second[:, :, 0, 0] * 0.7, torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]]))
    assert all(torch.equal(m, m[:, :, :1, :1].expand_as(m)) for m in (first, second))


def test_complementary_dropout_shows_each_view_what_the_other_lacks() -> None:
    """Doubled; images 1, 3, … are left as they are. A draw of .5 is the first view's."""
    maps = [(3 * torch.ones(3, 2, 4, 4), torch.ones(3, 3, 2, 2)), (5 * torch.ones(3, 2, 4, 4), torch.ones(3, 3, 2, 2))]
    noise = torch.tensor([[0.5, 0.49, 0.1, 0.9, 0.7], [0.1, 0.9, 0.1, 0.9, 0.5], [0.0, 0.99, 0.6, 0.2, 0.6]])
    first, second = ComplementaryDropout((2, 3))(maps[0], maps[1], noise)
    assert first[0][:, :, 0, 0].tolist() == [[6, 0], [3, 3], [0, 6]]
    assert second[0][:, :, 0, 0].tolist() == [[0, 10], [5, 5], [10, 0]]
    assert first[1][:, :, 0, 0].tolist() == [[0, 2, 2], [1, 1, 1], [2, 0, 2]]
    assert second[1][:, :, 0, 0].tolist() == [[2, 0, 0], [1, 1, 1], [0, 2, 0]]
    assert all(torch.equal(m, m[:, :, :1, :1].expand_as(m)) for m in (*first, *second))


# --- the teacher ---------------------------------------------------------------------------------------------


def _teacher(norm: str = "batch", **settings: Any) -> MeanTeacher:
    ours = method("mean_teacher", norm=norm, **settings)
    assert isinstance(ours, MeanTeacher)
    return ours


def test_the_teacher_starts_as_a_copy_that_nothing_trains() -> None:
    ours = _teacher()
    assert_same_numbers(dict(ours.teacher.state_dict()), dict(ours.model.state_dict()), 0)
    drift(ours)
    assert not torch.equal(ours.teacher.decoder.head.weight, ours.model.decoder.head.weight)
    assert not any(p.requires_grad for p in ours.teacher.parameters())
    ours(batch(views=1), at(0))["loss"].backward()
    assert all(p.grad is None for p in ours.teacher.parameters())
    assert all(p.grad is not None for p in ours.model.parameters())


@pytest.mark.parametrize(("step", "m"), [(0, 0.0), (1, 0.5), (4, 0.8), (9, 0.9), (10, 0.9), (500, 0.9)])
def test_the_teacher_is_an_average_of_parameters_and_buffers(step: int, m: float) -> None:
    """m = min(1 − 1/(t+1), decay); running means and variances are averaged too, counters are copied."""
    ours = _teacher(decay=0.9)
    drift(ours)
    before = {name: value.clone() for name, value in ours.teacher.state_dict().items()}
    student = ours.model.state_dict()
    wanted = {
        name: m * value + (1 - m) * student[name] if value.is_floating_point() else student[name]
        for name, value in before.items()
    }
    assert any("running_var" in name for name in before)
    ours.after_step(at(step))
    assert_same_numbers(dict(ours.teacher.state_dict()), wanted, 1e-12 if step < 1 else 1e-7)
    assert_same_numbers(dict(ours.model.state_dict()), dict(student), 0)


def test_the_teacher_predicts_in_evaluation_mode_and_is_deployed() -> None:
    ours = _teacher()
    assert ours.deployed is ours.teacher
    for mode in (True, False, True):
        ours.train(mode)
        assert ours.model.training is mode
        assert not any(module.training for module in ours.teacher.modules())
    counted = {name: b.clone() for name, b in ours.teacher.named_buffers()}
    ours(batch(views=1), at(3))
    assert_same_numbers(dict(ours.teacher.named_buffers()), counted, 0)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("mean_teacher", "pccs", "unimatch_v2")])
def test_the_others_deploy_the_trained_network(name: str) -> None:
    ours = method(name)
    assert ours.deployed is ours.model
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    ours.after_step(at(10))
    assert_same_numbers(dict(ours.state_dict()), before, 0)


# --- what the optimizer gets ---------------------------------------------------------------------------------


def _names(ours: Method) -> dict[int, str]:
    return {id(parameter): name for name, parameter in ours.named_parameters()}


@pytest.mark.parametrize("weights", [None, "encoder.safetensors"])
@pytest.mark.parametrize("name", METHODS)
def test_parameter_groups_hold_each_trained_parameter_once(name: str, weights: str | None) -> None:
    ours = method(name, text=name == "mpamatch")
    ours.model.config = replace(ours.model.config, encoder_weights=weights, encoder_lr_scale=0.05)
    groups, names = ours.parameter_groups(), _names(ours)
    held = [names[id(p)] for group in groups for p in group["params"]]
    assert sorted(held) == sorted(name for name, p in ours.named_parameters() if p.requires_grad)
    assert not any(name.startswith("teacher") for name in held)
    for group in groups:
        for parameter in group["params"]:
            of_encoder = names[id(parameter)].startswith("model.encoder.")
            assert group["lr_scale"] == (0.05 if of_encoder and weights else 1.0)
            is_matrix = parameter.dim() >= 2 and not names[id(parameter)].endswith("text.context")
            assert group["decay"] is is_matrix


def test_a_frozen_encoder_is_in_no_group() -> None:
    model = network()
    model.encoder.requires_grad_(False)
    ours = Supervised(model, SupervisedConfig())
    names = _names(ours)
    held = [names[id(p)] for group in ours.parameter_groups() for p in group["params"]]
    assert held
    assert all(name.startswith("model.decoder.") for name in held)


@pytest.mark.parametrize("name", METHODS)
def test_every_trained_parameter_gets_a_gradient_that_is_no_zero(name: str) -> None:
    ours: nn.Module = method(name, text=name == "mpamatch")
    _, grads = with_gradients(ours, ours(batch(views=VIEWS[name]), at(0))["loss"])
    assert [key for key, value in grads.items() if value.abs().max() == 0] == []


@pytest.mark.parametrize("name", METHODS)
def test_only_the_loss_carries_a_gradient(name: str) -> None:
    parts = method(name, text=name == "mpamatch")(batch(views=VIEWS[name]), at(0))
    assert [key for key, value in parts.items() if value.requires_grad] == ["loss"]
    assert all(value.dim() == 0 for value in parts.values())


# --- settings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("mean_teacher", {"decay": 1.0}, "method.decay"),
        ("mean_teacher", {"decay": -0.1}, "method.decay"),
        ("mean_teacher", {"ramp": 0}, "method.ramp"),
        ("fixmatch", {"threshold": 1.5}, "method.threshold"),
        ("fixmatch", {"unlabelled_loss": "dicee"}, "dice"),
        ("unimatch", {"threshold": -1.0}, "method.threshold"),
        ("supervised", {"labelled_loss": "dice"}, "unknown method.labelled_loss 'dice'"),
    ],
)
def test_settings_that_cannot_be(name: str, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        method(name, **settings)


def test_an_unknown_method_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match="unimatch"):
        BY_NAME.find("unimach")
