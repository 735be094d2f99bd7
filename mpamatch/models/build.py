"""Builds the network that a configuration describes."""

from collections.abc import Mapping
from typing import Any

from mpamatch.models.encoders import build_encoder
from mpamatch.models.network import NETWORKS, Network, NetworkConfig
from mpamatch.models.prototype_maps import PrototypeMaps
from mpamatch.models.transunet import TransUNet
from mpamatch.settings import fields_of

# What model.head could be in runs from before networks had configurations of their own.
FORMER_HEADS = {"decoder": TransUNet.name, "maps": PrototypeMaps.name}


def build_model(config: NetworkConfig, classes: int) -> Network:
    """Builds the network that a configuration describes.

    Args:
        config: a TransUNetConfig or PrototypeMapsConfig; its class decides which network is built.
        classes: C, the number of classes, the background among them.

    Returns:
        The network on the CPU, in training mode.

    Raises:
        InputError: an unknown encoder, weights that do not fit it or cannot be fetched, or an encoder that the network
            or the tuning does not take.
    """
    network = next(one for one in NETWORKS.values() if one.configuration is type(config))
    encoder = build_encoder(config.encoder, config.encoder_weights, config.norm)
    return network(encoder, classes, config)


def network_config(name: str | None, values: Mapping[str, Any]) -> NetworkConfig:
    """Makes the configuration of a network from the name and values that a checkpoint or a run folder holds.

    `name` is None in runs from before networks had configurations of their own: all fields were in one set, `head` told
    the network, and fields of the other network are left out. Raises InputError for an unknown name or value.
    """
    former = name is None
    configuration = NETWORKS.find(name or FORMER_HEADS[values["head"]]).configuration
    known = fields_of(configuration)
    return configuration(**{field: value for field, value in values.items() if field in known or not former})
