"""Prediction of whole slides beside the model alone: CPU seconds, memory, and what is left after the last window.

    python -m mpamatch.benchmarks.bench_slides [--sizes 5120,20480,40960] [--slide FILE.tif] [--times 1,2,4]
        [--window 112] [--no-network] [--noise] [--out FILE]

Each size is a slide that make_slide makes (or FILE, once), predicted with the small model of the ebhi-seg-gland recipe
and random weights in a process of its own, everywhere (--tissue all). `model` is the network alone, in the same threads
on as many windows of the same slide, in batches of the same size (measured on a tenth of them, right after). Random
weights speckle; so the labels are where the blurred stain is darker than around, of glands' size, unless
--noise. --no-network leaves the network out: what is left is reading, blending, outlines and writing. --times makes the
slide as many times as high, itself below itself.

ratio: CPU seconds of the process while it predicts, over those of the model alone on the same number of windows.
peak:  the most memory of the process, less what it had after its imports.
after: the share of the time after the last window was blended: mask, outlines, thumbnail.
"""

import argparse
import json
import os
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
from mpamatch.benchmarks.make_slide import TILE, make_slide
from mpamatch.errors import InputError

MPP = 0.5


@dataclass
class SlideRow:
    """What one size took. Times of the wall are of a machine that others may use; CPU seconds are this process's."""

    size: int
    height: int
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
    """Returns the most memory that this process has had; getrusage would begin with that of its parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def measure(slide: Path, window: int, out: Path, *, noise: bool, runs_network: bool) -> SlideRow:
    """Predicts a slide in this process, which must be fresh: the peak is that of its whole life."""
    import torch
    from torch import Tensor, nn
    from torch.nn import functional

    from mpamatch.benchmarks.bench_predict import MODELS, random_network
    from mpamatch.inference.segmenter import Segmenter, to_predict
    from mpamatch.inference.settings import SegmenterSettings
    from mpamatch.inference.slides import SlideOptions, predict_slide
    from mpamatch.slides.reader import open_slide

    before = peak_bytes()

    class Regions(nn.Module):
        """The network, and unless `noise` logits that follow the blurred stain instead of its own."""

        def __init__(self, network: nn.Module, noise: bool) -> None:
            super().__init__()
            self.network, self.noise = network, noise

        def forward(self, windows: Tensor) -> SimpleNamespace:
            logits = self.network(windows).logits if runs_network else windows.new_zeros(())
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
        size, height = opened.size
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
        size, height, ends.windows, window, cpu, alone * ends.windows, cpu / (alone * ends.windows), wall,
        ends.windows / (ends.last - began), (stopped - ends.last) / wall, (peak_bytes() - before) / 1e6,
        count_regions(out), (out / "mask.ome.tif").stat().st_size / 1e6, torch.get_num_threads(), os.getloadavg()[0],
    )  # fmt: skip


def model_alone(segmenter: Any, batches: list[list[np.ndarray]], windows: int) -> float:
    """Measures the CPU seconds a window of the network alone, in the threads that prediction has."""
    turns = -(-windows // sum(map(len, batches)))
    cpu = time.process_time()
    count = sum(len(found) for found in segmenter.window_probabilities(one for _ in range(turns) for one in batches))
    return (time.process_time() - cpu) / count


def repeat_down(slide: Path, times: int, out: Path) -> None:
    """Writes a slide that shows another one `times` times, below itself, with its smaller levels."""
    import openslide
    import tifffile

    with openslide.OpenSlide(slide) as opened, tifffile.TiffWriter(out, bigtiff=True) as tiff:
        for level, (width, height) in enumerate(opened.level_dimensions):
            pixels = np.asarray(opened.read_region((0, 0), level, (width, height)).convert("RGB"))
            height -= height % TILE  # whole rows of tiles, which can stand below each other
            if not height:
                break
            tiles = (
                pixels[top : min(top + TILE, height), left : left + TILE]
                for _ in range(times) for top in range(0, height, TILE) for left in range(0, width, TILE)
            )  # fmt: skip
            resolution = 1e4 / (MPP * opened.level_downsamples[level])
            tiff.write(
                tiles, shape=(height * times, width, 3), dtype=np.uint8, tile=(TILE, TILE), photometric="rgb",
                compression="jpeg", subfiletype=1 if level else 0, resolution=(resolution, resolution),
                resolutionunit="CENTIMETER", metadata=None,
            )  # fmt: skip


def count_regions(out: Path) -> int:
    import gzip

    return gzip.decompress((out / "regions.geojson.gz").read_bytes()).count(b'"type": "Feature",')


def main() -> int:
    """Measures each size in a process of its own; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="5120,20480", help="sides of slides in pixels, with commas (5120,20480)")
    parser.add_argument("--slide", type=Path, help="a slide of 0.5 µm per pixel instead")
    parser.add_argument("--window", type=int, default=112, help="side of a window (112)")
    parser.add_argument("--times", default="1", help="how many times as high, with commas (1)")
    parser.add_argument("--no-network", action="store_true", help="labels of the blurred stain, without the network")
    parser.add_argument("--noise", action="store_true", help="labels of the random weights, speckles everywhere")
    parser.add_argument("--out", type=Path, help="file of JSON lines")
    parser.add_argument("--measure", nargs=2, metavar=("SLIDE", "OUT"), help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.measure:
        slide, out = map(Path, words.measure)
        row = measure(slide, words.window, out, noise=words.noise, runs_network=not words.no_network)
        print(json.dumps(asdict(row)))
        return 0
    if words.noise and words.no_network:
        raise InputError("--noise and --no-network: without the network there is no noise; leave one out.")
    with tempfile.TemporaryDirectory() as folder:
        sizes = [0] if words.slide else [int(word) for word in words.sizes.split(",")]
        for at, (size, times) in enumerate((size, int(word)) for size in sizes for word in words.times.split(",")):
            slide = words.slide or Path(folder) / f"{size}.tif"
            if not slide.exists() and not words.slide:
                make_slide(slide, size, None, MPP, 0)
            if times > 1:
                repeat_down(slide, times, Path(folder) / f"{at}.tif")
                slide = Path(folder) / f"{at}.tif"
            command = [sys.executable, "-m", "mpamatch.benchmarks.bench_slides", "--window", str(words.window)]
            command += [word for word in ("--noise", "--no-network") if word in sys.argv]
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
