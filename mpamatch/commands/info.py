"""`mpamatch info`: versions, devices, kernels, methods, encoders, recipes."""

import argparse
import json
import platform
from importlib import metadata
from typing import Any

import torch
from rich.table import Table

from mpamatch.console import new_console
from mpamatch.data.feeds import feeds
from mpamatch.engine.config import recipes
from mpamatch.inference.export.runtime import INSTALL, LIBRARIES, missing_libraries
from mpamatch.methods import METHODS
from mpamatch.models.encoders import presets
from mpamatch.models.encoders.sources import HERE, at_hand, origin
from mpamatch.models.licences import short
from mpamatch.models.text_encoders import text_encoders, text_licences
from mpamatch.ops import dispatch, native
from mpamatch.ops.operation import operations
from mpamatch.slides.reader import readers

PACKAGES = ("mpamatch", "torch", "torchvision", "timm", "open_clip_torch", "lightning-fabric", "transformers")

GAPS = 4  # two between columns
WHERE = {"offline": "offline package", "hub": "hub cache", "smp": "hub cache", "timm": "timm cache"}


def run(arguments: argparse.Namespace) -> int:
    """Prints what is installed and which backend each operation runs on; returns 0."""
    facts = gather(check=arguments.check)
    if arguments.json:
        print(json.dumps(facts, indent=1))
        return 0
    table = Table(show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column()
    for name, value in facts.items():
        if name != "encoders":
            table.add_row(name, _shown(value))
    console = new_console()
    console.print(table)
    console.print(_encoder_table(facts["encoders"], console.width))
    return 0


def gather(*, check: bool = False) -> dict[str, Any]:
    """Collects facts about this installation, ready for JSON; with `check`, kernels are compared with eager first."""
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "device": _device(),
        "extension": _extension(),
        "operations": {name: _operation(name, check) for name in operations()},
        "tiles": dispatch.tiles(),
        "feeds": {name: missing or "available" for name, missing in feeds().items()},
        "slide readers": {name: missing or "available" for name, missing in readers().items()},
        "export": _export(),
        "methods": list(METHODS),
        "encoders": _encoders(),
        "text encoders": _text_encoders(),
        "recipes": recipes(),
    }


def _export() -> dict[str, str]:
    """Says which libraries of the extra `export` are here; files are read by onnxruntime alone."""
    missing = missing_libraries()
    return {name: INSTALL if name in missing else _version(name) for name in LIBRARIES}


def _extension() -> dict[str, str]:
    built = native.build_information()
    cpu = native.missing("cpu") or (
        f"{built['instruction_set']} in use, of {', '.join(built['instruction_sets'])}; "
        f"{built['compiler']}, for torch {built['torch']} and later"
    )
    cuda = native.missing("cuda") or f"built with nvcc {built['cuda']} for {', '.join(built['cuda_architectures'])}"
    return {"C++": cpu, "CUDA": cuda}


def _operation(name: str, check: bool) -> str:
    """Says which backend runs on each device that is here, and why the others do not."""
    lines = []
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        if check:
            reasons = dispatch.available(name, device)
        else:
            reasons = {
                backend: dispatch.missing(name, backend, device) for backend in (*operations()[name].backends, "eager")
            }
        running = next((backend for backend in dispatch.wanted() if reasons.get(backend, "") is None), "nothing")
        others = "; ".join(f"{backend}: {reason}" for backend, reason in reasons.items() if reason)
        lines.append(f"{device}: {running}{' (checked)' if check else ''}" + (f" ({others})" if others else ""))
    return ", ".join(lines)


def _encoders() -> dict[str, dict[str, Any]]:
    """Returns, for each preset, where weights are at hand, where they come from, and their terms; asks no network."""
    return {
        name: {
            "at hand": [word for word in HERE if at_hand(preset, word)],
            "from": origin(preset),
            "hub": preset.hub,
            "on request": preset.gated,
            "licence": preset.licence or (preset.offline.licence if preset.offline else None),
        }
        for name, preset in presets().items()
    }


def _encoder_table(encoders: dict[str, dict[str, Any]], width: int) -> Table:
    """Lists encoders, a line each, in `width` columns; only where weights come from may be cut."""
    rows = [(name, _weights(facts), short(facts["licence"] or "")) for name, facts in encoders.items()]
    rows.append(("any backbone of timm", "timm, by its name", "by its card"))
    others = sum(max(len(row[column]) for row in rows) for column in (0, 2))
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("encoder", no_wrap=True)
    table.add_column("weights", no_wrap=True, max_width=max(20, width - others - GAPS))
    table.add_column("licence", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _weights(facts: dict[str, Any]) -> str:
    here = ", ".join(dict.fromkeys(WHERE[word] for word in facts["at hand"]))
    return f"at hand: {here}" if here else facts["from"]


def _text_encoders() -> dict[str, str]:
    licences = text_licences()
    return {name: f"{missing or 'available'} (licence: {licences[name]})" for name, missing in text_encoders().items()}


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
