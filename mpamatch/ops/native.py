"""Loads the native libraries, if they are there: `_C` (schemas and CPU kernels) and `_cuda` (CUDA kernels).

For a library that cannot be used the reason is kept; no exception is raised. Each schema that is there gets its fake:
the shapes and dtypes of its results without values, for torch.compile and FakeTensorMode.
"""

import importlib
import importlib.util
import sysconfig
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mpamatch.ops import source_hash

PACKAGE = Path(__file__).parent.parent


def missing(device_type: Literal["cpu", "cuda"], kernels: Iterable[str] = ()) -> str | None:
    """Tells why the native library for a device type cannot be used or lacks one of the kernels; None if neither."""
    if reason := _MISSING[device_type]:
        return reason
    library, key = ("_C", "CPU") if device_type == "cpu" else ("_cuda", "CUDA")
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    lacking = [name for name in kernels if not _has_schema(name) or not has_kernel(f"mpamatch::{name}", key)]
    return f"mpamatch.{library} lacks {', '.join(lacking)}: build it again (make extension)" if lacking else None


def build_information() -> dict[str, Any]:
    """Tells how `_C` was built and which instruction set it uses (keys: csrc/module.cpp); empty without `_C`."""
    return dict(_INFORMATION)


def register_fakes(fakes: Mapping[str, Callable[..., Any]]) -> None:
    """Registers the fake of each schema that `_C` has."""
    for name, fake in fakes.items():
        if missing("cpu", [name]) is None:
            torch.library.register_fake(f"mpamatch::{name}", _of_one_device(name, fake))


def _of_one_device(name: str, fake: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a fake to raise RuntimeError for tensors on different devices.

    torch also calls it if one tensor is on "meta" and another is not, which must not return numbers.
    """

    @wraps(fake)
    def checked(*arguments: Any) -> Any:
        devices = {str(value.device) for value in arguments if isinstance(value, Tensor)}
        if len(devices) > 1:
            raise RuntimeError(f"{name}: expected tensors on one device, got {', '.join(sorted(devices))}.")
        return fake(*arguments)

    return checked


def _load_cpu() -> tuple[str | None, dict[str, Any]]:
    if importlib.util.find_spec("mpamatch._C") is None:
        return "mpamatch was installed as pure Python: no C++ compiler was found, or MPAMATCH_NO_EXTENSION=1", {}
    try:
        information = importlib.import_module("mpamatch._C").build_information()
    except Exception as error:  # an older torch, another libstdc++, a bad MPAMATCH_CPU: whatever it is, eager runs
        return f"mpamatch._C does not load: {error}", {}
    return _stale("_C", information["source_hash"], source_hash.of_cpu), information


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
    return _stale("_cuda", information["cuda_source_hash"], source_hash.of_cuda)


def _stale(library: str, built_from: str, current: Callable[[], str]) -> str | None:
    """Tells why a loaded library must not be used: it was built from other sources than those in csrc/."""
    if source_hash.CSRC.joinpath("module.cpp").is_file() and built_from != current():
        return f"mpamatch.{library} was built from other sources than csrc/ holds now: build it again (make extension)"
    return None


def _has_schema(name: str) -> bool:
    return hasattr(torch.ops.mpamatch, name)


_CPU, _INFORMATION = _load_cpu()
_MISSING = {"cpu": _CPU, "cuda": _load_cuda(_CPU, _INFORMATION)}
