"""What `mpamatch info --check` finds, as a line among the rows: which kernels agree with eager on this machine.

    python -m mpamatch.benchmarks.verdicts [--device cuda] [--out FILE]

`mpamatch info` needs rich and the packages of training; where they are not installed the kernels' verdicts remain.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from mpamatch.benchmarks import measure, rows
from mpamatch.benchmarks.backends import fused
from mpamatch.benchmarks.command import run_main
from mpamatch.ops import dispatch, native
from mpamatch.ops.operation import operations


def gather(device: str) -> dict[str, Any]:
    """Each fused backend of the device by operation: null where it agrees with eager, else the reason."""
    return {
        "info": device,
        "machine": measure.machine(device),
        "torch": torch.__version__,
        "verdicts": {name: fused(name, device) for name in operations()},
        "tiles": dispatch.tiles(),
        "native": native.build_information() if native.missing("cpu") is None else native.missing("cpu"),
        "all": everything(),
    }


def everything() -> dict[str, Any] | str:
    """All that `mpamatch info --check` says, or which package it lacks."""
    try:
        from mpamatch.commands import info
    except ImportError as error:
        return f"mpamatch info does not run here: {error}"
    return info.gather(check=True)


def refusals(found: dict[str, Any]) -> list[str]:
    """A sentence for each fused kernel of the device that cannot run or differs from eager."""
    every = [(name, *verdict) for name, reasons in found["verdicts"].items() for verdict in reasons.items()]
    return [f"{name}, {backend}: {reason}" for name, backend, reason in every if reason is not None]


def main(words: list[str] | None = None) -> int:
    """Returns 0, or 1 where a fused kernel of this device cannot run or differs from eager."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="JSON lines to add to")
    wanted = parser.parse_args(words)
    found = gather(wanted.device)
    if wanted.out:
        rows.replace_kind(wanted.out, '{"info":', [found])
    refused = refusals(found)
    for sentence in refused:
        print(sentence)
    print(found["tiles"])
    print(f"{len(operations()) - len(refused)} of {len(operations())} operations run fused on {found['machine']}")
    return 1 if refused else 0


if __name__ == "__main__":
    run_main(lambda: main(sys.argv[1:]))
