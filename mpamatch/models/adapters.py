"""Low-rank adapters (LoRA, arXiv 2106.09685) in the attention of a ViT encoder; PEFT does the work."""

from typing import Any

from torch import nn

from mpamatch.errors import InputError

ADAPTED = r".*blocks\.\d+\.attn\.(qkv|proj)"
MARK = ".lora_"  # in the names of what an adapter adds


def add_adapters(encoder: nn.Module, rank: int) -> None:
    """Puts adapters of `rank` beside the attention's projections; nothing else of `encoder` trains from then on.

    Their sum is scaled by 2 (alpha = 2·rank); one side starts at zero, so that the encoder begins as it was. Raises
    InputError where PEFT is not installed or the encoder has no attention that takes them.
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
    """Adds each adapter into the weight beside it, for prediction: the encoder costs what it did without them."""
    from peft.tuners.lora import LoraLayer

    for module in encoder.modules():
        if isinstance(module, LoraLayer):
            module.merge()
