"""The same training again and again: bitwise the same weights, prototypes, teacher and moments of the optimizer.

    python -m tests.reliability.repeat [--steps 1000] [--other-steps 200] [--only NAME,NAME]

Every method trains a tiny network: twice alike, once killed in its middle and resumed, and with batches that one and
two processes make ahead (data.workers), which the feed promises to be the same. `supervised` takes --steps steps, the
others --other-steps, as each of theirs costs four times as much.
"""

import argparse
import hashlib
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpamatch.methods import METHODS
from tests.reliability.commands import Ambush, Command, context
from tests.tiny import make_set, read_checkpoint, tiny_flags

SAVED = "rename run/checkpoints/last.safetensors"
VARIANTS: dict[str, dict[str, Any]] = {
    "once": {}, "again": {}, "resumed": {}, "one worker": {"data.workers": 1}, "two workers": {"data.workers": 2},
}  # fmt: skip


def digests(method: str, steps: int, data: Path, place: Path) -> dict[str, str]:
    """Trains in every variant; returns its name → SHA-256 of all tensors of both checkpoints."""
    found = {}
    for name, fields in VARIANTS.items():
        folder = place / name.replace(" ", "-")
        folder.mkdir(parents=True)
        if name == "resumed":
            _train_in_two(method, steps, data, folder)
        else:
            _run(_words(method, steps, data, fields), folder)
        found[name] = digest(folder / "run")
    return found


def digest(run: Path) -> str:
    """Computes the SHA-256 over names, dtypes, shapes and values of all tensors of a run's checkpoints."""
    total = hashlib.sha256()
    for name in ("last", "best"):
        tensors, _ = read_checkpoint(run / "checkpoints" / f"{name}.safetensors")
        for key in sorted(tensors):
            total.update(f"{key} {tensors[key].dtype} {tuple(tensors[key].shape)}".encode())
            total.update(tensors[key].numpy().tobytes())
    return total.hexdigest()


def _words(method: str, steps: int, data: Path, fields: Mapping[str, Any]) -> list[str]:
    half = max(steps // 2, 1)
    lengths = {"engine.steps": steps, "engine.save_every": half, "engine.validate_every": half, "engine.log_every": 100}
    return ["train", "--recipe", "demo", "--run", "run", *tiny_flags(data, method, {**lengths, **fields})]


def _train_in_two(method: str, steps: int, data: Path, folder: Path) -> None:
    """Trains to the last save of the end, is killed just before it, and goes on from the middle."""
    command = _run(_words(method, steps, data, {}), folder)
    saves = [number for number, one in enumerate(command.operations, start=1) if one == SAVED]
    again = folder / "again"
    again.mkdir()
    killed = Command(_words(method, steps, data, {}), again, folder / "said", Ambush(again, saves[-1]))
    assert killed.end() < 0
    step = read_checkpoint(again / "run" / "checkpoints" / "last.safetensors")[1]["progress"]["step"]
    assert 0 < step < steps
    _run(["train", "--resume", "run"], again)
    (folder / "run").rename(folder / "whole")
    (again / "run").rename(folder / "run")


def _run(words: list[str], folder: Path) -> Command:
    command = Command(words, folder, folder.parent / f"{folder.name}.said", Ambush(folder), seconds=3600)
    assert command.end() == 0, command.said
    return command


def main() -> int:
    """Trains what is asked for and prints a line per method; returns 1 if two variants differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--other-steps", type=int, default=200)
    parser.add_argument("--only", default=",".join(METHODS), help="methods, with commas")
    words = parser.parse_args()
    bad = 0
    context()
    for method in words.only.split(","):
        steps = words.steps if method == "supervised" else words.other_steps
        with tempfile.TemporaryDirectory(prefix="repeat-") as name:
            began = time.monotonic()
            found = digests(method, steps, make_set(Path(name) / "data").root, Path(name) / "runs")
        differ = [variant for variant, value in found.items() if value != found["once"]]
        bad += bool(differ)
        verdict = f"differ: {', '.join(differ)}" if differ else f"{len(found)} times {found['once'][:16]}"
        print(f"{method}, {steps} steps: {verdict} ({time.monotonic() - began:.0f} s)", flush=True)
    return int(bad > 0)


if __name__ == "__main__":
    raise SystemExit(main())
