"""A step that never asks the GPU a question, checked without a GPU.

The step runs on fake tensors, which have shapes and no values: without a shape environment they refuse all
whose result or shape depends on a value (.item(), bool(), nonzero, unique, masked_select, bincount, tolist).
Some things pass there and yet stall a GPU, so modes on top refuse them: a boolean mask as an index, a copy
between devices, and Python numbers made into a tensor on the device.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeCopyMode,
    FakeTensorMode,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mpamatch.ops import dispatch

MASKS = (torch.bool, torch.uint8)
INDEXING = ("index", "index_put", "index_put_", "_unsafe_index", "_unsafe_index_put", "_index_put_impl_")
# On the CPU these are no operation at all, so no dispatch mode sees them; on a GPU each of them waits.
TO_HOST = (Tensor.cpu, Tensor.cuda, Tensor.numpy, Tensor.__array__, Tensor.tolist, Tensor.item)
FROM_PYTHON = (torch.tensor, torch.as_tensor, torch.asarray)


class HostSync(AssertionError):
    """The function asked a tensor for its value, or moved one between devices."""


class _RefuseSyncs(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name == "_local_scalar_dense":  # fake tensors answer it for constants such as torch.tensor(3)
            raise HostSync("host sync: the value of a tensor is read")
        if name in INDEXING and any(index.dtype in MASKS for index in _tensors(args[1])):
            raise HostSync(f"host sync: aten.{name} with a boolean mask as an index")
        if name in ("_to_copy", "copy_"):
            _refuse_other_device(name, args, kwargs)
        return func(*args, **kwargs)


class _RefuseHost(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in TO_HOST:
            raise HostSync(f"host sync: Tensor.{func.__name__}()")
        kwargs = kwargs or {}
        if func is Tensor.to and any(isinstance(value, str) for value in (*args, *kwargs.values())):
            raise HostSync("host sync: Tensor.to() with a device by name")
        if func is Tensor.new_tensor or (func in FROM_PYTHON and kwargs.get("device") is not None):
            raise HostSync(f"host sync: {func.__name__}() copies Python numbers to the device; fill instead")
        return func(*args, **kwargs)


def assert_no_sync(function: Callable[..., Any], *args: Any) -> None:
    """Run function(*args) on fake copies of all it holds; raise HostSync where it would wait for a GPU.

    Copied are function (a module, a bound method or a plain function) and args (modules, tensors, and any
    nesting of tuples, NamedTuples, dicts and dataclasses of them); the originals are left as they are. A
    tensor or module caught in a closure (a hook, say) is not copied, and the fake tensors refuse it: hand
    everything over as arguments, and let hooks be bound methods. To check the backward pass, let the function
    run it:

        def training_step(method, batch, step):
            method(batch, step)["loss"].backward()

        assert_no_sync(training_step, method, batch, step)
    """
    dispatch.prepare("cpu")  # as the engine does: a self-check within would count as a step that waits, and as failed
    fake = FakeTensorMode()
    with FakeCopyMode(fake):
        fake_function, fake_args = copy.deepcopy((function, args))
    try:
        with fake, _RefuseSyncs(), _RefuseHost():
            fake_function(*fake_args)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise HostSync(f"host sync: {error.func}") from error


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _refuse_other_device(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    source = args[1] if name == "copy_" else args[0]
    target = args[0].device if name == "copy_" else torch.device(kwargs.get("device") or source.device)
    if isinstance(source, Tensor) and source.device != target:
        raise HostSync(f"host sync: aten.{name} from {source.device} to {target}")
