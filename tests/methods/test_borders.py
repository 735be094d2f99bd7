"""What every method learns of the borders of objects, and that nothing changes for a network that learns none."""

from typing import Any

import pytest
import torch

from mpamatch.batch import Batch
from mpamatch.errors import InputError
from mpamatch.methods import METHODS as BY_NAME
from mpamatch.methods import Method
from mpamatch.methods.losses import border_loss
from mpamatch.methods.supervised import Supervised, SupervisedConfig
from tests.methods.cases import METHODS, at, batch, method, network, with_gradients

BORDERED = tuple(name for name in METHODS if name != "lpd")
ON: dict[str, Any] = {"boundary": True}
# What the labelled loss counts for in the loss of each method.
SHARES = {"fixmatch": 0.5, "unimatch": 0.5, "unimatch_v2": 0.5, "mpamatch": 0.5}


def bordered(seed: int = 0) -> Batch:
    data = batch(seed=seed)
    border = torch.randint(0, 2, data.labelled.label.shape, generator=torch.Generator().manual_seed(9)).to(torch.uint8)
    return data._replace(labelled=data.labelled._replace(border=torch.where(data.labelled.label == 255, 255, border)))


@pytest.mark.parametrize("name", BORDERED)
def test_every_method_adds_the_border_of_labelled_pixels_by_its_weight(name):
    data, lost = bordered(), []
    for weight in (1.0, 3.0):
        ours = method(name, model={**ON, "boundary_weight": weight})
        torch.manual_seed(0)
        lost.append(ours(data, at(3)))
    one, three = lost
    with torch.no_grad():
        wanted = border_loss(method(name, model=ON).model(data.labelled.image).border, data.labelled.border)
    assert float(one["border"]) == pytest.approx(float(wanted), rel=1e-9)
    assert not one["border"].requires_grad
    change = float((three["loss"] - one["loss"]).detach())
    assert change == pytest.approx(2 * SHARES.get(name, 1.0) * float(wanted), rel=1e-9)


@pytest.mark.parametrize("name", BORDERED)
def test_without_the_option_nothing_is_learned_and_nothing_is_different(name):
    """The same bits whether or not the batch has a border, no further weight, and with it all others start the same."""
    off, on = method(name), method(name, model=ON)
    assert [key for key in off.state_dict() if "border" in key] == []
    mine, more = off.model.state_dict(), on.model.state_dict()
    assert {key for key in more if key not in mine} == {key for key in more if key.startswith("decoder.border.")}
    assert all(torch.equal(mine[key], more[key]) for key in mine)
    data = batch()
    without = data._replace(labelled=data.labelled._replace(border=None))
    plain, gradients = with_gradients(off, off(without, at(3))["loss"])
    again = method(name)
    told = again(bordered(), at(3))
    assert "border" not in told
    same, same_gradients = with_gradients(again, told["loss"])
    assert torch.equal(plain, same)
    assert all(torch.equal(gradients[key], same_gradients[key]) for key in gradients)


def test_the_border_reaches_every_part_of_the_network():
    ours = method("supervised", model={**ON, "boundary_weight": 1e6})
    _, gradients = with_gradients(ours, ours(bordered(), at(0))["loss"])
    assert [key for key, value in gradients.items() if "decoder.border" in key and not value.any()] == []
    assert gradients["model.decoder.first.0.weight"].abs().max() > 1


def test_a_method_that_does_not_learn_it_is_refused_with_the_option():
    class Other(Supervised):
        name = "other"
        borders = False

    with pytest.raises(InputError, match=r"^model\.boundary: other does not learn the borders of objects"):
        Other(network(**ON), SupervisedConfig())
    assert isinstance(Other(network(), SupervisedConfig()), Method)
    assert [name for name, one in BY_NAME.items() if not one.borders] == ["lpd"]


@pytest.mark.parametrize("size", [(32, 32), (37, 45)])
def test_the_network_predicts_the_border_at_the_size_of_the_image(size):
    model = network(**ON).double()
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    found = model(image)
    assert found.border.shape == (2, 1, *size)
    assert network()(image.float()).border is None
    first, second = found.split([1, 1])
    assert torch.equal(torch.cat([first.border, second.border]), found.border)
    assert torch.equal(second.logits, found.logits[1:])
    assert all(one.border is None for one in network()(image.float()).split([1, 1]))
