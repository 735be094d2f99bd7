"""Builds the network that a configuration describes."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from mpamatch.errors import InputError, reason
from mpamatch.models.encoders import Encoder, Preset, build_encoder, encoder_from, settled
from mpamatch.models.network import NETWORKS, Network, NetworkConfig
from mpamatch.models.prototype_maps import PrototypeMaps
from mpamatch.models.transunet import TransUNet
from mpamatch.settings import fields_of

Config = TypeVar("Config", bound=NetworkConfig)
# What model.head could be in runs from before networks had configurations of their own.
FORMER_HEADS = {"decoder": TransUNet.name, "maps": PrototypeMaps.name}


def build_model(config: NetworkConfig, classes: int, built_from: Preset | None = None) -> Network:
    """Builds the network that a configuration describes.

    Args:
        config: a TransUNetConfig or PrototypeMapsConfig; its class decides which network is built.
        classes: C, the number of classes, the background among them.
        built_from: what the encoder is built from, of a checkpoint that brings all weights of it; None: what the
            configuration names, with its weights.

    Returns:
        The network on the CPU, in training mode.

    Raises:
        InputError: an unknown encoder, weights that do not fit it or cannot be fetched, or an encoder that the network
            or the tuning does not take.
    """
    network = next(one for one in NETWORKS.values() if one.configuration is type(config))
    how: dict[str, Any] = {"skips": config.skips, "deepest": config.deepest}
    if built_from is not None:
        return network(_recorded(built_from, config, how), classes, config)
    config = settled_model(config)
    return network(build_encoder(config.encoder, config.encoder_weights, config.norm, **how), classes, config)


class RecordError(InputError):
    """What a checkpoint says of its encoder cannot be built; the sentence lacks the file."""


def _recorded(built_from: Preset, config: NetworkConfig, how: Mapping[str, Any]) -> Encoder:
    """Builds the encoder of a checkpoint. Raises RecordError if its record is damaged."""
    try:
        return encoder_from(built_from, config.norm, **how)
    except InputError:
        raise
    except Exception as error:  # whatever the families' libraries raise for arguments that they do not know
        told = f"{type(error).__name__}: {reason(error)}"
        raise RecordError(
            f"names an encoder that cannot be built ({told}): it is damaged, or of another version."
        ) from error


def settled_model(config: Config) -> Config:
    """Replaces "auto" by the weights that are at hand, or by none.

    Raises:
        InputError: no weights are at hand and the tuning needs some, or an unknown encoder.
    """
    weights = settled(config.encoder, config.encoder_weights)
    if weights is None and config.tuning != "full":
        raise InputError(
            f"model.encoder_weights: no weights of {config.encoder} are at hand, but model.tuning {config.tuning} "
            "needs them; give a file."
        )
    return config if weights == config.encoder_weights else replace(config, encoder_weights=weights)


def network_config(name: str | None, values: Mapping[str, Any]) -> NetworkConfig:
    """Makes the configuration of a network from the name and values that a checkpoint or a run folder holds.

    `name` is None in runs from before networks had configurations of their own: all fields were in one set, `head` told
    the network, and fields of the other network are left out. Raises InputError for an unknown name or value.
    """
    former = name is None
    configuration = NETWORKS.find(name or FORMER_HEADS[values["head"]]).configuration
    known = fields_of(configuration)
    return configuration(**{field: value for field, value in values.items() if field in known or not former})
