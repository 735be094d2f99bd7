"""`mpamatch evaluate RUN`: scores a run on one part of its data."""

import argparse
from pathlib import Path
from typing import Any

from rich.table import Table

from mpamatch import ranks
from mpamatch.console import new_console, say
from mpamatch.engine.evaluation import evaluate_run, remarks_on_part


def run(arguments: argparse.Namespace) -> int:
    """Evaluates `arguments.run`, prints the scores and writes RUN/evaluation-PART.json; returns 0."""
    data = Path(arguments.data) if arguments.data else None
    console = new_console(quiet=ranks.rank() > 0)

    def show(scores: dict[str, Any]) -> None:
        console.print(table(scores))
        for line in summary(scores):
            say(console, line)

    part = evaluate_run(Path(arguments.run), data, arguments.part, arguments.device, show)["part"]
    for remark in remarks_on_part(part, arguments.part):
        say(console, f"note: {remark}")
    say(console, f"wrote {Path(arguments.run) / f'evaluation-{part}.json'}")
    return 0


def table(scores: dict[str, Any]) -> Table:
    """Builds the table of Dice and IoU per class, in percent, pooled over the part."""
    result = Table(title=f"{scores['part']}: {scores['images']} images, pooled")
    for name, side in (("class", "left"), ("Dice", "right"), ("IoU", "right")):
        result.add_column(name, justify=side)  # type: ignore[arg-type]
    for name in scores["dice"]:
        result.add_row(name, percent(scores["dice"][name]), percent(scores["iou"][name]))
    result.add_section()
    result.add_row("mean", percent(scores["mdice"]), percent(scores["miou"]))
    result.add_row("foreground mean", percent(scores["foreground_dice"]), percent(scores["foreground_iou"]))
    return result


def summary(scores: dict[str, Any]) -> list[str]:
    """Formats a line each: the means over images, the object scores, the scores without and with image-level labels."""
    each = scores["per_image"]
    lines = [f"mean over images: mDice {percent(each['mdice'])}, mIoU {percent(each['miou'])}"]
    if scores.get("objects"):
        objects = scores["objects"]
        hausdorff = "–" if objects["hausdorff"] is None else f"{objects['hausdorff']:.1f} px"
        lines.append(
            f"objects (GlaS challenge): F1 {percent(objects['f1'])}, Dice {percent(objects['dice'])}, "
            f"Hausdorff {hausdorff}"
        )
    if told := scores.get("with_image_labels"):
        for name, found in (("image alone", scores), ("told the image's label", told)):
            lines.append(f"{name}: mDice {percent(found['mdice'])}, mIoU {percent(found['miou'])}")
    return lines


def percent(value: float | None) -> str:
    """Formats a fraction as percent with two digits; None as –."""
    return "–" if value is None else f"{100 * value:.2f}"
