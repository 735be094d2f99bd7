"""What a method declares is what it does: the engine, the log and the figures ask for nothing else."""

import dataclasses

import pytest
import torch

from mpamatch.methods import METHODS
from mpamatch.models.network import NETWORKS, Network
from mpamatch.models.prototype_maps import PrototypeMaps
from mpamatch.settings import fields_of
from tests.methods.cases import at, batch, lpd_network, method, network
from tests.methods.test_lpd import with_encoder


@pytest.mark.parametrize("name", METHODS)
def test_what_is_logged_is_what_is_declared(name):
    """With every part of the loss on: a part that is not declared would be missing in curves and progress line."""
    on = {"text": True, "weight_head": 1.0} if name == "mpamatch" else {}
    ours = with_encoder(torch.float64) if name == "lpd" else method(name, **on)
    found = set(ours(batch(views=ours.strong_views), at(5)))
    assert found == {"loss", *ours.losses, *ours.shares}
    assert set(ours.progress or ()) <= set(ours.losses)


@pytest.mark.parametrize("name", METHODS)
def test_shares_are_fractions(name):
    ours = method(name)
    parts = ours(batch(views=ours.strong_views), at(5))
    assert all(0 <= float(parts[share]) <= 1 for share in ours.shares)


@pytest.mark.parametrize("name", METHODS)
def test_the_declarations_fit_together(name):
    found = METHODS[name]
    assert found.name == name
    assert dataclasses.is_dataclass(found.configuration)
    assert found.configuration().name == name
    assert issubclass(found.network, Network)
    assert all(tower.field in fields_of(found.configuration) for tower in found.towers)
    assert not (found.mixes and not found.strong_views)
    assert not (found.image_labels and found.strong_views)
    assert found.settled(found.configuration()) >= 0


@pytest.mark.parametrize("name", METHODS)
def test_a_method_mixes_if_it_says_so(name):
    """With boxes over the left half, which then shows the neighbour, the loss of a method that mixes changes."""
    if not METHODS[name].strong_views:
        pytest.skip("sees no unlabelled image")
    data = batch(views=METHODS[name].strong_views)
    assert data.unlabelled is not None
    losses = []
    for right in (16, 0):
        box = torch.tensor([[0, 0, 32, right]] * 2, dtype=torch.int32)
        seen = data._replace(unlabelled=data.unlabelled._replace(box1=box, box2=box))
        losses.append(float(method(name, seed=1)(seen, at(5))["loss"].detach()))
    assert (losses[0] != losses[1]) is METHODS[name].mixes


def test_networks_stand_beside_each_other():
    """PrototypeMaps is no TransUNet with a decoder that it lacks; both encode and predict by the base's contract."""
    assert not hasattr(PrototypeMaps, "decode")
    image = torch.randn(2, 3, 32, 48)
    for model in (network(), lpd_network()):
        assert type(model) in NETWORKS.values()
        assert type(model.config) is model.configuration
        assert [m.shape[-1] for m in model.encode(image)] == [48 // stride for stride in model.encoder.strides]
        logits, embedding, _ = model(image)
        assert logits.shape == (2, 3, 32, 48)
        assert embedding.dim() == 4


def test_fields_of_the_two_networks_are_their_own():
    own = [set(fields_of(one.configuration)) for one in NETWORKS.values()]
    shared = set.intersection(*own)
    assert {"encoder", "tuning", "norm"} <= shared
    assert not {"decoder_channels", "map_weights"} & shared
