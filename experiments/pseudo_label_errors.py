"""How right are a run's pseudo-labels? Its predictions for unlabelled training images whose masks it was not shown.

    python -m experiments.pseudo_label_errors RUN [RUN …] [--threshold .95] [--images 60]

One line per run, in percent of pixels: right (all pixels), confident (softmax at least the threshold), wrong among the
confident ones, the same far from any boundary (more than 8 pixels), and, for each class, how much of it is confidently
called something else. The best checkpoint predicts, by the network that validation chose it with.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from mpamatch import ops
from mpamatch.benchmarks.command import run_main
from mpamatch.data.cache import ImageCache
from mpamatch.data.prepared import load_prepared, training_lists
from mpamatch.engine.config import load_saved
from mpamatch.inference.checkpoint import load_segmenter

NEAR = 8.0  # pixels from a boundary


class Errors:
    """Counts pixels over images."""

    def __init__(self, classes: int, threshold: float):
        self.threshold = threshold
        self.pixels = self.right = self.sure = self.sure_wrong = self.far = self.far_sure_wrong = 0
        self.of_class, self.lost = np.zeros(classes, np.int64), np.zeros(classes, np.int64)

    def add(self, probability: torch.Tensor, label: np.ndarray) -> None:  # (C, H, W), (H, W) u8
        """Counts the pixels of an image; 255 is left out."""
        truth = torch.from_numpy(label.copy())
        confidence, predicted = probability.max(0)
        known, right = truth != ops.IGNORE, predicted == truth
        sure_wrong = known & ~right & (confidence >= self.threshold)
        far = known & (ops.signed_distance(truth[None], len(probability))[0].abs().min(0).values > NEAR)
        self.pixels += int(known.sum())
        self.right += int((known & right).sum())
        self.sure += int((known & (confidence >= self.threshold)).sum())
        self.sure_wrong += int(sure_wrong.sum())
        self.far += int(far.sum())
        self.far_sure_wrong += int((far & sure_wrong).sum())
        for index in range(len(self.of_class)):
            self.of_class[index] += int((truth == index).sum())
            self.lost[index] += int((sure_wrong & (truth == index)).sum())

    def cells(self) -> list[str]:
        """Formats the shares in percent."""
        shares: list[tuple[int, int]] = [
            (self.right, self.pixels),
            (self.sure, self.pixels),
            (self.sure_wrong, self.sure),
            (self.far_sure_wrong, self.far),
            *((int(lost), int(of_class)) for lost, of_class in zip(self.lost, self.of_class, strict=True)),
        ]
        return [f"{100 * part / max(whole, 1):.1f}" for part, whole in shares]


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--threshold", type=float, default=0.95)
    parser.add_argument("--images", type=int, default=60, help="unlabelled images, evenly taken")
    asked = parser.parse_args(words)
    for index, run in enumerate(asked.runs):
        config = load_saved(run / "config.yaml")
        prepared = load_prepared(Path(config.data.root))
        labelled, _ = training_lists(prepared, config.data.split)
        hidden = [name for name in prepared.labelled("train") if name not in set(labelled)]
        names = hidden[:: max(1, len(hidden) // asked.images)][: asked.images]
        cache, segmenter = ImageCache(prepared, 0), load_segmenter(run, "cpu")
        errors = Errors(len(prepared.classes), asked.threshold)
        for name in names:
            image, label = cache.labelled(name)
            errors.add(segmenter.probabilities(image), label)
        if index == 0:
            lost = [f"{name} lost" for name in prepared.class_names]
            head = ["run", "right", "confident", "wrong of confident", "confidently wrong, far", *lost]
            print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
        print("| " + " | ".join([run.name, *errors.cells()]) + " |", flush=True)
    return 0


if __name__ == "__main__":
    run_main(main)
