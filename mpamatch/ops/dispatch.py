"""Chooses the backend that runs an operation, and tells why not another.

Backends are "cpp" (C++ for the CPU), "triton" and "cuda" (for the GPU), and "eager" (the reference, anywhere). A fused
backend is used if its library is loaded, the device fits, and its self-check passed: at its first use it is compared
with eager on a small fixed case. One that fails is not used, with a warning.

The environment variable MPAMATCH_BACKEND, read once, or `using` chooses otherwise: a comma-separated list, of which
each operation takes the first that it has. Then a backend that cannot run raises instead of giving way to eager.
"""

import importlib
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from mpamatch.errors import InputError
from mpamatch.ops import native, selfcheck
from mpamatch.ops.operation import operations

NAMES = ("cpp", "triton", "cuda", "eager")
AUTO = NAMES


def _parse(wanted: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in wanted.split(",") if name.strip())
    if names in ((), ("auto",)):
        return AUTO
    for name in names:
        if name not in NAMES:
            raise InputError(
                f"MPAMATCH_BACKEND: {name!r} is none of auto, {', '.join(NAMES)} (or several, with commas)."
            )
    return names


_wanted: tuple[str, ...] | None = None  # None: not read from the environment yet
_verdicts: dict[tuple[str, str, str], str | None] = {}  # (operation, backend, device) -> why its self-check failed
_modules: dict[str, ModuleType] = {}  # operation -> its Triton kernels, loaded when they are chosen


def wanted() -> tuple[str, ...]:
    """Lists the backends that operations choose from, in order. Raises InputError for a wrong MPAMATCH_BACKEND."""
    global _wanted
    if _wanted is None:
        _wanted = _parse(os.environ.get("MPAMATCH_BACKEND", ""))
    return _wanted


@contextmanager
def using(backends: str) -> Iterator[None]:
    """Runs operations within the context as if MPAMATCH_BACKEND were `backends`; a compiled graph keeps its own.

    Raises InputError for an unknown backend.
    """
    global _wanted
    before, _wanted = wanted(), _parse(backends)
    try:
        yield
    finally:
        _wanted = before


def choose(operation: str, *tensors: Tensor, beyond: str | None = None) -> str:
    """Chooses the backend for these tensors: cpp, triton, cuda or eager.

    `beyond`: why the kernels of a GPU do not take tensors of these shapes, in half a sentence; None if they do.

    Raises RuntimeError if one was asked for by name but cannot run.
    """
    double = any(tensor.dtype == torch.float64 for tensor in tensors)
    device = tensors[0].device
    return _choose(operation, device.type, device.index, double, beyond)


@torch.compiler.assume_constant_result  # so that a compiled graph holds the choice, and a self-check runs outside it
def _choose(operation: str, device_type: str, index: int | None, double: bool, beyond: str | None = None) -> str:
    reasons, device = [], _named(device_type, index)
    for name in wanted():
        limit = beyond if name in ("triton", "cuda") else None
        reason = missing(operation, name, device, double) or limit or failed(operation, name, device)
        if reason is None:
            if name == "triton" and operation not in _modules:  # here, as a compiled graph cannot import
                _modules[operation] = importlib.import_module(f"mpamatch.kernels.{operation}")
            return name
        reasons.append(f"{name}: {reason}")
    raise RuntimeError(
        f"{operation} on {device}: MPAMATCH_BACKEND={','.join(wanted())} cannot run ({'; '.join(reasons)})."
    )


def _named(device_type: str, index: int | None = None) -> str:
    """Returns cpu, or cuda with its number: that of the current one if there is none."""
    if device_type != "cuda" or not torch.cuda.is_available():
        return device_type
    return f"cuda:{torch.cuda.current_device() if index is None else index}"


