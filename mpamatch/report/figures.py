"""Figures of a run, drawn from what it wrote."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from mpamatch.files import read_objects, replacing
from mpamatch.images import overlay

matplotlib.rcParams["text.parse_math"] = False  # a class or file may be called a$b$

PROTOTYPES = {
    "prototypes/in_use": "share in use",
    "prototypes/cosine_within": "mean cosine, same class",
    "prototypes/cosine_between": "mean cosine, other classes",
}
GREY = "0.4"


def draw_training(run: Path, losses: Sequence[str], shares: Sequence[str]) -> list[Path]:
    """Draws the curves of a run: RUN/figures/training.png, and prototypes.png if it has image prototypes.

    Args:
        run: the run folder.
        losses: the parts of the loss that its method logs.
        shares: the fractions, 0 to 1, that its method logs.

    Returns:
        The paths of what was written; none for a run without a line of metrics.
    """
    lines = _read(run / "metrics.jsonl")
    if not lines:
        return []
    panels = [partial(_losses, names=("loss", *losses)), partial(_agreement, names=shares)]
    written = [_draw(run / "figures" / "training.png", panels, lines)]
    if any("prototypes/in_use" in line for line in lines):
        written.append(_draw(run / "figures" / "prototypes.png", [_prototypes], lines))
    return written


def draw_examples(
    path: Path,
    images: Sequence[np.ndarray],  # each (H, W, 3) u8
    columns: Mapping[str, Sequence[np.ndarray]],  # title → labels (H, W) u8, one per image
    colours: Sequence[tuple[int, int, int]],
    class_names: Sequence[str],
) -> Path:
    """Draws a row per image: the image, then the image under the labels of each column. Returns `path`."""
    titles = ["image", *columns]
    size = (2.5 * len(titles), 2.5 * len(images) + 0.5)
    figure, axes = plt.subplots(len(images), len(titles), figsize=size, squeeze=False, layout="constrained")
    for row, image in enumerate(images):
        pictures = [image, *(overlay(image, labels[row], colours) for labels in columns.values())]
        for axis, picture, title in zip(axes[row], pictures, titles, strict=True):
            axis.imshow(picture)
            axis.set_axis_off()
            if row == 0:
                axis.set_title(title, fontsize=10)
    patches = [plt.Rectangle((0, 0), 1, 1, color=np.array(colour) / 255) for colour in colours[1:]]
    figure.legend(patches, class_names[1:], loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    return save(figure, path)


def _draw(path: Path, panels: Sequence[Any], lines: list[dict[str, Any]]) -> Path:
    """Draws panels side by side over the steps. Returns `path`."""
    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 3.4), squeeze=False, layout="constrained")
    for axis, panel in zip(axes[0], panels, strict=True):
        panel(axis, lines)
        axis.set_xlabel("step")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    return save(figure, path)


def save(figure: Any, path: Path) -> Path:
    """Writes a figure as PNG, whole or not at all, and closes it. Returns `path`."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
    return path


def _losses(axis: Axes, lines: list[dict[str, Any]], names: Sequence[str]) -> None:
    for name in names:
        steps, values = _series(lines, name)
        if steps:
            axis.plot(steps, values, label=name.replace("_", " "), linewidth=2 if name == "loss" else 1.2)
    axis.set_title("loss and its parts, unweighted", fontsize=10)
    if axis.lines:
        axis.set_yscale("log")
        axis.legend(fontsize=8, frameon=False)


def _agreement(axis: Axes, lines: list[dict[str, Any]], names: Sequence[str]) -> None:
    scores = [
        {**line["validation"], "step": line["step"]} for line in lines if isinstance(line.get("validation"), dict)
    ]
    steps, scored = _series(scores, "mdice")
    if steps:
        axis.plot(steps, scored, marker="o", markersize=3, label="validation mDice")
    shares = {name: _series(lines, name) for name in names}
    for name, (steps, values) in shares.items():
        axis.plot(steps, values, label=f"share of {name.replace('_', ' ')} pixels", color=GREY, linewidth=1.2)
    axis.set_ylim(0, 1)
    axis.set_title("validation and pseudo-labels", fontsize=10)
    if axis.lines:
        axis.legend(fontsize=8, frameon=False, loc="lower right")


def _prototypes(axis: Axes, lines: list[dict[str, Any]]) -> None:
    for name, label in PROTOTYPES.items():
        axis.plot(*_series(lines, name), label=label)
    axis.set_ylim(-1.05, 1.05)
    axis.set_title("image prototypes", fontsize=10)
    axis.legend(fontsize=8, frameon=False)


def _series(lines: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    chosen = [line for line in lines if _is_number(line.get(name))]
    return [line["step"] for line in chosen], [line[name] for line in chosen]


def _read(path: Path) -> list[dict[str, Any]]:
    """Reads the lines of metrics.jsonl; one that a kill cut short is no reason to have no figure."""
    return [line for line in read_objects(path) if line is not None and _is_number(line.get("step"))]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and -1e30 < value < 1e30
