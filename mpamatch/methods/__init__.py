"""Methods: each one short class on the one loop, by the contract in `base`.

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

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)

__all__ = ["METHODS", "Method", "build_method", "register"]


def build_method(config: Any, model: Network, class_names: Sequence[str]) -> Method:
    """Builds the method that `config` (one of the methods' settings) describes, on `model`, with the towers it chooses.

    Raises InputError for a network that the method does not train, and for a tower that cannot be built.
    """
    method = METHODS.find(config.name)
    towers = {tower.name: tower.build(config, class_names) for tower in method.towers if tower.encoder(config)}
    return method(model, config, **towers)
