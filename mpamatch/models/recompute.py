"""Activation checkpointing: backward computes activations again instead of keeping them."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recomputed(module: nn.Module, *inputs: Any) -> Any:
    """Runs the module; with gradients it keeps only the inputs, and backward runs the module again.

    The module must have no dropout, as no random state is restored. Batch norms run twice but count their batch once.
    """
    if not torch.is_grad_enabled():
        return module(*inputs)
    how: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    if norms:
        how["context_fn"] = lambda: (nullcontext(), counted(norms))
    return checkpoint(module, *inputs, **how)


@contextmanager
def counted(norms: list[_BatchNorm]) -> Iterator[None]:
    """Replaces the running statistics by copies within the context, so that a second pass does not change them."""
    before = [(norm, dict(norm.named_buffers(recurse=False))) for norm in norms]
    for norm, buffers in before:
        for name, value in buffers.items():
            setattr(norm, name, value.clone())
    try:
        yield
    finally:
        for norm, buffers in before:
            for name, value in buffers.items():
                setattr(norm, name, value)
