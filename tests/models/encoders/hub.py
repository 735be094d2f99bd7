"""A cache of Hugging Face's hub made by hand, as its client lays it out: nothing is fetched."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

REVISION = "0" * 40


def empty_cache(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Makes `folder` the hub's cache, and the hub unreachable; torch.hub's cache lies beside it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(folder / "torch"))
    return folder / "hub"


def put(cache: Path, repository: str, state: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> Path:
    """Puts a repository with weights, and a config.json if there is one, into the cache; returns its folder."""
    root = cache / f"models--{repository.replace('/', '--')}"
    snapshot = root / "snapshots" / REVISION
    snapshot.mkdir(parents=True, exist_ok=True)
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / "main").write_text(REVISION)
    save_file({name: value.contiguous() for name, value in state.items()}, snapshot / "model.safetensors")
    if config is not None:
        (snapshot / "config.json").write_text(json.dumps(config))
    return snapshot
