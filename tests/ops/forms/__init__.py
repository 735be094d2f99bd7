"""The forms and kernels of every operation, from the file of its name beside this one.

An operation without such a file is in none of the shared tests, and fails tests/ops/test_completeness.py.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from mpamatch.ops import native
from mpamatch.ops.operation import operations
from tests.ops.form import Form, Kernel, Small

_FILES = [import_module(f"{__name__}.{name}") for name in operations() if find_spec(f"{__name__}.{name}")]
FORMS: tuple[Form, ...] = tuple(form for file in _FILES for form in file.FORMS)
KERNELS: dict[str, Kernel] = {name: kernel for file in _FILES for name, kernel in file.KERNELS.items()}

needs_extension = pytest.mark.skipif(native.missing("cpu") is not None, reason=str(native.missing("cpu")))


def arguments(
    kernel: str, dtype: torch.dtype = torch.float32, weighted: bool = True, wanted: tuple[bool, bool] = (True, True)
) -> tuple[Any, ...]:
    """Valid arguments of a schema of torch.ops.mpamatch, small and random."""
    return KERNELS[kernel].arguments(Small(dtype, weighted, wanted))
