"""MPAMatch against plain float64 torch: every switch, the order of the prototype step, where gradients go."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mpamatch import ops
from mpamatch.batch import Batch
from mpamatch.errors import InputError
from mpamatch.methods.embedding import centre_sample
from mpamatch.methods.mpamatch import MPAMatch, MPAMatchConfig
from tests.methods import truth
from tests.methods.cases import CLASSES, Words, assert_same_numbers, at, batch, method, network, with_gradients
from tests.methods.truth import Bank

# Between the default and each of these the loss, a gradient or the bank must change.
SWITCHES: list[dict[str, Any]] = [
    {"text": True},
    {"text": True, "image_prototypes": False},
    {"prototypes": 1},
    {"prototypes": 5},
    {"embedding_width": 4},
    {"assignment": "nearest"},
    {"epsilon": 0.5},
    {"iterations": 1},
    {"temperature": 0.5},
    {"momentum": 0.2},
    {"same_class_negatives": False},
    {"weight_labelled": 0.7},
    {"weight_unlabelled": 0.6},
    {"weight_prototype": 0.1},
    {"weight_image": 0.3},
    {"weight_alignment": 0.2},
    {"weight_strong": 0.1},
    {"weight_feature": 0.1},
    {"threshold": 0.9},
    {"labelled_loss": "ce"},
    {"unlabelled_loss": "both"},
    {"feature_dropout": 0.25},
    {"start": 100},
    {"start": 1, "ramp": 7},
    {"second_opinion": "agree"},
    {"second_opinion": "average"},
]


def _method(**settings: Any) -> MPAMatch:
    ours = method("mpamatch", **settings)
    assert isinstance(ours, MPAMatch)
    return ours


def _bank(ours: MPAMatch) -> Bank | None:
    return None if ours.bank is None else Bank(ours.bank.prototypes.clone(), ours.bank.updates.clone())


def _used(ours: MPAMatch) -> MPAMatch:
    """The bank as if each prototype had been updated a few times, so that momentum and assignment matter."""
    if ours.bank is not None:
        ours.bank.updates.copy_(torch.arange(ours.bank.updates.numel()).reshape(ours.bank.updates.shape) + 3)
    return ours


def _numbers(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in parts.items() if name != "confident"}


def _bank_numbers(bank: Bank | None) -> dict[str, Tensor]:
    return {} if bank is None else bank._asdict()


def _step(settings: dict[str, Any], step: int = 3) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Parts of the loss, gradients, and the bank afterwards, compared with the truth."""
    ours, data = _used(_method(**settings)), batch()
    wanted, bank = truth.mpamatch(ours, data, step, _bank(ours))
    parts = ours(data, at(step))
    assert_same_numbers(_numbers(parts), _numbers(wanted))
    assert float(parts["confident"]) == pytest.approx(float(wanted["confident"].detach()), abs=1e-6)
    assert_same_numbers(_bank_numbers(_bank(ours)), _bank_numbers(bank))
    gradients = with_gradients(ours, parts["loss"])[1]
    assert_same_numbers(gradients, with_gradients(ours, wanted["loss"])[1])
    return _numbers(parts), gradients, _bank_numbers(bank)


@pytest.fixture(scope="module")
def default() -> tuple[dict[str, Tensor], ...]:
    return _step({})


@pytest.fixture(scope="module")
def with_text() -> tuple[dict[str, Tensor], ...]:
    return _step({"text": True})


