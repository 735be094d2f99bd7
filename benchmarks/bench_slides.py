"""Prediction of whole slides beside the model alone: CPU seconds, memory, and what is left after the last window.

    python -m mpamatch.benchmarks.bench_slides [--sizes 5120,20480,40960] [--slide FILE.tif] [--window 112] [--out FILE]

Each size is a slide that make_slide makes (or FILE, once), predicted with the small model of the ebhi-seg-gland recipe
and random weights in a process of its own, everywhere (--tissue all). `model` is the network alone, in the same threads
on as many windows of the same slide, in batches of the same size (measured on a tenth of them, right after). Random
weights speckle; so the labels are where the blurred stain is darker than around, of glands' size, unless
--noise.

ratio: CPU seconds of the process while it predicts, over those of the model alone on the same number of windows.
peak:  the most memory of the process, less what it had after its imports.
after: the share of the time after the last window was blended: mask, outlines, thumbnail.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from mpamatch.benchmarks.command import run_main
from mpamatch.benchmarks.make_slide import make_slide
from mpamatch.errors import InputError

MPP = 0.5


@dataclass
class SlideRow:
    """What one size took. Times of the wall are of a machine that others may use; CPU seconds are this process's."""

    size: int
    windows: int
    window: int
    cpu: float
    model_cpu: float
    ratio: float
    wall: float
    windows_per_second: float
    after: float
    peak_mb: float
    regions: int
    mask_mb: float
    threads: int
    load: float


def peak_bytes() -> int:
    """Returns the most memory that this process has had (Linux counts KB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(slide: Path, window: int, out: Path, noise: bool) -> SlideRow:
    """Predicts a slide in this process, which must be fresh: the peak is that of its whole life."""
    import torch
    from torch import Tensor, nn
    from torch.nn import functional

    from mpamatch.benchmarks.bench_predict import MODELS, random_network
    from mpamatch.inference.segmenter import Segmenter, SegmenterSettings, to_predict
    from mpamatch.inference.slides import SlideOptions, predict_slide
    from mpamatch.slides.reader import open_slide

    before = peak_bytes()

    class Regions(nn.Module):
        """The network, and unless `noise` logits that follow the blurred stain instead of its own."""

        def __init__(self, network: nn.Module, noise: bool) -> None:
            super().__init__()
            self.network, self.noise = network, noise

        def forward(self, windows: Tensor) -> SimpleNamespace:
            logits = self.network(windows).logits
            if not self.noise:
                green = functional.avg_pool2d(windows[:, 1:2], 16)
                stain = (
                    functional.interpolate(green.mean() - green - 0.15, size=windows.shape[2:], mode="bilinear") / 0.1
                )
                logits = 0 * logits + torch.cat([-stain, stain], dim=1)
            return SimpleNamespace(logits=logits)

    model = to_predict(Regions(random_network(MODELS["small"]), noise), torch.device("cpu"))
    settings = SegmenterSettings(
        ("background", "gland"), ((0, 0, 0), (0, 200, 83)), (0.7, 0.6, 0.7), (0.2, 0.2, 0.2), window, 1.0, MPP
    )
    segmenter = Segmenter(model, settings)
    with open_slide(slide) as opened:
        size = opened.size[0]
        some = [opened.at(MPP).read(97 * at % (size - window), 61 * at % (size - window), window, window)
                for at in range(8 * 16)]  # fmt: skip
    batches = [some[at : at + settings.batch] for at in range(0, len(some), settings.batch)]
    list(segmenter.window_probabilities(batches[:4]))  # the first batches choose kernels

    class Ends:
        """Notes when the last window was done."""

        windows, last = 0, 0.0

        def begin(self, name: str, windows: int) -> None: ...

        def advance(self, windows: int) -> None:
            self.windows, self.last = self.windows + windows, time.perf_counter()

    ends = Ends()
    began, cpu = time.perf_counter(), time.process_time()
    predict_slide(segmenter, slide, out, SlideOptions(tissue="all"), ends)
    cpu, stopped = time.process_time() - cpu, time.perf_counter()
    wall = stopped - began
    alone = model_alone(segmenter, batches, max(len(some), ends.windows // 10))
    return SlideRow(
        size, ends.windows, window, cpu, alone * ends.windows, cpu / (alone * ends.windows), wall,
        ends.windows / (ends.last - began), (stopped - ends.last) / wall, (peak_bytes() - before) / 1e6,
        count_regions(out), (out / "mask.ome.tif").stat().st_size / 1e6, torch.get_num_threads(), os.getloadavg()[0],
    )  # fmt: skip


def model_alone(segmenter: Any, batches: list[list[np.ndarray]], windows: int) -> float:
    """Measures the CPU seconds a window of the network alone, in the threads that prediction has."""
    turns = -(-windows // sum(map(len, batches)))
    cpu = time.process_time()
    count = sum(len(found) for found in segmenter.window_probabilities(one for _ in range(turns) for one in batches))
    return (time.process_time() - cpu) / count


def count_regions(out: Path) -> int:
    import gzip

    return gzip.decompress((out / "regions.geojson.gz").read_bytes()).count(b'"type": "Feature",')


def main() -> int:
    """Measures each size in a process of its own; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="5120,20480", help="sides of slides in pixels, with commas (5120,20480)")
    parser.add_argument("--slide", type=Path, help="a slide of 0.5 µm per pixel instead")
    parser.add_argument("--window", type=int, default=112, help="side of a window (112)")
    parser.add_argument("--noise", action="store_true", help="labels of the random weights, speckles everywhere")
    parser.add_argument("--out", type=Path, help="file of JSON lines")
    parser.add_argument("--measure", nargs=2, metavar=("SLIDE", "OUT"), help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.measure:
        row = measure(Path(words.measure[0]), words.window, Path(words.measure[1]), words.noise)
        print(json.dumps(asdict(row)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        for at, size in enumerate([0] if words.slide else [int(word) for word in words.sizes.split(",")]):
            slide = words.slide or Path(folder) / f"{size}.tif"
            if not words.slide:
                make_slide(slide, size, None, MPP, 0)
            command = [sys.executable, "-m", "mpamatch.benchmarks.bench_slides", "--window", str(words.window)]
            command += ["--noise"] if words.noise else []
            done = subprocess.run(
                [*command, "--measure", slide, Path(folder) / f"out{at}"], capture_output=True, text=True
            )
            if done.returncode:
                raise InputError(f"bench_slides: {slide} failed: {done.stderr.strip().splitlines()[-1]}")
            row = json.loads(done.stdout.splitlines()[-1])
            print(
                ", ".join(
                    f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                    for name, value in row.items()
                )
            )
            if words.out:
                with words.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    return 0


if __name__ == "__main__":
    run_main(main)
