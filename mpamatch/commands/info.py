"""`mpamatch info`."""

import argparse
import json
import platform
from importlib import metadata
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from mpamatch import ops
from mpamatch.engine.config import recipes
from mpamatch.methods import METHODS
from mpamatch.models.encoder import PRESETS, SMALL
from mpamatch.models.text import text_encoders

PACKAGES = ("mpamatch", "torch", "torchvision", "timm", "open_clip_torch", "lightning-fabric", "transformers")


def run(arguments: argparse.Namespace) -> int:
    """Prints what is here and what runs; returns 0."""
    facts = gather()
    if arguments.json:
        print(json.dumps(facts, indent=1))
        return 0
    table = Table(show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column()
    for name, value in facts.items():
        table.add_row(name, _shown(value))
    Console().print(table)
    return 0


def gather() -> dict[str, Any]:
    """Facts about this installation, ready for JSON."""
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "device": _device(),
        "extension": "none: this version is pure Python, every operation runs as eager PyTorch",
        "operations": {name: "eager" for name in ops.__all__ if name != "IGNORE"},
        "methods": list(METHODS),
        "encoders": [*SMALL, *PRESETS, "any ViT of timm by name"],
        "text encoders": {name: missing or "available" for name, missing in text_encoders().items()},
        "recipes": recipes(),
    }


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{name}: {text}" for name, text in value.items())
    return ", ".join(value) if isinstance(value, list) else str(value)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _device() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()} (CUDA {torch.version.cuda})"
    return f"CPU, {torch.get_num_threads()} threads; torch sees no GPU"
