"""The record of an operation, all that is to be known of it beside its public function, and the table of all."""

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
    """The record of an operation, declared once at the end of its file.

    `dispatch`, the native libraries, the tables of tile sizes, the benchmarks and the tests read it.

    Attributes:
        name: of its files in every folder.
        backends: beside eager: "cpp", and "triton" or "cuda".
        kernels: by schema of torch.ops.mpamatch, its fake: shapes and dtypes of its results without values.
        self_check: computes all results for a sample, the gradients among them.
        differentiable: the arguments that get a gradient.
        directions: names of the Triton kernels that have tile sizes: functions in their file.
    """

    name: str
    backends: tuple[str, ...]
    kernels: Mapping[str, Callable[..., Any]]
    self_check: Callable[[Sample], list[Tensor]]
    differentiable: tuple[str, ...] = ()
    directions: tuple[str, ...] = ()

    @property
    def tiled(self) -> tuple[str, ...]:
        """Names of the Triton kernels that have tile sizes in kernels/tiles/."""
        return tuple(f"{self.name}.{direction}" for direction in self.directions)


@cache
def operations() -> dict[str, Operation]:
    """Lists every operation by its name, in the order of a training step."""
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
    """Returns the dtype that a kernel computes in: float64 for float64, else float32."""
    return torch.float64 if pixels.dtype == torch.float64 else torch.float32


def gradients_like(
    embedding: Tensor, prototypes: Tensor, need_embedding: bool, need_prototypes: bool
) -> tuple[Tensor, Tensor]:
    """Makes what a backward kernel returns, without values: (0,) for a gradient that is not needed."""
    return (
        embedding.new_empty(embedding.shape if need_embedding else (0,)),
        prototypes.new_empty(prototypes.shape if need_prototypes else (0,)),
    )
