"""Pictures of prototypes: which one each pixel is nearest to, and how near every pixel is to each of them."""

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from mpamatch.images import Colour, overlay
from mpamatch.report.figures import plt, save

GOLDEN = 0.618034  # of a circle of hues: neighbours in number are far apart in hue
PER_ROW = 10  # maps side by side
NO_PROTOTYPE: Colour = (225, 225, 225)


@dataclass(frozen=True)
class Assigned:
    """A row of the picture of assignments.

    Attributes:
        name: stands at its left.
        image: (H, W, 3) u8.
        labels: title → label (H, W) u8, shown over the image; the last is the predicted one, whose classes' prototypes
            `nearest` counts.
        nearest: (H, W), k of the nearest prototype of the predicted class; −1: the class has none.
        per_class: K.
    """

    name: str
    image: np.ndarray
    labels: Mapping[str, np.ndarray]
    nearest: np.ndarray
    per_class: int


def draw_assignments(
    path: Path,
    rows: Sequence[Assigned],
    colours: Sequence[Colour],
    class_names: Sequence[str],
    *,
    title: str,
) -> Path:
    """Draws a row per image or run: image, labels, the nearest prototype of the predicted class in a colour of its own,
    and the share of the class's pixels that each prototype has.

    Returns `path`.
    """
    titles = ["image", *rows[0].labels, "nearest prototype of the class", "share of the class's pixels"]
    size = (2.5 * len(titles), 2.5 * len(rows) + 0.9)
    figure, axes = plt.subplots(len(rows), len(titles), figsize=size, squeeze=False, layout="constrained")
    for number, row in enumerate(rows):
        label = list(row.labels.values())[-1]
        painted = paint_assignments(label, row.nearest, row.per_class, len(class_names))
        pictures = [row.image, *(overlay(row.image, one, colours) for one in row.labels.values()), painted]
        for axis, picture in zip(axes[number], pictures, strict=False):
            axis.imshow(picture)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
        axes[number][0].set_ylabel(row.name, fontsize=10)
        _bars(axes[number][-1], row, label, class_names)
    for axis, word in zip(axes[0], titles, strict=True):
        axis.set_title(word, fontsize=9)
    patches = [plt.Rectangle((0, 0), 1, 1, color=np.array(colour) / 255) for colour in colours[1 : len(class_names)]]
    figure.legend(patches, class_names[1:], loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11)
    return save(figure, path)


def draw_maps(
    path: Path,
    image: np.ndarray,  # (H, W, 3) u8
    cosine: np.ndarray,  # (F, K, H, W), of the last F classes
    class_names: Sequence[str],
    *,
    title: str,
) -> Path:
    """Draws the map of every prototype: rows of up to ten for each class, all in the same colours. Returns `path`."""
    classes, per_class = cosine.shape[:2]
    columns, rows_each = min(per_class, PER_ROW), -(-per_class // PER_ROW)
    size = (1.25 * (columns + 1) + 1.0, 1.3 * classes * rows_each + 0.9)
    figure, axes = plt.subplots(classes * rows_each, columns + 1, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set_axis_off()
    shades: dict[str, Any] = {"cmap": "magma", "vmin": float(cosine.min()), "vmax": float(cosine.max())}
    drawn: Any = None
    for number, name in enumerate(class_names[-classes:]):
        first = axes[number * rows_each][0]
        first.imshow(image)
        first.set_title(name, fontsize=9)
        for k in range(per_class):
            axis = axes[number * rows_each + k // PER_ROW][1 + k % PER_ROW]
            drawn = axis.imshow(cosine[number, k], **shades)
            axis.set_title(str(k + 1), fontsize=8)
    figure.colorbar(drawn, ax=axes, label="cosine with the prototype", fraction=0.02)
    figure.suptitle(title, fontsize=11)
    return save(figure, path)


def paint_assignments(
    label: np.ndarray,  # (H, W) u8, class index
    nearest: np.ndarray,  # (H, W), k; −1: none
    per_class: int,
    classes: int,
) -> np.ndarray:  # (H, W, 3) u8
    """Paints each pixel in the colour of its prototype; pixels of a class without prototypes are pale grey."""
    table = np.array([[colour_of(c, k, per_class) for k in range(per_class)] for c in range(classes)], dtype=np.uint8)
    painted = table[np.minimum(label, classes - 1), np.maximum(nearest, 0)]
    return np.where((nearest < 0)[..., None], np.array(NO_PROTOTYPE, dtype=np.uint8), painted)


def colour_of(class_index: int, k: int, per_class: int) -> Colour:
    """Chooses the colour of a prototype: hues far apart within a class, pale for the background, vivid for others."""
    hue = (k * GOLDEN + class_index / (2 * per_class)) % 1.0
    saturation, value = (0.3, 0.97) if class_index == 0 else (0.9, 0.85 if class_index % 2 else 0.6)
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _bars(axis: Axes, row: Assigned, label: np.ndarray, class_names: Sequence[str]) -> None:
    """Draws a group of bars per class: the share of its pixels that each prototype has."""
    names, places, at = list[str](), list[float](), 0.0
    for c, name in enumerate(class_names):
        mine = row.nearest[(label == c) & (row.nearest >= 0)]
        if not len(mine):
            continue
        shares = np.bincount(mine, minlength=row.per_class) / len(mine)
        colours = [np.array(colour_of(c, k, row.per_class)) / 255 for k in range(row.per_class)]
        axis.bar(at + np.arange(row.per_class), shares, width=1.0, color=colours, edgecolor="0.3", linewidth=0.3)
        names.append(f"{name}\n{np.count_nonzero(shares)} of {row.per_class}")
        places.append(at + (row.per_class - 1) / 2)
        at += row.per_class + max(1.0, row.per_class / 5)
    slanted: dict[str, Any] = {"rotation": 30, "ha": "right"} if len(names) > 2 else {}
    axis.set_xticks(places, names, fontsize=7, **slanted)
    axis.set_ylim(0, 1)
    axis.set_yticks([0, 0.5, 1])
    axis.tick_params(axis="y", labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)
