"""What the shared tests have to know of an operation: how it is called, its truth, valid arguments of its kernels.

A file forms/<operation>.py says it; `tests.ops.forms` gathers all of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpamatch.ops.operation import Operation, operations
from tests.ops.cases import TOLERANCE, maps, pixels

N, D, C, K = 7, 5, 3, 2  # of the arguments of a kernel
MAP = (2, 4, 3)  # B, H, W


@dataclass(frozen=True)
class Form:
    """An operation with some of its options chosen: a function of its tensors that returns all it computes, also what
    it writes in place."""

    operation: str
    call: Callable[..., tuple[Tensor, ...]]
    arguments: tuple[str, ...]  # names of `tests.ops.cases.pixels`, or if of_maps of `maps`
    truth: Callable[..., tuple[Any, ...]]  # of the same arguments as float64 or int64 arrays
    gradient: Callable[..., tuple[Any, ...]] | None = None  # of these and `grad`, the gradients in the float outputs
    of_maps: bool = False
    name: str = ""  # of this form, if the operation has several
    free: tuple[str, ...] = ()  # arguments that nothing else counts: one pixel, image or class more is no mistake
    indices: tuple[torch.dtype, ...] = ()  # of the outputs that are no floating numbers
    scores: Callable[..., Any] | None = None  # whose argmax an index output is, of the arrays; candidates last
    scale_of_scores: float = 1.0

    def __repr__(self) -> str:
        return self.name or self.operation

    @property
    def record(self) -> Operation:
        return operations()[self.operation]

    @property
    def differentiable(self) -> tuple[str, ...]:
        return self.record.differentiable

    @property
    def main(self) -> str:
        """The argument that says how many pixels there are."""
        return next(name for name in ("logits", "embedding", "label") if name in self.arguments)

    @property
    def of_numbers(self) -> bool:
        """Not of labels alone, whatever the dtype that was asked for."""
        return self.main != "label"

    def inputs(
        self, seed: int = 0, dtype: torch.dtype = torch.float32, n: int = 61, side: int = 6, ignored: float = 0.2
    ) -> dict[str, Tensor]:
        """Its tensors by argument name: n pixels, or maps of about side²."""
        if self.of_maps:
            pool = maps(h=side - 1, w=side + 1, seed=seed, dtype=dtype, ignored=ignored)._asdict()
        else:
            pool = pixels(n, seed=seed, dtype=dtype, ignored=ignored)._asdict() | {"updates": torch.full((3, 4), 7)}
        return {name: pool[name] for name in self.arguments}


def forward_backward(form: Form, inputs: dict[str, Tensor], wanted: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Every output by its place, and the gradient in each wanted argument (None: all there are) by its name.

    The elements of an output are weighted by 1, 2, 3, … in their order, so that no two gradients look alike.
    """
    wanted = form.differentiable if wanted is None else wanted
    inputs = {name: value.detach().requires_grad_(name in wanted) for name, value in inputs.items()}
    outputs = form.call(**inputs)
    terms = [(output * ramp(output)).sum() for output in outputs if output.requires_grad]
    if terms:
        torch.stack(terms).sum().backward()
    result = {str(place): output.detach() for place, output in enumerate(outputs)}
    for name in wanted:
        gradient = inputs[name].grad
        assert gradient is not None, f"no gradient came back to {name}"
        result[name] = gradient
    return result


def ramp(output: Tensor) -> Tensor:
    """1, 2, 3, … over their number, in the shape of the output."""
    count = torch.arange(1, output.numel() + 1, dtype=output.dtype, device=output.device)
    return count.reshape(output.shape) / max(1, output.numel())


def assert_same_index(
    form: Form, ours: NDArray[Any], exact: Any, arrays: Mapping[str, NDArray[Any]], dtype: torch.dtype
) -> None:
    """Indices are the truth's, but where the float64 scores of the two are closer than the tolerance of the dtype."""
    assert ours.shape == np.shape(exact)
    differ = np.nonzero(ours != exact)
    if form.scores is None:
        assert len(differ[0]) == 0
        return
    scores = form.scores(**arrays)
    for position in zip(*differ, strict=True):
        row = scores[position]
        assert 0 <= ours[position] < len(row)
        reach = 2 * TOLERANCE[dtype] * form.scale_of_scores  # two scores, each off by the tolerance
        assert abs(row[ours[position]] - row[exact[position]]) <= reach


class Small:
    """Arguments of kernels, random where their values may be anything, for N, D, C, K and MAP."""

    def __init__(self, dtype: torch.dtype, weighted: bool, wanted: tuple[bool, bool]) -> None:
        self.working = torch.float64 if dtype == torch.float64 else torch.float32
        self.embedding, self.prototypes = self.randn(N, D).to(dtype), self.randn(C, K, D)
        self.label = torch.tensor([0, 1, 2, 255, 1, 0, 2], dtype=torch.uint8)
        self.assignment = torch.tensor([0, 5, -1, 3, 2, 2, 1], dtype=torch.int32)
        self.weight = self.rand(N) if weighted else None
        self.logits = self.randn(MAP[0], C, *MAP[1:]).to(dtype)
        self.map_label = torch.randint(0, C, MAP)
        self.map_weight = self.rand(*MAP) if weighted else None
        self.one = torch.ones((), dtype=self.working)
        self.wanted = wanted  # which of two gradients

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=self.working)

    def rand(self, *shape: int) -> Tensor:
        return torch.rand(shape, dtype=self.working)


@dataclass(frozen=True)
class Kernel:
    """Valid arguments of a schema of torch.ops.mpamatch, and what it does with others."""

    arguments: Callable[[Small], tuple[Any, ...]]
    free: tuple[str, ...] = ()  # as in Form
    refused: Mapping[str, Sequence[Any]] = field(default_factory=dict)  # by argument: values out of range
