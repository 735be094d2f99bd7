"""What a page is made of: tables, figures with the table behind each, and cells that keep their number."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from mpamatch.report.words import percent

Content = dict[str, Any]
MEANS = (
    ("mdice", "mean Dice over all classes"),
    ("miou", "mean IoU over all classes"),
    ("foreground_dice", "mean Dice without the background"),
    ("foreground_iou", "mean IoU without the background"),
)


@dataclass(frozen=True)
class Table:
    """A table: its headings and its cells, of which the first of each row is a heading."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Figure:
    """A figure: the drawing, its legend, what it means, and the table behind it."""

    key: str
    title: str
    svg: Markup
    caption: str
    table: Table
    legend: Markup = field(default_factory=Markup)


@dataclass(frozen=True)
class Number:
    """A cell that keeps the number beside its words."""

    value: float | None
    words: str


def share(value: float | None) -> Number:
    """Makes the cell of a fraction, in percent."""
    return Number(value, percent(value))


def hundredfold(value: float | None) -> float | None:
    """Turns a fraction into percent; None stays."""
    return None if value is None else 100 * value


def hundredfold_each(ends: Sequence[float] | None) -> tuple[float, float] | None:
    """Turns the ends of an interval into percent; None stays."""
    return None if ends is None else (100 * ends[0], 100 * ends[1])


def seconds_of(value: float | None) -> str:
    """Formats seconds; None as –."""
    return "–" if value is None else f"{value:.3g}"