@lru_cache(maxsize=256)
def missing(operation: str, backend: str, device: str, double: bool = False) -> str | None:
    """Tells why a backend cannot run here, in half a sentence; None if it can. Runs no self-check.

    `device`: as torch names it, "cuda:1"; without a number the current one.
    """
    if backend == "eager":
        return None
    place, record = torch.device(device), operations()[operation]
    if backend not in record.backends:
        return f"{operation} has {' and '.join(record.backends)} only"
    interpreted = backend == "triton" and place.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if place.type != ("cpu" if backend == "cpp" else "cuda") and not interpreted:
        return f"not for tensors on {place.type}"
    if backend != "triton":
        return native.missing("cpu" if place.type == "cpu" else "cuda", record.kernels)
    if double:
        return "float64 is not for tensor cores"
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return f"triton: {error}"
    if place.type == "cuda" and (capability := torch.cuda.get_device_capability(place)) < (8, 0):
        return f"needs compute capability 8.0, this GPU has {'.'.join(map(str, capability))}"
    return None


def failed(operation: str, backend: str, device: str) -> str | None:
    """Tells why the self-check of a backend failed; None if it passed. Runs it at the first call."""
    place = torch.device(device)
    key = (operation, backend, _named(place.type, place.index))
    if backend == "eager":
        return None
    if key not in _verdicts:
        _verdicts[key] = None  # so that the check itself gets the backend
        with _disable_current_modes():
            _verdicts[key] = _self_check(operation, backend, place)
        if _verdicts[key] is not None:
            warnings.warn(
                f"{operation}: the {backend} kernel is set aside on {device}, as {_verdicts[key]}; eager PyTorch runs.",
                RuntimeWarning,
                stacklevel=2,
            )
    return _verdicts[key]


def _self_check(operation: str, backend: str, device: torch.device) -> str | None:
    """Tells in half a sentence what differs between `backend` and eager; None if they agree. Takes milliseconds."""
    wanted()  # a wrong wish is the user's error, not the kernel's
    check = operations()[operation].self_check
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            for dtype, size in selfcheck.CASES:
                with using(backend):
                    ours = check(selfcheck.draw(device, dtype, size))
                with using("eager"):
                    expected = check(selfcheck.draw(device, dtype, size))
                if reason := selfcheck.difference(ours, expected, selfcheck.TOLERANCE[dtype]):
                    return f"{reason} ({dtype})"
    except Exception as error:  # whatever a compiler or a driver raises: the reason is shown, eager runs
        return f"its self-check raised {type(error).__name__}: {error}"
    return None


def prepare(device: str) -> dict[str, str]:
    """Runs the self-checks of all operations on a device, such as cpu or cuda:1, and returns the backend of each.

    The engine calls it before its first step, so that no check falls into a compiled graph or a CUDA graph's capture.
    """
    place = torch.device(device)
    return {operation: _choose(operation, place.type, place.index, False) for operation in operations()}


def available(operation: str, device: str) -> dict[str, str | None]:
    """Lists the backends of an operation with the reason why each cannot run on this device; None if it can."""
    return {
        name: missing(operation, name, device) or failed(operation, name, device)
        for name in (*operations()[operation].backends, "eager")
    }


def tiles() -> str:
    """Tells in a sentence which table of tile sizes the Triton kernels use on this GPU."""
    if not torch.cuda.is_available():
        return "not needed: torch sees no GPU"
    device = torch.device("cuda", torch.cuda.current_device())
    return str(importlib.import_module("mpamatch.kernels.tiles").source(device))


def kernel(name: str, backend: str) -> Callable[..., Any]:
    """Returns the function of a fused backend behind a schema of torch.ops.mpamatch.

    `name`: that of an operation, with `_backward` its gradient, or one of its stages.
    """
    if backend != "triton":
        return getattr(torch.ops.mpamatch, name)
    operation = name.removesuffix("_backward")
    function = _modules[operation].forward if name == operation else _modules[operation].backward
    return function if torch.compiler.is_compiling() else partial(_on_its_device, function)


def _on_its_device(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls with the device of the tensors as the current one, on which Triton launches; a graph sees to it itself."""
    with torch.cuda.device_of(next(value for value in arguments if isinstance(value, Tensor))):
        return function(*arguments)
