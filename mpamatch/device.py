"""Which device a command runs on."""

import torch

from mpamatch.errors import InputError


def choose_device(device: str) -> torch.device:
    """The device for auto (the GPU if there is one), cpu or cuda. Raises InputError for cuda if torch sees no GPU."""
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("engine.device: cuda was asked for, but torch sees no GPU here; take auto or cpu.")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
