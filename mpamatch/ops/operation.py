"""What there is of an operation beside its public function, and the table of all operations."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mpamatch.ops.selfcheck import Sample


@dataclass(frozen=True, kw_only=True)
class Operation:
    """Declared once, at the end of the operation's file.

    Whatever has to know the operations reads it: `dispatch`, the native libraries, the tables of tile sizes, the
    benchmarks and the tests.
    """

    name: str  # of its files in every folder
    backends: tuple[str, ...]  # beside eager: "cpp", and "triton" or "cuda"
    kernels: Mapping[str, Callable[..., Any]]  # by schema of torch.ops.mpamatch: its fake, shapes and dtypes alone
    self_check: Callable[[Sample], list[Tensor]]  # all results for the sample, the gradients among them
    differentiable: tuple[str, ...] = ()  # the arguments that get a gradient

    @property
    def tiled(self) -> tuple[str, ...]:
        """The Triton kernels whose tile sizes stand in kernels/tiles/."""
        if "triton" not in self.backends:
            return ()
        return (f"{self.name}.forward", *([f"{self.name}.backward"] if self.differentiable else []))


@cache
def operations() -> dict[str, Operation]:
    """Every operation by its name, in the order of a training step."""
    names = (
        "prototype_distance",
        "sinkhorn_assign",
        "prototype_update_",
        "prototype_contrast",
        "segmentation_loss",
        "pseudo_label",
        "signed_distance",
    )
    return {name: importlib.import_module(f"mpamatch.ops.{name}").OPERATION for name in names}


def working_dtype(pixels: Tensor) -> torch.dtype:
    """What a kernel computes in."""
    return torch.float64 if pixels.dtype == torch.float64 else torch.float32


def gradients_like(
    embedding: Tensor, prototypes: Tensor, need_embedding: bool, need_prototypes: bool
) -> tuple[Tensor, Tensor]:
    """What a backward kernel returns, without values: (0,) where a gradient is not needed."""
    return (
        embedding.new_empty(embedding.shape if need_embedding else (0,)),
        prototypes.new_empty(prototypes.shape if need_prototypes else (0,)),
    )
