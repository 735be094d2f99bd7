"""From a configuration to a network."""

from collections.abc import Mapping
from typing import Any

from mpamatch.models.encoders import build_encoder
from mpamatch.models.network import NETWORKS, Network, NetworkConfig
from mpamatch.models.prototype_maps import PrototypeMaps
from mpamatch.models.transunet import TransUNet
from mpamatch.settings import fields_of

# What model.head was called in runs from before networks had configurations of their own.
FORMER_HEADS = {"decoder": TransUNet.name, "maps": PrototypeMaps.name}


def build_model(config: NetworkConfig, classes: int) -> Network:
    """Builds the network that `config` describes, for `classes` classes. Raises InputError if a field does not fit."""
    network = next(one for one in NETWORKS.values() if one.configuration is type(config))
    encoder = build_encoder(config.encoder, config.encoder_weights, config.norm)
    return network(encoder, classes, config)


def network_config(name: str | None, values: Mapping[str, Any]) -> NetworkConfig:
    """Makes the configuration of the network called `name` from what a checkpoint or a run folder says of it.

    Both kinds of network shared one set of fields once; `name` is None then, and what is of the other kind is left out.
    Raises InputError for an unknown name or value.
    """
    former = name is None
    configuration = NETWORKS.find(name or FORMER_HEADS[values["head"]]).configuration
    known = fields_of(configuration)
    return configuration(**{field: value for field, value in values.items() if field in known or not former})
