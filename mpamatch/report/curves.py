"""Curves of training, its cost, and several runs side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mpamatch.report import charts
from mpamatch.report.charts import Axis, Series
from mpamatch.report.parts import (
    MEANS,
    Content,
    Figure,
    Number,
    Table,
    hundredfold,
    hundredfold_each,
    seconds_of,
    share,
)
from mpamatch.report.words import count, percent, points, span, unequal

TABLE_LINES = 40  # of a curve


@dataclass(frozen=True)
class Kind:
    """A kind of curves: its title, what it means, and how it is drawn."""

    title: str
    label: str
    about: str
    log: bool = False
    marks: bool = False
    unit: bool = False  # from 0 to 1


KINDS = {
    "losses": Kind(
        "Loss and its parts",
        "loss",
        "What training makes smaller: the loss, and its parts before they are weighted. A part may rise while the "
        "whole falls.",
        log=True,
    ),
    "validation": Kind(
        "Score while training",
        "score",
        "Mean Dice and IoU on the validation images after so many steps; the best mean Dice chose the model.",
        marks=True,
        unit=True,
    ),
    "shares": Kind(
        "Pseudo-labels that count",
        "share",
        "The share of unlabelled pixels that were sure enough to be learnt from. Near 0 the unlabelled images teach "
        "nothing; near 1 early in training, wrong ones count too.",
        unit=True,
    ),
    "prototypes": Kind(
        "Prototypes while training",
        "share, cosine",
        "In use: moved within the last 100 steps. The cosines say how alike prototypes of one class and of different "
        "classes are: 1 is the same, 0 is nothing in common.",
    ),
}
TOGETHER = {
    "validation": ("mdice", "Validation mean Dice of every run", "On the same images after so many steps."),
    "losses": (
        "loss",
        "Loss of every run",
        "Losses of different methods have different parts: compare their shape, not their height.",
    ),
}
DIFFERENCES = {
    "pooled": (
        "Difference of mean Dice, all pixels together",
        "Right of the line a run is better than the first one. If the bar crosses the line, these patients do not tell "
        "which is better.",
    ),
    "per_image": (
        "Difference of mean Dice, averaged over images",
        "The same, image by image: every image counts alike, large or small.",
    ),
}


def training_curves(summary: Content) -> list[Figure]:
    """Makes the figures of what a run logged while training."""
    curves = summary["curves"]
    return [_figure(key, kind, curves[key]) for key, kind in KINDS.items() if curves[key]]


def of_comparison(runs: Sequence[Content], comparison: Sequence[Content]) -> Content:
    """Makes the figures and tables of several runs side by side."""
    head = ["run", "method", "mean Dice, %", "95 % interval", "mean IoU, %", "object F1, %", "ECE, %", "s a step"]
    rows = [
        [
            one["name"],
            one["method"],
            share(one["scores"]["mdice"]),
            span(one["intervals"]["mdice"]),
            share(one["scores"]["miou"]),
            share(one["scores"]["objects"]["f1"]),
            share(one["calibration"]["ece"]),
            seconds_of(one["training"]["seconds_per_step"]),
        ]
        for one in runs
    ]
    return {
        "care": unequal(runs),
        "scores": Table("Scores of every run on the same images", head, rows),
        "differences": [_difference(way, comparison) for way in DIFFERENCES],
        "curves": list(_together(runs)),
    }


def costs(summary: Content) -> list[tuple[str, str]]:
    """Lists what training took: steps, time and memory."""
    training = summary["training"]
    facts = [("Steps", f"{training['steps']} of {training['planned_steps']}")]
    if training["best_step"] is not None:
        best = percent(training["best_validation_mdice"])
        facts.append(("Model kept from step", f"{training['best_step']}, with a validation mean Dice of {best} %"))
    return [*facts, ("Time", _time(training)), ("Memory", _memory(training["memory_mb"]))]


def _time(training: Content) -> str:
    seconds = training["seconds_per_step"]
    if seconds is None:
        return "not logged"
    hours = seconds * training["steps"] / 3600
    whole = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.0f} minutes"
    waited = seconds_of(training["data_seconds_per_step"])
    return f"{seconds_of(seconds)} s a step (median), of which {waited} s waiting for images; about {whole} in all"


def _memory(mebibytes: float | None) -> str:
    if mebibytes is None:
        return "not logged by this run"
    return f"{mebibytes / 1024:.1f} GiB at most, in the training process (those that decode images are not counted)"


def _figure(key: str, kind: Kind, curves: Mapping[str, Sequence[Sequence[float]]]) -> Figure:
    """Draws curves: name → steps and values."""
    series = [Series(_name(name), steps, values) for name, (steps, values) in curves.items()]
    names, steps = [one.name for one in series], sorted({step for one in series for step in one.x})
    low, high = (0.0, 1.0) if kind.unit else charts.range_of([v for one in series for v in one.y], log=kind.log)
    x, y = Axis("step", 0, max(steps)), Axis(kind.label, low, high, kind.log)
    by_step = [dict(zip(one.x, one.y, strict=True)) for one in series]
    shown = steps[:: -(-len(steps) // TABLE_LINES)]
    shown = shown if shown[-1] == steps[-1] else [*shown, steps[-1]]
    rows = [[f"{step:g}", *(f"{of[step]:.4g}" if step in of else "–" for of in by_step)] for step in shown]
    return Figure(
        key,
        kind.title,
        Markup(charts.line_chart(series, x, y, alt=_trend(kind.title, series), marks=kind.marks)),
        kind.about,
        Table(kind.title, ["step", *names], rows),
        Markup(charts.legend(names)),
    )


def _together(runs: Sequence[Content]) -> list[Figure]:
    """Draws one curve of each run in one figure, for each kind of which a run has one."""
    found = []
    for key, (name, title, about) in TOGETHER.items():
        curves = {one["name"]: one["curves"][key][name] for one in runs if name in one["curves"][key]}
        if curves:
            kind = KINDS[key]
            kind = Kind(title, kind.label, about, kind.log, kind.marks, kind.unit)
            found.append(_figure(f"together-{key}", kind, curves))
    return found


def _difference(way: str, comparison: Sequence[Content]) -> Figure:
    """Draws the differences of every other run to the first one."""
    title, about = DIFFERENCES[way]
    first = comparison[0]["minus"]
    rows = [
        (
            one["run"],
            hundredfold(one[way]["mdice"]["difference"]),
            hundredfold_each(one[way]["mdice"]["interval"]),
        )
        for one in comparison
    ]
    ends = [value for _, middle, ends in rows for value in (middle, *(ends or ())) if value is not None]
    cells = [
        [
            one["run"],
            words,
            Number(one[way][key]["difference"], points(one[way][key]["difference"])),
            span(one[way][key]["interval"], signed=True),
        ]
        for one in comparison
        for key, words in MEANS
    ]
    if way == "per_image":
        about += "".join(
            f" {one['run']} is better on {count(one['better_images'], 'image')} and worse on {one['worse_images']}."
            for one in comparison
        )
    words = "; ".join(f"{name} {value:+.2f}" for name, value, _ in rows if value is not None)
    axis = Axis("points of mean Dice, %", *charts.range_of([0.0, *ends]))
    return Figure(
        f"difference-{way.replace('_', '-')}",
        f"{title}, minus {first}",
        Markup(charts.interval_chart(rows, axis, alt=f"{title}, to {first}, in points: {words}.", zero=True)),
        about,
        Table(title, ["run", "mean", f"minus {first}, points", "95 % interval"], cells),
    )


def _trend(title: str, series: Sequence[Series]) -> str:
    words = "; ".join(f"{one.name} from {one.y[0]:.3g} to {one.y[-1]:.3g}" for one in series)
    return f"{title}, over {max(one.x[-1] for one in series):g} steps: {words}."


def _name(name: str) -> str:
    known = {"mdice": "mean Dice", "miou": "mean IoU"}
    return known.get(name, name.removeprefix("prototypes/").replace("_", " "))
