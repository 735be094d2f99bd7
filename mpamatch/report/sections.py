"""The figures and tables of the page, made from a run's summary; behind each figure stands its table."""

from typing import Any

from markupsafe import Markup

from mpamatch.report import charts
from mpamatch.report.charts import Axis
from mpamatch.report.curves import costs, training_curves
from mpamatch.report.parts import MEANS, Content, Figure, Number, Table, hundredfold, hundredfold_each, share
from mpamatch.report.prototype_content import prototype_content
from mpamatch.report.words import of_patients, percent, span

MEASURES = (
    ("dice", "Dice", "overlap of prediction and label: 100 is perfect, 0 is none"),
    ("iou", "IoU", "the same overlap, counted more strictly"),
    ("precision", "Precision", "of the pixels marked as the class, how many are"),
    ("recall", "Recall", "of the pixels of the class, how many were marked"),
)

OBJECTS = (
    ("f1", "F1: share of objects found, and found rightly"),
    ("dice", "object Dice: overlap object by object, large ones counting more"),
    ("hausdorff", "Hausdorff distance in pixels: how far outlines lie apart at their worst (small is good)"),
)

MOST_IMAGES = 300  # in the table of images


def of_run(summary: Content) -> Content:
    """Makes the figures and tables of a run by the names that the template knows."""
    return {
        "facts": _facts(summary),
        "weights": _weights(summary),
        "classes": _classes(summary),
        "measures": [(word, meaning) for _, word, meaning in MEASURES],
        "class_figure": _class_figure(summary),
        "means": _means(summary),
        "objects": _objects(summary),
        "told": _told(summary),
        "confusion": _confusion(summary),
        "images": _images(summary),
        "reliability": _reliability(summary),
        "thresholds": _thresholds(summary),
        "prototypes": prototype_content(summary),
        "curves": training_curves(summary),
        "cost": costs(summary),
        "key": list(summary["settings"]["key"].items()),
        "all": list(summary["settings"]["all"].items()),
    }


def _facts(summary: Content) -> list[tuple[str, str]]:
    data = summary["data"]
    parts, trained = data["parts"], data["trained_on"]
    facts = [("Method", f"{summary['method']}: {summary['about']}"), ("Data set", data["name"])]
    facts += [("Source", data["source"]), ("Terms of the data", data["licence"])]
    if trained is not None:
        facts.append((f"Trained on, with {data['learns_from']}", of_patients(trained["labelled"])))
        if trained["unlabelled"]["images"]:
            facts.append(("Trained on, unlabelled", of_patients(trained["unlabelled"])))
    facts.append(("Split", data["split"] or "every training image with a label counts as labelled"))
    facts.append(("Validation part", f"{of_patients(parts['validation'])}; it chose the checkpoint"))
    facts.append(("Test part", of_patients(parts["test"])))
    scored = {"images": summary["scores"]["images"], "groups": summary["scored_groups"]}
    facts.append(("Scored here", f"{of_patients(scored)} of the {summary['part']} part"))
    mpp = data["microns_per_pixel"]
    facts.append(("Size of a pixel", f"{mpp:g} µm" if mpp else "not known"))
    facts.append(("Model written on", summary["training"]["written"]))
    made = summary["versions"]
    facts.append(
        (
            "Report made on",
            f"{made['date']}, mpamatch {made['mpamatch']}, torch {made['torch']}, Python {made['python']}",
        )
    )
    return facts


def _weights(summary: Content) -> Table:
    rows = [[one["part"], one["name"], one["from"], one["terms"] or "not written down"] for one in summary["weights"]]
    if not rows[0][2] or "random weights" in rows[0][2]:
        rows[0][3] = "none: it starts from random numbers"
    return Table("Weights that training started from or looked through", ["part", "name", "from", "terms"], rows)


def _classes(summary: Content) -> Table:
    head = ["class"]
    for _, word, _ in MEASURES:
        head += [f"{word}, %", "95 % interval"]
    rows = []
    for name in summary["classes"]:
        row: list[Any] = [name]
        for key, _, _ in MEASURES:
            row += [share(summary["scores"][key][name]), span(summary["intervals"][key][name])]
        rows.append(row)
    return Table("Scores of each class, all pixels of all images together", head, rows)


