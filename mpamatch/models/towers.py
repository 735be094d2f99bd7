"""What frozen text and image towers share: a place beside a module, and how they are built and found missing."""

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

TEXT_OFFLINE = "pip install 'mpamatch[text-offline]'"


class BesideTower(nn.Module):
    """A module that keeps a frozen tower beside it: moved and copied with the module, but no submodule.

    So the tower's weights are in neither `state_dict()` nor `parameters()`.
    """

    _towers: tuple[nn.Module, ...] = ()  # none or one; a tuple keeps it out of the module tree

    def keep_beside(self, tower: nn.Module | None) -> None:
        """Keeps `tower`, or nothing if it is None."""
        self._towers = () if tower is None else (tower,)

    def _apply(self, fn, recurse=True):
        for tower in self._towers:
            tower._apply(fn, recurse)
        return super()._apply(fn, recurse)


def without_draws(build: Callable[[], Any]) -> Any:
    """Calls `build` without advancing the CPU's generator, for a module whose random start is replaced anyway."""
    with torch.random.fork_rng(devices=[]):
        return build()


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, or its class if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def has(package: str) -> bool:
    """Tells whether a package is installed, without importing it."""
    return importlib.util.find_spec(package) is not None
