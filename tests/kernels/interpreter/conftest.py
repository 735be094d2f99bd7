"""Runs under TRITON_INTERPRET=1, in a process of its own: see ../test_interpreted.py."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from triton.runtime import interpreter

_patch_tensor = interpreter._patch_lang_tensor


def _patch_tensor_for_numpy_2(tensor: Any, scope: Any) -> None:
    """NumPy 2.4 refuses int() of an array of one number, which is what Triton 3.6 holds a scalar in."""
    _patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda scalar: scalar.handle.data.item())


interpreter._patch_lang_tensor = _patch_tensor_for_numpy_2


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    """Fresh memory holds NaN (integers: the largest), so that what a kernel does not write shows."""
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = filled