def _class_figure(summary: Content) -> Figure:
    names = summary["classes"]
    dice, ends = summary["scores"]["dice"], summary["intervals"]["dice"]
    known = [100 * v for name in names for v in (dice[name], *(ends[name] or ())) if v is not None]
    low = max(0.0, 10 * (min(known, default=0) // 10))
    rows = [(name, hundredfold(dice[name]), hundredfold_each(ends[name])) for name in names]
    words = "; ".join(f"{name} {percent(dice[name])} ({span(ends[name])})" for name in names)
    return Figure(
        "dice",
        "Dice of each class",
        Markup(charts.interval_chart(rows, Axis("Dice, %", low, 100), alt=f"Dice in percent by class: {words}.")),
        "The dot is the score, the bar its 95 % interval: how much it moves when other patients of the same kind are "
        "drawn. A long bar means that few patients decide.",
        Table("Dice", ["class", "Dice, %", "95 % interval"], [[n, share(dice[n]), span(ends[n])] for n in names]),
    )


def _means(summary: Content) -> Table:
    scores, ends = summary["scores"], summary["intervals"]
    rows = [
        [
            words,
            share(scores[key]),
            span(ends[key]),
            share(scores["per_image"][key]),
            span(ends["per_image"][key]),
        ]
        for key, words in MEANS
    ]
    head = ["mean", "all pixels together, %", "95 % interval", "mean over images, %", "95 % interval"]
    return Table("Means over classes", head, rows)


def _objects(summary: Content) -> Table:
    found, ends = summary["scores"]["objects"], summary["intervals"]["objects"]
    rows = []
    for key, words in OBJECTS:
        value = found[key]
        if key == "hausdorff":
            ends_words = "no interval" if ends[key] is None else f"{ends[key][0]:.1f} to {ends[key][1]:.1f}"
            rows.append([words, Number(value, "–" if value is None else f"{value:.1f}"), ends_words])
        else:
            rows.append([f"{words}, %", share(value), span(ends[key])])
    return Table("Object scores, as in the GlaS challenge", ["score", "value", "95 % interval"], rows)


def _told(summary: Content) -> Table | None:
    told = summary["scores"].get("with_image_labels")
    if not told:
        return None
    rows = [[words, share(summary["scores"][key]), share(told[key])] for key, words in MEANS]
    head = ["mean", "from the image alone, %", "told which classes it shows, %"]
    return Table("With and without the image-level label", head, rows)


def _confusion(summary: Content) -> Content:
    """The confusion matrix as shares of each true class, with the shade of every cell."""
    names, matrix = summary["classes"], summary["confusion"]
    rows = []
    for name, line in zip(names, matrix, strict=True):
        total = sum(line)
        cells = [
            {"share": (n / total if total else None), "shade": round(0.35 * (n / total if total else 0), 3)}
            for n in line
        ]
        rows.append({"name": name, "cells": cells, "pixels": total})
    table = Table(
        "Pixels",
        ["true class", *names],
        [[n, *(f"{v:,}" for v in line)] for n, line in zip(names, matrix, strict=True)],
    )
    return {"names": names, "rows": rows, "table": table}


def _images(summary: Content) -> Table:
    order = sorted(summary["images"], key=lambda one: -(one["mdice"] or 0))
    rows = [
        [one["image"], one["group"], share(one["mdice"]), share(one["foreground_dice"])] for one in order[:MOST_IMAGES]
    ]
    more = f" (the first {MOST_IMAGES}; summary.json has all)" if len(order) > MOST_IMAGES else ""
    return Table(f"Every image, best first{more}", ["image", "patient", "mDice, %", "Dice without background, %"], rows)


def _reliability(summary: Content) -> Figure:
    found = summary["calibration"]
    bins = found["reliability"]
    total = sum(one["pixels"] for one in bins)
    rows = [(one["from"], one["to"], one["accuracy"], one["pixels"] / max(total, 1)) for one in bins]
    ece = percent(found["ece"])
    unlike = (
        "This method's outputs are shares of scores, which nobody trained to be probabilities. "
        if summary["data"]["learns_from"] != "masks"
        else ""
    )
    alt = f"How often the model is right by how sure it is. Expected calibration error: {ece} percent."
    cells = [
        [
            f"{one['from']:.2f} – {one['to']:.2f}",
            share(one["pixels"] / max(total, 1)),
            share(one["accuracy"]),
            share(one["confidence"]),
        ]
        for one in bins
        if one["pixels"]
    ]
    return Figure(
        "reliability",
        "Is it as sure as it is right?",
        Markup(charts.reliability_chart(rows, alt=alt)),
        f"{unlike}Where a bar ends below the dashed line the model is too sure of itself, above it too careful; pale "
        f"bars hold hardly any pixels. The mean distance to the line is the expected calibration error (ECE): {ece} % "
        f"(95 % interval {span(found['ece_interval'])}).",
        Table("Reliability", ["confidence", "share of pixels, %", "right, %", "mean confidence, %"], cells),
    )


def _thresholds(summary: Content) -> Figure:
    found = summary["calibration"]
    rows = [(one["threshold"], one["share"], one["accuracy"]) for one in found["thresholds"]]
    own = found["own_threshold"]
    cells = [
        [
            f"{one['threshold']:g}" + (" (this run's)" if one["threshold"] == own else ""),
            share(one["share"]),
            span(one["share_interval"]),
            share(one["accuracy"]),
            span(one["accuracy_interval"]),
        ]
        for one in found["thresholds"]
    ]
    rule = summary["threshold"]
    used = (
        f"This run took τ = {own:g}."
        if own is not None
        else f"This run let the rule “{rule}” move its threshold."
        if rule
        else "This run made no pseudo-labels."
    )
    choose = (
        "Choose τ by validation images, not by these: <code>mpamatch report RUN --part validation</code>."
        if summary["part"] == "test"
        else "A good τ keeps many pixels and has few of them wrong."
    )
    return Figure(
        "threshold",
        "How many pixels would count as pseudo-labels?",
        Markup(charts.threshold_chart(rows, own, alt="Share and accuracy of pixels by threshold; the table has them.")),
        Markup("Of the pixels at least as sure as τ: which share of all they are, and how many of them are right. ")
        + used
        + " "
        + Markup(choose),
        Table("Thresholds", ["τ", "share of pixels, %", "95 % interval", "right, %", "95 % interval"], cells),
        Markup(charts.legend(["share of all pixels", "right among them"])),
    )
