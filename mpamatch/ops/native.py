"""Loads the native libraries: `_C` (schemas and CPU kernels) and `_cuda` (CUDA kernels). None of them need be there.

A library that cannot be used leaves its reason, never an exception. Once the schemas are there, each operation gets its
fake: the shapes and dtypes of its results without values, for torch.compile and FakeTensorMode.
"""

import importlib
import importlib.util
import sysconfig
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mpamatch.ops import source_hash

PACKAGE = Path(__file__).parent.parent
ON_CUDA = ("sinkhorn_score", "sinkhorn_step", "sinkhorn_pick", "prototype_sum", "prototype_move_", "signed_distance")
FAKES: dict[str, Callable[..., Any]] = {}  # by operation: every schema there is


def missing(device_type: Literal["cpu", "cuda"]) -> str | None:
    """Why the native kernels for this kind of device cannot be used; None where they can."""
    return _MISSING[device_type]


def build_information() -> dict[str, Any]:
    """How `_C` was built and which instruction set it uses (the keys stand in csrc/module.cpp); empty without `_C`."""
    return dict(_INFORMATION)


def _load_cpu() -> tuple[str | None, dict[str, Any]]:
    if importlib.util.find_spec("mpamatch._C") is None:
        return "mpamatch was installed as pure Python: no C++ compiler was found, or MPAMATCH_NO_EXTENSION=1", {}
    try:
        information = importlib.import_module("mpamatch._C").build_information()
    except Exception as error:  # an older torch, another libstdc++, a bad MPAMATCH_CPU: whatever it is, eager runs
        return f"mpamatch._C does not load: {error}", {}
    return _unfit("_C", information["source_hash"], source_hash.of_cpu, list(FAKES), "CPU"), information


def _load_cuda(cpu: str | None, information: dict[str, Any]) -> str | None:
    library = PACKAGE / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    if cpu:
        return f"the CUDA kernels need mpamatch._C: {cpu}"
    if not library.is_file():
        return "mpamatch was installed without CUDA kernels: no nvcc that fits torch was found, or MPAMATCH_CUDA=0"
    try:
        torch.ops.load_library(library)
    except Exception as error:
        return f"mpamatch/{library.name} does not load: {error}"
    return _unfit("_cuda", information["cuda_source_hash"], source_hash.of_cuda, ON_CUDA, "CUDA")


def _unfit(
    library: str, built_from: str, current: Callable[[], str], operations: list[str] | tuple[str, ...], key: str
) -> str | None:
    """Why a library that did load must not be used: it is older than the sources beside it, or lacks an operation."""
    if source_hash.CSRC.joinpath("module.cpp").is_file() and built_from != current():
        return f"mpamatch.{library} was built from other sources than csrc/ holds now: build it again (make extension)"
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    lacking = [name for name in operations if not _has_schema(name) or not has_kernel(f"mpamatch::{name}", key)]
    return f"mpamatch.{library} lacks {', '.join(lacking)}: build it again (make extension)" if lacking else None


def _has_schema(name: str) -> bool:
    return hasattr(torch.ops.mpamatch, name)


def _fake(function: Callable[..., Any]) -> Callable[..., Any]:
    """Also what torch calls where one tensor is on "meta" and another is not: that must not give numbers."""

    @wraps(function)
    def of_one_device(*arguments: Any) -> Any:
        devices = {str(value.device) for value in arguments if isinstance(value, Tensor)}
        if len(devices) > 1:
            raise RuntimeError(
                f"{function.__name__}: expected tensors on one device, got {', '.join(sorted(devices))}."
            )
        return function(*arguments)

    FAKES[function.__name__] = of_one_device
    return of_one_device


def _working(pixels: Tensor) -> torch.dtype:
    return torch.float64 if pixels.dtype == torch.float64 else torch.float32


