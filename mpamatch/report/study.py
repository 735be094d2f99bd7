"""The figure of a study: scores of every seed, and paired differences to the reference."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes

from mpamatch.report.figures import GREY, plt, save

SPREAD = 0.18  # between the methods that share a value, in steps of the axis


@dataclass(frozen=True)
class Curve:
    """The scores of a method over the values of a study; values without a measurement are left out."""

    name: str
    scores: dict[str, dict[int, float]]  # value → seed → mDice in percent
    differences: dict[str, tuple[float, float, float]]  # value → mean, low, high


def draw_study(
    path: Path, curves: Sequence[Curve], values: Sequence[str], *, title: str, axis: str, part: str, reference: str
) -> Path:
    """Draws a study: on the left each seed as a thin line and the mean in bold, on the right the paired differences.

    Args:
        path: the PNG to write.
        curves: one per method.
        values: of the study, along the axis.
        title: above both panels.
        axis: what the values are.
        part: of the data that was scored, test or validation.
        reference: what the differences are to, in words.

    Returns:
        `path`.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for number, curve in enumerate(curves):
        shift = SPREAD * (number - (len(curves) - 1) / 2)
        _scores(left, curve, values, shift, f"C{number}")
        _differences(right, curve, values, shift, f"C{number}")
    left.set_ylabel(f"{part} mDice, %")
    left.set_title("thin: each seed, bold: the mean", fontsize=10)
    right.axhline(0, color=GREY, linewidth=1)
    right.set_ylabel("difference, points of mDice")
    right.set_title(f"paired differences, 95 % interval, to\n{reference}", fontsize=10)
    for one in (left, right):
        one.set_xticks(range(len(values)), values)
        one.set_xlabel(axis)
        one.set_xlim(-0.5, len(values) - 0.5)
        one.spines[["top", "right"]].set_visible(False)
        one.grid(alpha=0.25, axis="y")
    if len(curves) > 1:
        left.legend(fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=11)
    return save(figure, path)


def _scores(axis: Axes, curve: Curve, values: Sequence[str], shift: float, colour: str) -> None:
    for seed in sorted({seed for of_value in curve.scores.values() for seed in of_value}):
        there = [
            (i, curve.scores[value][seed]) for i, value in enumerate(values) if seed in curve.scores.get(value, {})
        ]
        axis.plot([i + shift for i, _ in there], [y for _, y in there], ".-", color=colour, alpha=0.3, linewidth=0.8)
    means = [(i, sum(of.values()) / len(of)) for i, value in enumerate(values) if (of := curve.scores.get(value))]
    axis.plot([i + shift for i, _ in means], [y for _, y in means], "o-", color=colour, linewidth=2, label=curve.name)


def _differences(axis: Axes, curve: Curve, values: Sequence[str], shift: float, colour: str) -> None:
    for i, value in enumerate(values):
        if value in curve.differences:
            mean, low, high = curve.differences[value]
            axis.errorbar(i + shift, mean, [[mean - low], [high - mean]], fmt="o", color=colour, capsize=3)
