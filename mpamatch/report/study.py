"""The figure of a study: scores of every seed, and paired differences to the reference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from mpamatch.report.figures import GREY, plt, save

SPREAD = 0.18  # between the methods that share a value, in steps of the axis
LEAST_SPAN = 1.0  # of a heat map's colours, in points of mDice: smaller differences look small
MARKS = "os^Dv"  # of measures that share a panel


@dataclass(frozen=True)
class Curve:
    """The scores of a method over the values of a study; values without a measurement are left out.

    Attributes:
        scores: value → seed → mDice in percent.
        differences: value → mean, low, high.
        miou: value → mean mIoU in percent.
        measures: what runs measured of their prototypes, −1 to 1, by name: value → mean over seeds.
    """

    name: str
    scores: dict[str, dict[int, float]]
    differences: dict[str, tuple[float, float, float]]
    miou: dict[str, float] = field(default_factory=dict)
    measures: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Grid:
    """The scores of a method over the values of a study of two fields, by (value, value across).

    Attributes:
        scores: seed → mDice in percent.
        differences: mean, low, high.
    """

    name: str
    scores: dict[tuple[str, str], dict[int, float]]
    differences: dict[tuple[str, str], tuple[float, float, float]]


def draw_study(
    path: Path, curves: Sequence[Curve], values: Sequence[str], *, title: str, axis: str, part: str, reference: str
) -> Path:
    """Draws a study: on the left each seed as a thin line and the mean in bold, on the right the paired differences.

    If runs measured their prototypes, a second row shows the mean mIoU and what they measured.

    Args:
        path: the PNG to write.
        curves: one per method.
        values: of the study, along the axis.
        title: above the panels.
        axis: what the values are.
        part: of the data that was scored, test or validation.
        reference: what the differences are to, in words.

    Returns:
        `path`.
    """
    measures = [name for curve in curves for name, found in curve.measures.items() if found]
    rows = 2 if measures else 1
    figure, axes = plt.subplots(rows, 2, figsize=(10, 3.8 * rows), squeeze=False, layout="constrained")
    left, right = axes[0]
    for number, curve in enumerate(curves):
        shift = SPREAD * (number - (len(curves) - 1) / 2)
        _scores(left, curve, values, shift, f"C{number}")
        _differences(right, curve, values, shift, f"C{number}")
        if measures:
            _means(axes[1][0], curve.miou, values, shift, color=f"C{number}", label=curve.name)
            _measures(axes[1][1], curve, values, shift, of_several=len(curves) > 1)
    left.set_ylabel(f"{part} mDice, %")
    left.set_title("thin: each seed, bold: the mean", fontsize=10)
    right.axhline(0, color=GREY, linewidth=1)
    right.set_ylabel("difference, points of mDice")
    right.set_title(f"paired differences, 95 % interval, to\n{reference}", fontsize=10)
    if measures:
        axes[1][0].set_ylabel(f"{part} mIoU, %")
        axes[1][1].set_ylabel("share or cosine")
        axes[1][1].set_title("prototypes at the last step, means over seeds", fontsize=10)
        axes[1][1].legend(fontsize=8, frameon=False)
    for one in axes.flat:
        one.set_xticks(range(len(values)), values, **_slanted(values))
        one.set_xlabel(axis)
        one.set_xlim(-0.5, len(values) - 0.5)
        one.spines[["top", "right"]].set_visible(False)
        one.grid(alpha=0.25, axis="y")
    if len(curves) > 1:
        left.legend(fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=11)
    return save(figure, path)


def draw_grid(
    path: Path,
    grids: Sequence[Grid],
    values: Sequence[str],
    across: Sequence[str],
    *,
    title: str,
    axes: tuple[str, str],
    part: str,
    reference: str,
) -> Path:
    """Draws a study of two fields as heat maps with their numbers: a row per method, means on the left, on the right
    the mean paired differences with half the width of their 95 % interval.

    Args:
        path: the PNG to write.
        grids: one per method.
        values: of the first field, along x.
        across: of the second field, along y.
        title: above the panels.
        axes: what the values of the first and of the second field are.
        part: of the data that was scored, test or validation.
        reference: what the differences are to, in words.

    Returns:
        `path`.
    """
    size = (2.4 + 2.6 * len(values), (1.5 + 0.62 * len(across)) * len(grids) + 0.6)
    figure, panels = plt.subplots(len(grids), 2, figsize=size, squeeze=False, layout="constrained")
    for grid, (left, right) in zip(grids, panels, strict=True):
        cells = [[(value, other) for value in values] for other in across]
        means = [[_mean(grid.scores.get(cell)) for cell in row] for row in cells]
        words = [[_spread(grid.scores.get(cell)) for cell in row] for row in cells]
        low, high = (np.nanmin(means), np.nanmax(means)) if np.isfinite(means).any() else (0.0, 0.0)
        room = max(0.0, LEAST_SPAN - (high - low)) / 2
        limits = (low - room, high + room)
        _heat(figure, left, means, words, colours="viridis", label=f"{part} mDice, %", limits=limits)
        changes = [[grid.differences.get(cell, (np.nan,) * 3)[0] for cell in row] for row in cells]
        words = [[_change(grid.differences.get(cell), grid.scores.get(cell)) for cell in row] for row in cells]
        most = max(np.nanmax(np.abs(changes)) if np.isfinite(changes).any() else 0.0, LEAST_SPAN / 2)
        _heat(figure, right, changes, words, colours="RdBu", label="points of mDice", limits=(-most, most))
        left.set_title(f"{grid.name}: mean ± sd over seeds", fontsize=10)
        right.set_title(f"paired differences ± half the 95 % interval, to\n{reference}", fontsize=9)
        for one in (left, right):
            one.set_xticks(range(len(values)), values)
            one.set_yticks(range(len(across)), across)
            one.set_xlabel(axes[0])
            one.set_ylabel(axes[1])
    figure.suptitle(title, fontsize=11)
    return save(figure, path)


def _heat(
    figure: Any,
    axis: Axes,
    numbers: Sequence[Sequence[float]],
    words: Sequence[Sequence[str]],
    *,
    colours: str,
    label: str,
    limits: tuple[float, float],
) -> None:
    """Draws a matrix in colour, with words in its cells that stand out from it."""
    drawn: Any = axis.imshow(
        np.array(numbers, dtype=float), cmap=colours, vmin=limits[0], vmax=limits[1], aspect="auto"
    )
    for i, row in enumerate(words):
        for j, word in enumerate(row):
            red, green, blue, _ = drawn.cmap(drawn.norm(numbers[i][j]))
            dark = np.isfinite(numbers[i][j]) and 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
            axis.text(j, i, word, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    axis.spines[:].set_visible(False)
    figure.colorbar(drawn, ax=axis, label=label, fraction=0.05)


def _mean(of_seeds: dict[int, float] | None) -> float:
    return float(np.mean(list(of_seeds.values()))) if of_seeds else np.nan


def _spread(of_seeds: dict[int, float] | None) -> str:
    if not of_seeds:
        return ""
    spread = f"\n± {np.std(list(of_seeds.values()), ddof=1):.2f}" if len(of_seeds) > 1 else ""
    return f"{_mean(of_seeds):.2f}{spread}"


def _change(difference: tuple[float, float, float] | None, of_seeds: dict[int, float] | None) -> str:
    if difference is None:
        return "–" if of_seeds else ""
    mean, low, high = difference
    return f"{mean:+.2f}\n± {(high - low) / 2:.2f}"


def _slanted(values: Sequence[str]) -> dict[str, Any]:
    """Turns the words under an axis if they would meet."""
    return {"rotation": 20, "ha": "right"} if sum(map(len, values)) > 45 else {}


def _scores(axis: Axes, curve: Curve, values: Sequence[str], shift: float, colour: str) -> None:
    for seed in sorted({seed for of_value in curve.scores.values() for seed in of_value}):
        there = [
            (i, curve.scores[value][seed]) for i, value in enumerate(values) if seed in curve.scores.get(value, {})
        ]
        axis.plot([i + shift for i, _ in there], [y for _, y in there], ".-", color=colour, alpha=0.3, linewidth=0.8)
    means = {value: sum(of.values()) / len(of) for value, of in curve.scores.items() if of}
    _means(axis, means, values, shift, color=colour, linewidth=2, label=curve.name)


def _means(axis: Axes, means: Mapping[str, float], values: Sequence[str], shift: float, **how: Any) -> None:
    there = [(i, means[value]) for i, value in enumerate(values) if value in means]
    axis.plot([i + shift for i, _ in there], [y for _, y in there], **{"marker": "o", **how})


def _measures(axis: Axes, curve: Curve, values: Sequence[str], shift: float, *, of_several: bool) -> None:
    for number, (name, found) in enumerate(curve.measures.items()):
        label = f"{curve.name}: {name}" if of_several else name
        _means(axis, found, values, shift, marker=MARKS[number % len(MARKS)], label=label)


def _differences(axis: Axes, curve: Curve, values: Sequence[str], shift: float, colour: str) -> None:
    for i, value in enumerate(values):
        if value in curve.differences:
            mean, low, high = curve.differences[value]
            axis.errorbar(i + shift, mean, [[mean - low], [high - mean]], fmt="o", color=colour, capsize=3)