def _gradients(
    embedding: Tensor, prototypes: Tensor, need_embedding: bool, need_prototypes: bool
) -> tuple[Tensor, Tensor]:
    return (
        embedding.new_empty(embedding.shape if need_embedding else (0,)),
        prototypes.new_empty(prototypes.shape if need_prototypes else (0,)),
    )


@_fake
def prototype_distance(embedding: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    shape = (embedding.shape[0], prototypes.shape[0])
    return prototypes.new_empty(shape), prototypes.new_empty(shape, dtype=torch.int32)


@_fake
def prototype_distance_backward(
    grad_distance: Tensor,
    embedding: Tensor,
    prototypes: Tensor,
    distance: Tensor,
    nearest: Tensor,
    need_embedding: bool,
    need_prototypes: bool,
) -> tuple[Tensor, Tensor]:
    return _gradients(embedding, prototypes, need_embedding, need_prototypes)


@_fake
def prototype_contrast(
    embedding: Tensor,
    prototypes: Tensor,
    assignment: Tensor,
    weight: Tensor | None,
    temperature: float,
    same_class_negatives: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return prototypes.new_empty(()), prototypes.new_empty(()), prototypes.new_empty(embedding.shape[:1])


@_fake
def prototype_contrast_backward(
    grad_contrast: Tensor,
    grad_alignment: Tensor,
    embedding: Tensor,
    prototypes: Tensor,
    assignment: Tensor,
    weight: Tensor | None,
    lse: Tensor,
    temperature: float,
    same_class_negatives: bool,
    need_embedding: bool,
    need_prototypes: bool,
) -> tuple[Tensor, Tensor]:
    return _gradients(embedding, prototypes, need_embedding, need_prototypes)


@_fake
def segmentation_loss(logits: Tensor, label: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    dtype = _working(logits)
    return logits.new_empty((), dtype=dtype), logits.new_empty((3, logits.shape[1]), dtype=dtype)


@_fake
def segmentation_loss_backward(
    grad_cross_entropy: Tensor, grad_overlap: Tensor, logits: Tensor, label: Tensor, weight: Tensor | None
) -> Tensor:
    return logits.new_empty(logits.shape)


@_fake
def pseudo_label(logits: Tensor) -> tuple[Tensor, Tensor]:
    shape = (logits.shape[0], *logits.shape[2:])
    return logits.new_empty(shape, dtype=torch.uint8), logits.new_empty(shape, dtype=_working(logits))


@_fake
def signed_distance(label: Tensor, num_classes: int) -> Tensor:
    return label.new_empty((label.shape[0], num_classes, *label.shape[1:]), dtype=torch.float32)


@_fake
def sinkhorn_score(
    embedding: Tensor, prototypes: Tensor, label: Tensor, epsilon: float, shifted: bool
) -> tuple[Tensor, Tensor]:
    classes, per_class, _ = prototypes.shape
    return prototypes.new_empty((embedding.shape[0], per_class)), prototypes.new_empty((classes, per_class))


@_fake
def sinkhorn_step(score: Tensor, label: Tensor, log_u: Tensor, total: Tensor, rows: bool) -> tuple[Tensor, Tensor]:
    return log_u.new_empty(log_u.shape), log_u.new_empty(log_u.shape)


@_fake
def sinkhorn_pick(score: Tensor, label: Tensor, log_u: Tensor, total: Tensor) -> Tensor:
    return score.new_empty(score.shape[:1], dtype=torch.int32)


@_fake
def prototype_sum(embedding: Tensor, assignment: Tensor, weight: Tensor | None, prototypes: int) -> Tensor:
    return embedding.new_empty((prototypes, embedding.shape[1]), dtype=_working(embedding))


@_fake
def prototype_move_(prototypes: Tensor, updates: Tensor, total: Tensor, momentum: float) -> None:
    return None


_CPU, _INFORMATION = _load_cpu()
_MISSING = {"cpu": _CPU, "cuda": _load_cuda(_CPU, _INFORMATION)}
if _CPU is None:
    for _name, _function in FAKES.items():
        torch.library.register_fake(f"mpamatch::{_name}", _function)
