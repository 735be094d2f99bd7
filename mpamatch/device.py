"""The choice of the device that a command runs on."""

import resource
import sys

import torch

from mpamatch.errors import InputError


def choose_device(device: str) -> torch.device:
    """Chooses the device.

    Args:
        device: auto (the GPU if there is one), cpu or cuda.

    Raises:
        InputError: cuda was asked for, and torch sees no GPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("engine.device: cuda was asked for, but torch sees no GPU here; take auto or cpu.")
    return torch.device("cuda" if on_gpu(device) else "cpu")


def on_gpu(device: str) -> bool:
    """Tells whether auto, cpu or cuda means a GPU here; False for cuda where torch sees none."""
    return device in ("auto", "cuda") and torch.cuda.is_available()


def peak_memory(device: torch.device) -> float:
    """Returns the most memory that this process has had so far, in MiB, without asking the device.

    On a GPU that which torch allocated there; on a CPU resident memory, libraries included.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
