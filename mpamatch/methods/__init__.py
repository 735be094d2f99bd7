"""Methods: one short class each, trained by the one loop through the contract `Method`.

Every module of this folder is imported, so a method in a file of its own is known by `@register`. A class of another
package becomes one by the same decorator, or by an entry point of the group `mpamatch.methods`.
"""

import importlib
import pkgutil
from collections.abc import Sequence
from typing import Any

from mpamatch.methods.base import METHODS, Method
from mpamatch.models.network import Network

register = METHODS.register
"""Adds a subclass of Method under its `name`; a decorator. Raises ValueError if another class has that name."""

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)

__all__ = ["METHODS", "Method", "build_method", "register"]


def build_method(config: Any, model: Network, class_names: Sequence[str]) -> Method:
    """Builds the method that a configuration describes, with the frozen towers that it chooses.

    Args:
        config: settings of a method, such as `METHODS["mpamatch"].configuration()`; its `name` says which.
        model: the network to train.
        class_names: names of the C classes, which text descriptions are chosen by.

    Returns:
        The method.

    Raises:
        InputError: a network that the method does not train, or a tower that cannot be built.
    """
    method = METHODS.find(config.name)
    towers = {tower.name: tower.build(config, class_names) for tower in method.towers if tower.encoder(config)}
    return method(model, config, **towers)
