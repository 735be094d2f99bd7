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
from functools import lru_cache
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


def choose(operation: str, *tensors: Tensor) -> str:
    """Chooses the backend for these tensors: cpp, triton, cuda or eager.

    Raises RuntimeError if one was asked for by name but cannot run.
    """
    double = any(tensor.dtype == torch.float64 for tensor in tensors)
    return _choose(operation, tensors[0].device.type, double)


@torch.compiler.assume_constant_result  # so that a compiled graph holds the choice, and a self-check runs outside it
def _choose(operation: str, device: str, double: bool) -> str:
    reasons = []
    for name in wanted():
        reason = missing(operation, name, device, double) or failed(operation, name, device)
        if reason is None:
            return name
        reasons.append(f"{name}: {reason}")
    raise RuntimeError(
        f"{operation} on {device}: MPAMATCH_BACKEND={','.join(wanted())} cannot run ({'; '.join(reasons)})."
    )


@lru_cache(maxsize=256)
def missing(operation: str, backend: str, device: str, double: bool = False) -> str | None:
    """Tells why a backend cannot run here, in half a sentence; None if it can. Runs no self-check."""
    if backend == "eager":
        return None
    record = operations()[operation]
    if backend not in record.backends:
        return f"{operation} has {' and '.join(record.backends)} only"
    interpreted = backend == "triton" and device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if device != ("cpu" if backend == "cpp" else "cuda") and not interpreted:
        return f"not for tensors on {device}"
    if backend != "triton":
        return native.missing("cpu" if device == "cpu" else "cuda", record.kernels)
    if double:
        return "float64 is not for tensor cores"
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return f"triton: {error}"
    if device == "cuda" and torch.cuda.get_device_capability() < (8, 0):
        return f"needs compute capability 8.0, this GPU has {'.'.join(map(str, torch.cuda.get_device_capability()))}"
    return None


def failed(operation: str, backend: str, device: str) -> str | None:
    """Tells why the self-check of a backend failed; None if it passed. Runs it at the first call."""
    key = (operation, backend, device)
    if backend == "eager":
        return None
    if key not in _verdicts:
        _verdicts[key] = None  # so that the check itself gets the backend
        with _disable_current_modes():
            _verdicts[key] = _self_check(operation, backend, device)
        if _verdicts[key] is not None:
            warnings.warn(
                f"{operation}: the {backend} kernel is set aside on {device}, as {_verdicts[key]}; eager PyTorch runs.",
                RuntimeWarning,
                stacklevel=2,
            )
    return _verdicts[key]


def _self_check(operation: str, backend: str, device: str) -> str | None:
    """Tells in half a sentence what differs between `backend` and eager; None if they agree. Takes milliseconds."""
    wanted()  # a wrong wish is the user's error, not the kernel's
    check = operations()[operation].self_check
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device, enabled=False):
            for dtype, tolerance in selfcheck.TOLERANCE.items():
                with using(backend):
                    ours = check(selfcheck.draw(device, dtype))
                with using("eager"):
                    expected = check(selfcheck.draw(device, dtype))
                if reason := selfcheck.difference(ours, expected, tolerance):
                    return f"{reason} ({dtype})"
    except Exception as error:  # whatever a compiler or a driver raises: the reason is shown, eager runs
        return f"its self-check raised {type(error).__name__}: {error}"
    return None


def prepare(device: str) -> dict[str, str]:
    """Runs the self-checks of all operations for a device type and returns the backend of each.

    The engine calls it before its first step, so that no check falls into a compiled graph or a CUDA graph's capture.
    """
    return {operation: _choose(operation, device, False) for operation in operations()}


def available(operation: str, device: str) -> dict[str, str | None]:
    """Lists the backends of an operation with the reason why each cannot run on this device type; None if it can."""
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
    module = importlib.import_module(f"mpamatch.kernels.{operation}")
    return getattr(module, "forward" if name == operation else "backward")
