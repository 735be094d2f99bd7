"""The straightforward loop: loss, gradients and prototypes are those of the method, in float64."""

import copy

import pytest
import torch
from torch import Tensor

from mpamatch.benchmarks import straightforward
from mpamatch.errors import InputError
from tests.methods.cases import assert_same_numbers, at, batch, method, with_gradients

STEP = 5


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_it_is_the_method(n: int, text: bool) -> None:
    ours = method("mpamatch", text=text)
    plain = straightforward.check(copy.deepcopy(ours))
    data = batch(n)
    for step in range(2):  # the second step starts from moved prototypes
        loss, gradients = with_gradients(ours, ours(data, at(STEP + step))["loss"])
        other, others = with_gradients(plain, straightforward.forward(plain, data, at(STEP + step))["loss"])
        assert_same_numbers({"loss": other}, {"loss": loss})
        assert_same_numbers(others, gradients)
        assert_same_numbers(bank(plain), bank(ours))


def test_the_published_order_of_passes_sees_the_same() -> None:
    ours = straightforward.check(method("mpamatch"))
    data = batch(2)
    seen, (published, partners) = ours.see(data), straightforward.passes(ours, data)
    assert_same_numbers(dict(flat(published)), dict(flat(seen)))
    assert data.unlabelled is not None
    assert_same_numbers({"partners": partners}, {"partners": published.weak.logits.flip(0)})


@pytest.mark.parametrize(
    "settings", [{"assignment": "nearest"}, {"second_opinion": "agree"}, {"unlabelled_loss": "dice"}]
)
def test_what_it_does_not_know_is_refused(settings: dict[str, str]) -> None:
    with pytest.raises(InputError, match="the straightforward loop knows"):
        straightforward.check(method("mpamatch", **settings))


def bank(of: straightforward.MPAMatch) -> dict[str, Tensor]:
    assert of.bank is not None
    return {"prototypes": of.bank.prototypes.clone(), "updates": of.bank.updates.double()}


def flat(views):  # name, tensor
    for name, value in views._asdict().items():
        if isinstance(value, Tensor):
            yield name, value.to(torch.float64)
        else:
            parts = value._asdict().items()
            yield from ((f"{name}.{part}", tensor) for part, tensor in parts if tensor is not None)
