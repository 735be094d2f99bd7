"""Low-rank adapters (LoRA, arXiv 2106.09685) in the attention of a ViT encoder, by PEFT."""

from typing import Any

from torch import nn

from mpamatch.errors import InputError

ADAPTED = r".*blocks\.\d+\.attn\.(qkv|proj)"
MARK = ".lora_"  # in the names of what an adapter adds


def add_adapters(encoder: nn.Module, rank: int) -> None:
    """Adds adapters of `rank` to the attention's projections and freezes the rest of the encoder.

    What an adapter adds is scaled by 2 (alpha = 2·rank) and starts at zero, so that the encoder begins as it was.
    Raises InputError if PEFT is not installed or the encoder is no ViT.
    """
    peft: Any
    try:
        import peft
    except ImportError as error:
        raise InputError("model.tuning: lora needs PEFT; pip install mpamatch[lora].") from error
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=ADAPTED)
    try:
        peft.inject_adapter_in_model(config, encoder)
    except ValueError as error:  # no module of that name
        raise InputError("model.tuning: lora fits ViT encoders only; take full or frozen.") from error


def merge_adapters(encoder: nn.Module) -> None:
    """Adds each adapter to the weight beside it, so that prediction costs no more than without adapters."""
    from peft.tuners.lora import LoraLayer

    for module in encoder.modules():
        if isinstance(module, LoraLayer):
            module.merge()
