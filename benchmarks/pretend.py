"""Tells whether this is a dry run of gpu_check: then every row says so, and no figure stands for a GPU."""

import os
from typing import Any

VARIABLE = "MPAMATCH_PRETEND"  # set by `gpu_check --pretend` for the processes that it starts


def pretended() -> bool:
    return os.environ.get(VARIABLE) == "1"


def mend_interpreter() -> None:
    """Triton 3.6's interpreter takes int() of arrays of one element, which numpy 2.4 no longer allows."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_for_numpy_2(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda scalar: scalar.handle.data.item())

    interpreter._patch_lang_tensor = patch_for_numpy_2
