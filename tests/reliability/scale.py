"""The memory of an epoch of 100,000 patches: of the feed alone, and of a training with a trivially small network.

    python -m tests.reliability.scale [--patches 100000] [--only feed,workers,training]

The set is made up: 48 images of 48×48 and as many hard links to them as there are patches, none of them labelled, so
that its lists are as long as those of a real set and the disk holds a few kilobytes. One epoch passes every patch once,
in random order (draws go through the list before they repeat). Every half second the resident memory of the process and
its workers is read. What is kept of decoded images has its limit (data.cache_mb, here 32), so memory must not grow from
a tenth of the epoch on, by when that is full, to its end.

A slide of 40,000² is measured by `python -m benchmarks.bench_slides --sizes 40000`.
"""

import argparse
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.reliability.commands import be_ordinary, context
from tests.tiny import make_set, tiny_config

BATCH, CACHE_MB, EVERY = 50, 32, 0.5
GROWTH = 0.03  # of the memory at a tenth: allocators and the interpreter move a little
KINDS: dict[str, dict[str, Any]] = {"feed": {}, "workers": {"data.workers": 1}, "training": {}}


@dataclass(frozen=True)
class Memory:
    """Resident memory over an epoch, in MB: after a tenth, its half and at its end, and the highest after a tenth."""

    tenth: float
    half: float
    end: float
    peak: float
    seconds: float

    @property
    def constant(self) -> bool:
        return self.peak <= (1 + GROWTH) * self.tenth


def make_patches(folder: Path, count: int) -> Path:
    """Makes a prepared set whose training part has `count` unlabelled patches more."""
    prepared = make_set(folder)
    sources = sorted((folder / "images").iterdir())
    names = [f"patch-{number:06}.png" for number in range(count)]
    for number, name in enumerate(names):
        os.link(sources[number % len(sources)], folder / "images" / name)
    listing = json.loads((folder / "parts.json").read_text())
    listing["parts"]["train"] = sorted([*listing["parts"]["train"], *names])
    listing["groups"] |= {name: f"patient-{number // 1000}" for number, name in enumerate(names)}
    (folder / "parts.json").write_text(json.dumps(listing))
    return prepared.root


def epoch(kind: str, root: Path, patches: int, place: Path) -> None:
    """Passes every patch once, in this process."""
    import torch

    from mpamatch.engine.build import build_feed, build_training, open_data
    from mpamatch.engine.loop import train
    from tests.tiny import silent

    be_ordinary()
    steps = patches // BATCH
    fields = {"data.unlabelled_batch": BATCH, "data.cache_mb": CACHE_MB, "engine.steps": steps, "engine.log_every": 100}
    fields |= {"engine.save_every": steps, "engine.validate_every": steps, "data.crop": 32, **KINDS[kind]}
    config = tiny_config(root, "fixmatch", fields)
    if kind == "training":
        train(config, place / "run", console=silent())
        return
    method = build_training(config, open_data(config))
    feed = build_feed(config, open_data(config), method, rank=0, ranks=1, device=torch.device("cpu"))
    (place / "begun").touch()
    for _ in feed.batches(0, steps):
        pass


def measure(kind: str, root: Path, patches: int, place: Path) -> Memory:
    """Runs an epoch in a process of its own and reads its memory. Raises RuntimeError if it fails."""
    place.mkdir()
    process = context().Process(target=epoch, args=(kind, root, patches, place))
    process.start()
    while process.is_alive() and not any(place.glob("begun")) and not any(place.glob("run/metrics.jsonl")):
        time.sleep(EVERY)
    began, seen = time.monotonic(), list[float]()
    while process.is_alive():
        seen += [sum(resident(one) for one in family(process.pid))]
        process.join(EVERY)
    if process.exitcode:
        raise RuntimeError(f"{kind}: its process ended with {process.exitcode}")
    seen = [one for one in seen if one] or [0.0]
    # The last values are those of a process that ends.
    after = seen[len(seen) // 10 : max(len(seen) - 3, 1)] or seen
    return Memory(after[0], after[len(after) // 2], after[-1], max(after), time.monotonic() - began)


def family(process: int | None) -> Iterator[int]:
    """Lists a process and the workers that it started."""
    yield from [] if process is None else [process]
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return
    for child in children:
        yield from family(int(child))


def resident(process: int) -> float:
    """Reads the resident memory of a process, in MB, as far as it is its own; 0 once it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0.0
    return sum(int(size) for size in re.findall(r"Rss(?:Anon|Shmem):\s+(\d+) kB", status)) / 1000


def main() -> int:
    """Measures what is asked for; returns 1 if memory grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, default=100_000)
    parser.add_argument("--only", default=",".join(KINDS))
    words = parser.parse_args()
    context()
    grew = 0
    with tempfile.TemporaryDirectory(prefix="scale-") as name:
        root = make_patches(Path(name) / "data", words.patches)
        for kind in words.only.split(","):
            found = measure(kind, root, words.patches, Path(name) / kind)
            grew += not found.constant
            print(f"{kind}, {words.patches:,} patches in {found.seconds:.0f} s: {found.tenth:.1f} MB after a tenth, "
                  f"{found.half:.1f} at the half, {found.end:.1f} at the end, at most {found.peak:.1f}: "
                  f"{'constant' if found.constant else 'GREW'}", flush=True)  # fmt: skip
    return int(grew > 0)


if __name__ == "__main__":
    raise SystemExit(main())