def _same(one: tuple[dict[str, Tensor], ...], other: tuple[dict[str, Tensor], ...]) -> bool:
    return all(
        a.keys() == b.keys()
        and all(a[key].shape == b[key].shape and torch.allclose(a[key], b[key], rtol=1e-6, atol=1e-9) for key in a)
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("settings", SWITCHES, ids=str)
def test_every_switch_is_right_and_has_an_effect(
    settings: dict[str, Any], default: tuple[dict[str, Tensor], ...]
) -> None:
    assert not _same(_step(settings), default)


@pytest.mark.parametrize(
    "settings", [{"weight_text": 0.3}, {"image_prototypes": False}, {"weight_alignment": 0.0}], ids=str
)
def test_switches_of_the_text_terms(settings: dict[str, Any], with_text: tuple[dict[str, Tensor], ...]) -> None:
    assert not _same(_step({"text": True} | settings), with_text)


def test_the_weights_of_the_paper() -> None:
    """0.5·L_labelled + 0.25·L_unlabelled + 0.25·L_proto; L_unlabelled = .25 s1 + .25 s2 + .5 fp, all λ 1."""
    parts = _numbers(_method(text=True)(batch(), at(0)))
    unlabelled = 0.5 * parts["strong"] + 0.5 * parts["feature"]
    prototype = sum(parts[f"{kind}_{term}"] for kind in ("image", "text") for term in ("contrast", "alignment"))
    wanted = 0.5 * parts["labelled"] + 0.25 * unlabelled + 0.25 * prototype
    torch.testing.assert_close(parts["loss"], wanted)


@pytest.mark.parametrize(
    ("start", "ramp", "shares"),
    [
        (0, 0, {0: 1.0, 9: 1.0}),
        (5, 0, {4: 0.0, 5: 1.0, 6: 1.0}),
        (4, 7, {0: 0.0, 3: 0.0, 4: 0.125, 6: 0.375, 11: 1.0, 99: 1.0}),
    ],
)
def test_start_and_ramp_of_the_prototype_terms(start: int, ramp: int, shares: dict[int, float]) -> None:
    for step, share in shares.items():
        parts = _numbers(_method(start=start, ramp=ramp)(batch(), at(step)))
        rest = 0.5 * parts["labelled"] + 0.125 * parts["strong"] + 0.125 * parts["feature"]
        prototype = 0.25 * (parts["image_contrast"] + parts["image_alignment"])
        assert float(parts["loss"] - rest) == pytest.approx(share * float(prototype), abs=1e-12)


def test_the_bank_starts_with_its_terms() -> None:
    """Until then prototypes and counters stay as they are, whatever the ramp."""
    ours = _method(start=4, ramp=50)
    assert ours.bank is not None
    before = ours.bank.prototypes.clone()
    for step in (0, 3):
        ours(batch(seed=step), at(step))
        assert torch.equal(ours.bank.prototypes, before)
        assert ours.bank.updates.max() == 0
    ours(batch(), at(4))
    assert ours.bank.updates.min() == 1
    assert not torch.equal(ours.bank.prototypes, before)


def test_before_the_start_there_is_no_second_opinion() -> None:
    data = batch()
    for opinion in ("agree", "average"):
        early, late = (
            _numbers(_method(second_opinion=opinion, start=start)(data, at(3)))["strong"] for start in (4, 3)
        )
        own = _numbers(_method()(data, at(3)))["strong"]
        assert torch.equal(early, own)
        assert not torch.equal(late, own)


def test_agreement_only_takes_pixels_away() -> None:
    data = batch()
    own, agreed = (float(_method(second_opinion=o)(data, at(0))["confident"]) for o in ("none", "agree"))
    assert 0 < agreed < own


# --- order: assign → update → contrast -----------------------------------------------------------------------


def _seen(ours: MPAMatch, data: Batch, bank: Bank) -> truth.Pixels:
    return truth.pixels(ours, data, truth.mpamatch_target(ours, data, bank, started=True))


@pytest.mark.parametrize("assignment", ["sinkhorn", "nearest"])
def test_the_contrast_sees_the_updated_prototypes(assignment: str) -> None:
    """The bank of before or an assignment to the bank of after would give another number."""
    ours, data = _used(_method(assignment=assignment, momentum=0.3)), batch()
    bank = _bank(ours)
    assert bank is not None
    seen = _seen(ours, data, bank)
    chosen, after = truth.prototype_step(ours, seen, bank)
    chosen_late, _ = truth.prototype_step(ours, seen, after)
    parts = ours(data, at(0))

    def value(prototypes: Tensor, by: Tensor) -> float:
        return float(truth.contrast(seen.z, prototypes, by, seen.weight, ours.config)[0].detach())

    assert ours.bank is not None
    assert_same_numbers({"p": ours.bank.prototypes}, {"p": after.prototypes})
    assert torch.equal(ours.bank.updates, after.updates)
    found = float(parts["image_contrast"])
    assert found == pytest.approx(value(after.prototypes, chosen), abs=1e-9)
    assert abs(found - value(bank.prototypes, chosen)) > 1e-4
    assert abs(found - value(after.prototypes, chosen_late)) > 1e-4


def test_one_step_updates_the_bank_once_and_three_steps_three_times() -> None:
    ours = _method(prototypes=1)
    assert ours.bank is not None
    for step in range(3):
        ours(batch(seed=step), at(step))
        assert ours.bank.updates.tolist() == [[step + 1]] * CLASSES
        torch.testing.assert_close(ours.bank.prototypes.norm(dim=-1), torch.ones(CLASSES, 1, dtype=torch.float64))


def test_only_correctly_classified_pixels_move_prototypes() -> None:
    """The classifier calls all pixels class 1; the labels are 0 and 1, so class 0 keeps its prototypes bit for bit."""
    ours, data = _method(threshold=1.0), batch()
    bias = ours.model.decoder.head.bias
    assert bias is not None
    with torch.no_grad():
        ours.model.decoder.head.weight.zero_()
        bias.copy_(torch.tensor([0.0, 5.0, 0.0]))
    label = torch.zeros_like(data.labelled.label)
    label[:, :, 16:] = 1
    data = data._replace(labelled=data.labelled._replace(label=label))
    assert ours.bank is not None
    before = ours.bank.prototypes.clone()
    parts = ours(data, at(0))
    assert torch.equal(ours.bank.prototypes[[0, 2]], before[[0, 2]])
    assert ours.bank.updates[[0, 2]].sum() == 0
    assert ours.bank.updates[1].min() == 1
    assert float(parts["confident"]) == 0
    # and class 0 is contrasted all the same: with its unmoved prototypes
    bank = Bank(before, torch.zeros_like(ours.bank.updates))
    seen = _seen(ours, data, bank)
    assert set(seen.label[seen.weight > 0].tolist()) == {0, 1}
    wrong = truth.contrast(
        seen.z, ours.bank.prototypes, truth.prototype_step(ours, seen, bank)[0], seen.weight, ours.config
    )
    assert float(parts["image_contrast"]) == pytest.approx(float(wrong[0].detach()), abs=1e-9)


def test_pixels_that_are_not_sure_neither_move_nor_are_contrasted() -> None:
    """No label and no confident pixel: prototypes stay, prototype terms are 0, gradients finite."""
    ours, data = _method(threshold=1.0, text=True), batch()
    ignored = torch.full_like(data.labelled.label, 255)
    data = data._replace(labelled=data.labelled._replace(label=ignored))
    assert ours.bank is not None
    before = ours.bank.prototypes.clone()
    parts = ours(data, at(0))
    assert torch.equal(ours.bank.prototypes, before)
    assert float(parts["loss"].detach()) == 0
    assert all(g.isfinite().all() and g.abs().max() == 0 for g in with_gradients(ours, parts["loss"])[1].values())


# --- gradients -----------------------------------------------------------------------------------------------


def test_image_prototypes_are_buffers_without_gradient() -> None:
    ours = _method()
    ours(batch(), at(0))["loss"].backward()
    assert ours.bank is not None
    assert not list(ours.bank.parameters())
    for buffer in ours.bank.buffers():
        assert buffer.grad is None
        assert not buffer.requires_grad
        assert buffer.grad_fn is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cosine_heads_learn_beside_a_bank_that_moves_in_the_same_step(dtype: torch.dtype) -> None:
    """Their gradient is that of the prototypes from before the step, which the step changes in place."""
    ours = _method(weight_head=1.0, weight_labelled=0.0, weight_unlabelled=0.0, weight_prototype=0.0, dtype=dtype)
    assert ours.bank is not None
    data, before = batch(dtype=dtype), ours.bank.prototypes.clone()
    _, gradients = with_gradients(ours, ours(data, at(0))["loss"])
    assert not torch.equal(ours.bank.prototypes, before)
    ours.bank.prototypes.copy_(before)
    wanted = truth.head_term(ours, data, Bank(before, ours.bank.updates))
    assert_same_numbers(gradients, with_gradients(ours, wanted)[1], 1e-9 if dtype == torch.float64 else 1e-5)
    assert gradients["project.0.weight"].abs().max() > 1e-6


def test_the_text_context_learns_and_the_words_do_not() -> None:
    ours = _method(text=True)
    _, gradients = with_gradients(ours, ours(batch(), at(0))["loss"])
    assert gradients["text.context"].abs().max() > 1e-6
    assert gradients["to_text.weight"].abs().max() > 1e-6
    assert "text.words" not in gradients
    ours = _method(text=True, weight_text=0.0)
    _, gradients = with_gradients(ours, ours(batch(), at(0))["loss"])
    assert gradients["text.context"].abs().max() == 0


def test_the_weak_view_learns_from_prototypes_alone() -> None:
    """Without them its clean logits carry no gradient; the prototype terms reach its embedding."""
    data = batch()
    assert data.unlabelled is not None
    weak = data.unlabelled.weak.clone().requires_grad_()
    data = data._replace(unlabelled=data.unlabelled._replace(weak=weak))
    ours = _method(weight_labelled=0.0, weight_unlabelled=0.0)
    ours(data, at(0))["loss"].backward()
    assert weak.grad is not None
    assert weak.grad.abs().max() > 1e-9
    weak.grad = None
    ours = _method(weight_labelled=1.0, weight_unlabelled=0.0, weight_prototype=0.0)
    ours(data, at(0))["loss"].backward()
    assert weak.grad is None or weak.grad.abs().max() == 0


# --- details -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 32), (64, 16)])
def test_the_centre_sample_at_stride_4(height: int, width: int) -> None:
    x = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(centre_sample(x, (height // 4, width // 4)), x[:, 2::4, 2::4].flatten())


def test_the_centre_sample_where_the_grid_is_no_quarter() -> None:
    """A 6-cell grid over 21 pixels: cells of 3.5, their centres at 1.75, 5.25, 8.75, …"""
    x = torch.arange(21)[None, None, :].expand(1, 21, 21)
    found = centre_sample(x, (6, 6)).reshape(6, 6)
    assert found[0].tolist() == [1, 5, 8, 12, 15, 19]


class _Says(torch.nn.Module):
    """The same rows, whatever the pixels."""

    def __init__(self, rows: Tensor):
        super().__init__()
        self.rows = rows

    def forward(self, pixels: Tensor) -> Tensor:
        return self.rows


def test_the_pixels_of_labels_and_embedding_are_the_same() -> None:
    """Where the embedding shows the class at its own place, the prototypes become these classes' directions."""
    ours, data = _method(prototypes=1, embedding_width=CLASSES, threshold=1.0), batch()
    # the seen embedding is replaced by the one-hot label, rows as wide as D
    of_label = torch.where(data.labelled.label == 255, 0, data.labelled.label)[:, 2::4, 2::4].long()
    z = torch.nn.functional.one_hot(of_label, CLASSES).double().flatten(0, 2)
    ours.project = _Says(z)
    ours(data, at(0))
    assert ours.bank is not None
    torch.testing.assert_close(ours.bank.prototypes[:, 0], torch.eye(CLASSES, dtype=torch.float64))


def test_the_share_of_confident_pixels_is_that_of_valid_ones() -> None:
    data = batch()
    assert data.unlabelled is not None
    ours = _method(threshold=0.65)
    confidence = truth.see(ours.model, data.unlabelled.weak).logits.softmax(1).max(1).values
    wanted = (confidence[data.unlabelled.valid] >= 0.65).double().mean()
    assert float(ours(data, at(0))["confident"]) == pytest.approx(float(wanted), abs=1e-6)


def test_diagnostics_tell_the_health_of_the_bank() -> None:
    ours = _method()
    ours(batch(), at(0))
    found = {name: float(value) for name, value in ours.diagnostics().items()}
    assert found.keys() == {f"prototypes/{name}" for name in ("in_use", "cosine_within", "cosine_between")}
    assert found["prototypes/in_use"] == 1
    assert ours.bank is not None
    flat = ours.bank.prototypes.flatten(0, 1)
    cosine = flat @ flat.T
    within = [cosine[i, j] for i in range(9) for j in range(9) if i != j and i // 3 == j // 3]
    between = [cosine[i, j] for i in range(9) for j in range(9) if i // 3 != j // 3]
    assert found["prototypes/cosine_within"] == pytest.approx(float(sum(within)) / len(within))
    assert found["prototypes/cosine_between"] == pytest.approx(float(sum(between)) / len(between))
    texts = _method(text=True, image_prototypes=False)
    assert texts.text is not None
    t = texts.text().detach()
    others = [float(t[i] @ t[j]) for i in range(len(t)) for j in range(len(t)) if i != j]
    told = {name: float(value) for name, value in texts.diagnostics().items()}
    assert told == {"prototypes/text_cosine": pytest.approx(sum(others) / len(others))}


def test_in_half_precision_the_bank_stays_in_float32() -> None:
    ours = _method(dtype=torch.float32).to(torch.bfloat16)
    assert ours.bank is not None
    assert ours.bank.prototypes.dtype == torch.float32
    assert ours.model.decoder.head.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("text", [False, True])
def test_a_step_under_autocast_is_finite_and_near(text: bool) -> None:
    exact, half = (_method(dtype=torch.float32, text=text) for _ in range(2))
    data = batch(dtype=torch.float32)
    wanted = exact(data, at(0))["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = half(data, at(0))["loss"]
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=0.05)
    assert all(g.isfinite().all() for g in with_gradients(half, loss)[1].values())


@pytest.mark.parametrize(
    "settings", [{"iterations": -1}, {"momentum": 1.5}, {"ramp": -1}, {"feature_dropout": 1.0}], ids=str
)
def test_numbers_that_cannot_be_are_refused_before_the_first_step(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        _method(**settings)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"assignment": "sinkhorm"}, "sinkhorn"),
        ({"second_opinion": "agrees"}, "agree"),
        ({"image_prototypes": False}, "unimatch"),
        ({"prototypes": 0}, "prototypes"),
        ({"embedding_width": 0}, "embedding_width"),
        ({"temperature": 0.0}, "temperature"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"threshold": 2.0}, "method.threshold"),
    ],
    ids=str,
)
def test_settings_that_cannot_be(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        _method(**settings)


def test_the_defaults_are_those_of_the_paper_and_its_root() -> None:
    ours = MPAMatch(network(), MPAMatchConfig(text_encoder="words"), text=Words())  # type: ignore[arg-type]
    assert isinstance(ours, MPAMatch)
    assert ours.bank is not None
    assert ours.bank.prototypes.shape == (CLASSES, 10, 256)
    config = ours.config
    assert (config.threshold, config.temperature, config.epsilon, config.iterations) == (0.95, 0.1, 0.05, 3)
    assert ops.IGNORE == 255
