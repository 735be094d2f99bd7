"""Small charts as inline SVG: their colours are variables of the page's style sheet, so that they follow dark mode.

Text stays text, 400 units are the width of a phone, and each chart has a description for those who cannot see it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT = 400, 250
LEFT, RIGHT, TOP, BOTTOM = 60, 12, 12, 42  # margins
STRONGEST = 0.52  # opacity of a cell of 1 or −1, on which its number can still be read
LETTER = 8.2  # width of a bold letter
SERIES = 8  # colours and dashes that the style sheet has
MOST_POINTS = 240  # of a line
Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """A line of a chart; places where y is not a number are left out."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Axis:
    """An axis: its label, its range and whether it is logarithmic."""

    label: str
    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        """Returns where a value lies, 0 to 1."""
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return (value - low) / (high - low)

    def ticks(self) -> list[float]:
        """Returns three to seven round values within the range."""
        if self.log:
            powers = range(math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1)
            every = -(-len(powers) // 5)
            return [10.0**power for power in powers][::every]
        raw = (self.high - self.low) / 4
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [step * number for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def line_chart(series: Sequence[Series], x: Axis, y: Axis, *, alt: str, marks: bool = False) -> str:
    """Draws lines over an axis of steps; `legend` names them."""
    at = _place(x, y)
    drawn = []
    for number, one in enumerate(series):
        points = [at(*point) for point in _thinned(one) if not y.log or point[1] > 0]
        kind = f"s{number % SERIES}"
        drawn.append(f'<polyline class="line {kind}" points="{_points(points)}"/>')
        if marks:
            drawn += [f'<circle class="dot {kind}" cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in points]
    return _svg(alt, [*_grid(x, y), *drawn])


def legend(names: Sequence[str]) -> str:
    """Draws the names of lines with a piece of each."""
    items = "".join(
        f'<li><svg class="key" viewBox="0 0 26 10" aria-hidden="true"><line class="line s{number % SERIES}" x1="1" '
        f'y1="5" x2="25" y2="5"/></svg>{escape(name)}</li>'
        for number, name in enumerate(names)
    )
    return f'<ul class="legend">{items}</ul>'


def reliability_chart(
    rows: Sequence[tuple[float, float, float | None, float]],  # from, to, accuracy, share of the pixels
    *,
    alt: str,
) -> str:
    """Draws accuracy by confidence as bars, the diagonal of perfect calibration, and the share of pixels below."""
    x, y = Axis("how sure it is (probability of its answer)", 0, 1), Axis("how often right", 0, 1)
    at = _place(x, y)
    drawn = []
    for low, high, accuracy, share in rows:
        if accuracy is None:
            continue
        (left, top), (right, bottom) = at(low, accuracy), at(high, 0)
        faint = " faint" if share < 0.002 else ""
        drawn.append(
            f'<rect class="bar{faint}" x="{left + 0.8:.1f}" y="{top:.1f}" width="{right - left - 1.6:.1f}" '
            f'height="{max(0.0, bottom - top):.1f}"/>'
        )
    (a, b), (c, d) = at(0, 0), at(1, 1)
    drawn.append(f'<line class="ideal" x1="{a}" y1="{b}" x2="{c}" y2="{d}"/>')
    return _svg(alt, [*_grid(x, y), *drawn])


def threshold_chart(
    rows: Sequence[tuple[float, float | None, float | None]],  # threshold, share, accuracy
    own: float | None,
    *,
    alt: str,
) -> str:
    """Draws share and accuracy of the pixels that are at least as sure as each threshold; `own` is marked."""
    x, y = Axis("threshold τ", 0.5, 1), Axis("share of pixels", 0, 1)
    at = _place(x, y)
    drawn = list(_grid(x, y))
    if own is not None and x.low <= own <= x.high:
        place, top = at(own, 1)
        drawn.append(f'<line class="mark" x1="{place:.1f}" y1="{top}" x2="{place:.1f}" y2="{HEIGHT - BOTTOM}"/>')
        drawn.append(_text(place - 4, HEIGHT - BOTTOM - 8, f"this run's τ {own:g}", "end", "strong"))
    for number, column in enumerate((1, 2)):
        points = [at(row[0], value) for row in rows if (value := row[column]) is not None]
        drawn.append(f'<polyline class="line s{number}" points="{_points(points)}"/>')
        drawn += [f'<circle class="dot s{number}" cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in points]
    return _svg(alt, drawn)


def interval_chart(
    rows: Sequence[tuple[str, float | None, tuple[float, float] | None]],  # name, value, its interval
    axis: Axis,
    *,
    alt: str,
    zero: bool = False,
) -> str:
    """Draws a dot with its interval for each row; `zero` draws a line at 0."""
    left = min(160.0, 16 + LETTER * max(len(name) for name, _, _ in rows))
    height = 30 * len(rows) + TOP + BOTTOM
    span = WIDTH - RIGHT - left

    def x(value: float) -> float:
        return left + span * min(1.0, max(0.0, axis.place(value)))

    drawn = []
    for tick in axis.ticks():
        drawn.append(f'<line class="grid" x1="{x(tick):.1f}" y1="{TOP}" x2="{x(tick):.1f}" y2="{height - BOTTOM}"/>')
        drawn.append(_text(x(tick), height - BOTTOM + 16, f"{tick:g}"))
    if zero:
        drawn.append(f'<line class="mark" x1="{x(0):.1f}" y1="{TOP}" x2="{x(0):.1f}" y2="{height - BOTTOM}"/>')
    for number, (name, value, interval) in enumerate(rows):
        y = TOP + 30 * number + 15
        drawn.append(_text(left - 8, y + 4, _short(name, int((left - 12) / LETTER)), "end", "strong"))
        if interval is not None:
            low, high = interval
            drawn.append(f'<line class="whisker" x1="{x(low):.1f}" y1="{y}" x2="{x(high):.1f}" y2="{y}"/>')
        if value is not None:
            drawn.append(f'<circle class="dot s0" cx="{x(value):.1f}" cy="{y}" r="4.5"/>')
    drawn.append(_text(left + span / 2, height - 6, axis.label))
    return _svg(alt, drawn, height)


def matrix_chart(
    values: Sequence[Sequence[float]],  # −1 to 1
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    alt: str,
    numbers: bool = False,
) -> str:
    """Draws a matrix of cosines: blue above 0, orange below, the stronger the further from it."""
    left = min(150.0, 12 + 7 * max(map(len, rows)))
    wanted = max(50.0, 12 + 7 * max(map(len, columns))) if numbers else 24.0
    wide = min(wanted, (WIDTH - left - RIGHT) / len(columns))
    high = 22.0 if numbers else wide
    head = 22 if any(columns) else 4
    height = round(head + high * len(rows) + 8)
    drawn = []
    for j, name in enumerate(columns):
        if name:
            drawn.append(_text(left + wide * (j + 0.5), head - 7, _short(name, int((wide - 2) / 6.5)), size=11))
    for i, (name, line) in enumerate(zip(rows, values, strict=True)):
        y = head + high * i
        drawn.append(_text(left - 6, y + high / 2 + 4, _short(name, int((left - 8) / 7)), "end", size=11))
        for j, value in enumerate(line):
            x = left + wide * j
            drawn.append(
                f'<rect class="{"cool" if value >= 0 else "warm"}" x="{x:.1f}" y="{y:.1f}" width="{wide - 0.6:.1f}" '
                f'height="{high - 0.6:.1f}" fill-opacity="{STRONGEST * min(1.0, abs(value)):.2f}"/>'
            )
            if numbers:
                drawn.append(_text(x + wide / 2, y + high / 2 + 4, f"{value:.2f}", kind="strong", size=11))
    return _svg(alt, drawn, height)


def range_of(values: Sequence[float], *, log: bool = False) -> tuple[float, float]:
    """Returns a range that holds the finite values with some room; of a logarithmic axis from the positive ones."""
    known = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
    if not known:
        return (0.1, 1.0) if log else (0.0, 1.0)
    low, high = min(known), max(known)
    if log:
        return 10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high * 1.0001))
    room = 0.05 * (high - low) or abs(high) * 0.05 or 1.0
    return low - room, high + room


def _thinned(one: Series) -> list[Point]:
    """Returns at most MOST_POINTS points of a line: means of neighbours if there are more."""
    points = np.array([(a, b) for a, b in zip(one.x, one.y, strict=True) if math.isfinite(b)], dtype=float)
    if len(points) > MOST_POINTS:
        points = np.array([piece.mean(0) for piece in np.array_split(points, MOST_POINTS)])
    return [(float(a), float(b)) for a, b in points]


def _place(x: Axis, y: Axis) -> Callable[[float, float], Point]:
    """Makes the function from values to places in the picture."""
    across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def at(a: float, b: float) -> Point:
        return LEFT + across * x.place(a), TOP + down * (1 - min(1.0, max(0.0, y.place(b))))

    return at


def _grid(x: Axis, y: Axis) -> Iterator[str]:
    at = _place(x, y)
    for tick in y.ticks():
        place = at(x.low, tick)[1]
        yield f'<line class="grid" x1="{LEFT}" y1="{place:.1f}" x2="{WIDTH - RIGHT}" y2="{place:.1f}"/>'
        yield _text(LEFT - 6, place + 4, f"{tick:g}", "end")
    for tick in x.ticks():
        yield _text(at(tick, y.low)[0], HEIGHT - BOTTOM + 17, f"{tick:g}")
    yield f'<line class="axis" x1="{LEFT}" y1="{HEIGHT - BOTTOM}" x2="{WIDTH - RIGHT}" y2="{HEIGHT - BOTTOM}"/>'
    yield _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x.label)
    middle = (TOP + HEIGHT - BOTTOM) / 2
    yield (
        f'<text class="t" x="0" y="0" transform="translate(12 {middle:g}) rotate(-90)" '
        f'text-anchor="middle">{escape(y.label)}</text>'
    )


def _points(points: Sequence[Point]) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in points)


def _text(x: float, y: float, words: str, anchor: str = "middle", kind: str = "", size: int = 0) -> str:
    styled = f' style="font-size:{size}px"' if size else ""
    return f'<text class="t {kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{styled}>{escape(words)}</text>'


def _short(words: str, most: int) -> str:
    return words if len(words) <= most else f"{words[: max(1, most - 1)]}…"


def _svg(alt: str, content: Sequence[str], height: int = HEIGHT) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(alt)}">'
        f"{''.join(content)}</svg>"
    )
