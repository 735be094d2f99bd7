"""Feeds: they apply draws to files and make batches, with torchvision or with DALI."""

from importlib.util import find_spec

import torch

from mpamatch.data.feeds.base import Feed
from mpamatch.errors import InputError

__all__ = ["Feed", "dali_installed", "feed_class", "feeds"]

INSTALL_DALI = "pip install 'mpamatch[dali-cuda13]' (or dali-cuda12)"


def dali_installed() -> bool:
    """Tells whether DALI can be imported, without importing it."""
    return find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None


def feed_class(name: str, device: torch.device) -> type[Feed]:
    """Chooses the feed that data.feed names; auto is DALI for a GPU if it is installed, else torchvision.

    On a CPU neither is always the faster: 224² PNGs into crops of 112 in three views cost DALI 3.7 ms of CPU each and
    torchvision 6.1 in natural colours, 4.7 and 5.0 in histology; from memory (data.cache_mb) 2.3 and 3.6, 3.3 and 2.9
    (two shared cores, busy). The default, histology from memory, is torchvision's.

    Raises InputError for dali if it is not installed.
    """
    there = dali_installed()
    if name == "dali" and not there:
        raise InputError(
            f"data.feed: dali is not installed; {INSTALL_DALI}, with or without a GPU, or take torchvision."
        )
    if name == "dali" or (name == "auto" and there and device.type == "cuda"):
        from mpamatch.data.feeds.dali import DaliFeed

        return DaliFeed
    from mpamatch.data.feeds.torchvision import TorchvisionFeed

    return TorchvisionFeed


def feeds() -> dict[str, str]:
    """Lists the feeds: name → "" if it can be used here, else what is missing."""
    return {"torchvision": "", "dali": "" if dali_installed() else INSTALL_DALI}
