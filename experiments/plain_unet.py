"""What one would write without this package: smp.Unet on the same encoder and weights, a plain loop, the last weights.

    python -m experiments.plain_unet DATA OUT --recipe R --labelled 4,10% --seeds 0-4 --test

The same labelled images, scale, batch and number of steps as the recipe's runs; flips and brightness, cross-entropy and
Dice, AdamW with its usual rate. Results are added to OUT/results.jsonl, where
`experiments.compare_methods table` finds them.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.nn import functional

from mpamatch.benchmarks.command import run_main
from mpamatch.data.cache import ImageCache
from mpamatch.data.prepared import load_prepared
from mpamatch.data.splits import draw_splits
from mpamatch.engine.config import load_config
from mpamatch.engine.evaluation import evaluate
from mpamatch.inference.segmenter import Segmenter
from mpamatch.inference.settings import SegmenterSettings
from mpamatch.models.encoders import presets
from mpamatch.models.encoders.sources import published_state
from mpamatch.models.network import Prediction
from mpamatch.studies.sweep import read_results, score_line, write_results

ENCODER = "tf_efficientnet_lite0"
NAME = "smp.Unet, plain loop"
RATE = 1e-3


class Plain(nn.Module):
    """smp's network behind the form of prediction that is evaluated here."""

    def __init__(self, classes: int):
        super().__init__()
        self.unet: Any = smp.Unet(f"tu-{ENCODER}", encoder_weights=None, classes=classes)
        state, _ = published_state(presets()[ENCODER], "offline")
        own = self.unet.encoder.model.state_dict()
        self.unet.encoder.model.load_state_dict({name: state.get(name, value) for name, value in own.items()})

    def forward(self, image: Tensor) -> Prediction:
        height, width = image.shape[-2:]
        padded = functional.pad(image, (0, -width % 32, 0, -height % 32), mode="replicate")
        return Prediction(self.unet(padded)[..., :height, :width], image)


def train_plain(images: Tensor, labels: Tensor, classes: int, steps: int, batch: int, crop: int, seed: int) -> Plain:
    """Trains on images (N, 3, H, W) normalised, labels (N, H, W) with 255 ignored."""
    torch.manual_seed(seed)
    model = Plain(classes).train()
    dice = smp.losses.DiceLoss("multiclass", ignore_index=255)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    for _ in range(steps):
        chosen = torch.randint(len(images), (batch,))
        top, left = (int(torch.randint(side - crop + 1, ())) for side in images.shape[-2:])
        x, y = (part[chosen][..., top : top + crop, left : left + crop] for part in (images, labels))
        for axis in (-1, -2):
            if torch.rand(()) < 0.5:
                x, y = x.flip(axis), y.flip(axis)
        x = x + 0.2 * torch.randn(batch, 1, 1, 1)  # brightness
        logits = model(x).logits
        loss = functional.cross_entropy(logits, y.long(), ignore_index=255) + dice(logits, y.long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--labelled", default="4")
    parser.add_argument("--seeds", default="0-4")
    parser.add_argument("--test", action="store_true")
    arguments, flags = parser.parse_known_args(words)
    prepared, config = load_prepared(arguments.data), load_config(arguments.recipe, None, flags)
    low, _, high = arguments.seeds.partition("-")
    cache, preset = ImageCache(prepared, config.data.cache_mb), presets()[ENCODER]
    settings = SegmenterSettings(
        class_names=prepared.class_names,
        colours=prepared.colours,
        mean=preset.mean,
        std=preset.std,
        window=config.data.crop,
        scale=config.data.scale,
        microns_per_pixel=None,
        overlap=config.engine.overlap,
        precision="32",
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    drawn = draw_splits(prepared, arguments.labelled.split(","), range(int(low), int(high or low) + 1))
    for (labelled, seed), split in drawn.items():
        name = f"smp-plain-{labelled.rstrip('%')}{'pct' if '%' in labelled else ''}-seed{seed}"
        results = read_results(arguments.out)
        if any(result["name"] == name for result in results):
            continue
        pairs = [cache.labelled(image) for image in split.images]
        images = torch.stack([_scaled(image, settings) for image, _ in pairs])
        labels = torch.stack([_scaled_label(label, settings.scale) for _, label in pairs])
        began = time.perf_counter()
        steps = config.engine.steps
        shape = (len(prepared.classes), steps, config.data.batch, config.data.crop)
        model: Any = train_plain(images, labels, *shape, seed).eval()
        seconds = (time.perf_counter() - began) / steps
        segmenter = Segmenter(model, settings)
        result: dict[str, Any] = {"method": NAME, "labelled": labelled, "seed": seed, "split": split.name}
        result |= {"trial": "recipe", "name": name, "seconds": seconds, "prototypes": {}}
        result["validation_mdice"] = evaluate(segmenter, cache, "validation", objects=False)["mdice"]
        if arguments.test:
            result["test"] = evaluate(segmenter, cache, "test", objects=True)
        write_results(arguments.out, [*read_results(arguments.out), result])
        print(f"{name}: {score_line(result)}", flush=True)
    return 0


def _scaled(image: np.ndarray, settings: SegmenterSettings) -> Tensor:
    """(H, W, 3) u8 → (3, h, w) normalised."""
    x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
    x = functional.interpolate(x, scale_factor=settings.scale, mode="bilinear", antialias=True)[0]
    return (x - torch.tensor(settings.mean)[:, None, None]) / torch.tensor(settings.std)[:, None, None]


def _scaled_label(label: np.ndarray, scale: float) -> Tensor:
    """(H, W) u8 → (h, w) u8."""
    return functional.interpolate(torch.from_numpy(label.copy())[None, None], scale_factor=scale, mode="nearest")[0, 0]


if __name__ == "__main__":
    run_main(main)
