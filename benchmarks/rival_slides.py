"""One slide by mpamatch, tiatoolbox or monai: CPU seconds, most memory and the label, in whatever environment it runs.

    python benchmarks/rival_slides.py mpamatch|tiatoolbox|monai SLIDE.tif --weights W.pt --label L.npy [--against L.npy]

The slide is as make_slide makes it, 0.5 µm per pixel and a side of whole windows, so that without overlap all three
look at the same windows. The network is a small one of four convolutions; the first run makes its weights and keeps
them, so that all use the same. The requirements of tiatoolbox and mpamatch exclude each other: the rivals want an
environment of their own, `pip install tiatoolbox==2.1.3 monai openslide-bin`.

mpamatch writes mask, outlines and thumbnail, tiatoolbox the label as zarr, monai, which is given the slide as one
tensor, nothing: it is what all three do that is measured, and more of mpamatch. One line of JSON.

cpu:  seconds of this process, from the opened slide to the written label; imports and the network's making left out.
peak: the most memory of the process, less what it had before that.
same: the share of pixels that have the label of --against.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

MPP, BATCH, CLASSES = 0.5, 8, 3
NAMES, COLOURS = ("background", "a", "b"), ((0, 0, 0), (0, 200, 83), (0, 128, 255))

Call = Callable[[], np.ndarray]  # predicts; what it needs is imported and made already


class Small(nn.Module):
    """Four convolutions at a quarter of the pixels; RGB in 0 to 1 becomes logits of each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.last = nn.Conv2d(64, CLASSES, 3, padding=1)
        self.mean, self.deviation = nn.Buffer(torch.zeros(CLASSES, 1, 1)), nn.Buffer(torch.ones(CLASSES, 1, 1))

    def forward(self, images: Tensor) -> Tensor:  # (B, 3, H, W) -> (B, C, H, W)
        logits = nn.functional.avg_pool2d(self.last(self.layers(images)), 9, 1, 4)
        logits = (logits - self.mean) / self.deviation
        return nn.functional.interpolate(logits, scale_factor=4, mode="bilinear")


class WithLogits(nn.Module):
    """The network as mpamatch calls it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.network(images))


def network(weights: Path, region: np.ndarray) -> Small:
    """Loads the weights, or makes them: random, each class's logits of mean 0 and deviation 1 in a region (H, W, 3)."""
    torch.manual_seed(0)
    model = Small().eval()
    if not weights.exists():
        with torch.inference_mode():
            deviation, mean = torch.std_mean(model(tensor(region[None])), dim=(0, 2, 3))
            model.mean.copy_(mean[:, None, None])
            model.deviation.copy_(deviation[:, None, None])
        torch.save(model.state_dict(), weights)
    model.load_state_dict(torch.load(weights))
    return model


def tensor(images: np.ndarray) -> Tensor:  # (B, H, W, 3) uint8 -> (B, 3, H, W) in 0 to 1
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().float() / 255


def by_mpamatch(slide: Path, model: Small, window: int, overlap: float, out: Path) -> Call:
    from mpamatch.inference.segmenter import Segmenter, to_predict
    from mpamatch.inference.settings import SegmenterSettings
    from mpamatch.inference.slides import SlideOptions, predict_slide

    settings = SegmenterSettings(
        NAMES, COLOURS, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), window, 1.0, MPP, overlap=overlap, batch=BATCH
    )
    segmenter = Segmenter(to_predict(WithLogits(model), torch.device("cpu")), settings)
    return lambda: predict_slide(segmenter, slide, out / "slide", SlideOptions(tissue="all")).label.array()


def by_tiatoolbox(slide: Path, model: Small, window: int, overlap: float, out: Path) -> Call:
    import zarr
    from tiatoolbox.models.engine.io_config import IOSegmentorConfig
    from tiatoolbox.models.engine.semantic_segmentor import SemanticSegmentor
    from tiatoolbox.models.models_abc import ModelABC

    class Model(ModelABC):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.class_dict = model, dict(enumerate(NAMES))

        def forward(self, images: Tensor) -> Tensor:
            return self.network(images)

        @staticmethod
        def infer_batch(network: nn.Module, batch: Any, *, device: str) -> np.ndarray:
            with torch.inference_mode():
                found = network(tensor(np.array(batch)).to(device)).softmax(dim=1)
            return found.permute(0, 2, 3, 1).cpu().numpy()

        @staticmethod
        def postproc(image: np.ndarray) -> np.ndarray:
            return image.argmax(axis=-1)

    at = [{"units": "mpp", "resolution": MPP}]
    shape, stride = (window, window), (round(window * (1 - overlap)),) * 2
    config = IOSegmentorConfig(
        input_resolutions=at, output_resolutions=at, patch_input_shape=shape, patch_output_shape=shape,
        stride_shape=stride, save_resolution=at[0],
    )  # fmt: skip
    segmentor = SemanticSegmentor(model=Model(), batch_size=BATCH, num_workers=0, device="cpu")

    def call() -> np.ndarray:
        found = segmentor.run(
            images=[slide], patch_mode=False, ioconfig=config, save_dir=out / "tiatoolbox", output_type="zarr",
            auto_get_mask=False, device="cpu",
        )  # fmt: skip
        (path,) = found.values() if isinstance(found, dict) else found
        return np.asarray(zarr.open(str(path), mode="r")["predictions"]).squeeze().astype(np.uint8)

    return call


def by_monai(slide: Path, model: Small, window: int, overlap: float, out: Path) -> Call:
    import openslide
    from monai.inferers.utils import sliding_window_inference

    def call() -> np.ndarray:
        with openslide.OpenSlide(slide) as opened, torch.inference_mode():
            image = tensor(np.array(opened.read_region((0, 0), 0, opened.dimensions).convert("RGB"))[None])
            found = sliding_window_inference(image, (window, window), BATCH, model, overlap=overlap, mode="gaussian")
            return found[0].argmax(dim=0).to(torch.uint8).numpy()

    return call


WAYS = {"mpamatch": by_mpamatch, "tiatoolbox": by_tiatoolbox, "monai": by_monai}


def main() -> None:
    """Predicts the slide in the way that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", choices=list(WAYS))
    parser.add_argument("slide", type=Path)
    parser.add_argument("--weights", type=Path, required=True, help="file of the network, made if it is not there")
    parser.add_argument("--label", type=Path, required=True, help="file for the label")
    parser.add_argument("--against", type=Path, help="label to compare with")
    parser.add_argument("--window", type=int, default=512, help="side of a window (512)")
    parser.add_argument("--overlap", type=float, default=0.0, help="share that neighbouring windows have in common (0)")
    words = parser.parse_args()
    import openslide

    with openslide.OpenSlide(words.slide) as opened:
        middle = opened.dimensions[0] // 2 - 512, opened.dimensions[1] // 2 - 512
        model = network(words.weights, np.array(opened.read_region(middle, 0, (1024, 1024)).convert("RGB")))
    with tempfile.TemporaryDirectory() as folder:
        call = WAYS[words.way](words.slide, model, words.window, words.overlap, Path(folder))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        wall, cpu = time.perf_counter(), time.process_time()
        label = call()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    np.save(words.label, label)
    row = {"way": words.way, "shape": label.shape, "cpu": cpu, "wall": wall, "peak_mb": peak * 1024 / 1e6}
    row["shares"] = [float((label == index).mean()) for index in range(CLASSES)]
    if words.against:
        row["same"] = float((label == np.load(words.against)).mean())
    print(json.dumps(row))


if __name__ == "__main__":
    main()
