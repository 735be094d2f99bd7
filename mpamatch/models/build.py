"""From a configuration to a network."""

from mpamatch.errors import InputError, unknown
from mpamatch.models.encoder import build_encoder
from mpamatch.models.prototype_maps import PrototypeMaps
from mpamatch.models.transunet import ModelConfig, TransUNet

TUNINGS = ("full", "lora", "frozen")
NETWORKS: dict[str, type[TransUNet]] = {"decoder": TransUNet, "maps": PrototypeMaps}  # by model.head


def build_model(config: ModelConfig, classes: int) -> TransUNet:
    """The network of `config` for `classes` classes. Raises InputError where a field does not fit."""
    if config.tuning not in TUNINGS:
        raise unknown("model.tuning", config.tuning, TUNINGS)
    if config.tuning != "full" and config.encoder_weights is None:
        raise InputError(
            f"model.tuning: {config.tuning} needs model.encoder_weights; the weights of a random encoder never learn."
        )
    if config.lora_rank < 1:
        raise InputError(f"model.lora_rank: expected at least 1, got {config.lora_rank}.")
    if config.head not in NETWORKS:
        raise unknown("model.head", config.head, NETWORKS)
    return NETWORKS[config.head](build_encoder(config.encoder, config.encoder_weights, config.norm), classes, config)
