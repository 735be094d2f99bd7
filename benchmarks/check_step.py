"""A whole training step on tissue made on the spot, without data or weights from elsewhere: the step of gpu_check.

python -m mpamatch.benchmarks.check_step [--device cuda] [--tiny] [--out FILE]
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from mpamatch.benchmarks import bench_step
from mpamatch.benchmarks.command import run_main
from mpamatch.data.prepared import write_prepared
from mpamatch.data.sources.synthetic import raw_set
from mpamatch.data.splits import write_split

FIELDS = {
    "model.encoder": "small_conv",  # random weights: times do not depend on them
    "model.norm": "group",
    "method.name": "mpamatch",
    "method.start": 0,
    "method.ramp": 1,
    "method.threshold": 0.55,  # a random network is sure of nothing
}
FULL = {"data.crop": 256, "data.batch": 8, "data.unlabelled_batch": 8, "data.workers": 2}
TINY = {
    "data.crop": 32,
    "data.batch": 2,
    "data.unlabelled_batch": 2,
    "data.workers": 0,
    "model.decoder_width": 16,
    "model.decoder_channels": "[16, 8, 8, 8]",
    "method.prototypes": 2,
    "method.embedding_width": 8,
}


def main(words: list[str] | None = None) -> int:
    """Returns what bench_step does: 1 where the losses of two variants differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="images of 48 pixels, one step, one variant")
    parser.add_argument("--out", type=Path, help="JSON lines to add to")
    wanted = parser.parse_args(words)
    size, steps, variants, fields = (48, 1, "fused", TINY) if wanted.tiny else (288, 20, "eager,fused", FULL)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "tissue"
        split = write_split(write_prepared(root, raw_set(images=24, size=size)), "1", 0).stem
        given = ["--recipe", "demo", "--data", str(root), "--split", split, "--steps", str(steps)]
        given += ["--variants", variants, *(["--out", str(wanted.out)] if wanted.out else [])]
        for name, value in {**FIELDS, **fields, "engine.device": wanted.device}.items():
            given += [f"--{name}", str(value)]
        return bench_step.main(given)


if __name__ == "__main__":
    run_main(lambda: main(sys.argv[1:]))
