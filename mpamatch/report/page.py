"""The report: one HTML page that holds everything it shows, and the model card, both from the same summary."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from mpamatch.files import json_bytes, replacing
from mpamatch.report import sections
from mpamatch.report.curves import of_comparison
from mpamatch.report.pictures import Picture
from mpamatch.report.words import count, in_short, percent, points, warnings

Content = dict[str, Any]


@dataclass(frozen=True)
class Example:
    """A row of pictures of one image: image, label, prediction(s), disagreement(s).

    Attributes:
        title: such as "best: slide-7.png".
        about: what is to be known of it, in a sentence.
        pictures: of the row.
    """

    title: str
    about: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class PrototypePictures:
    """The pictures of a run's prototypes.

    Attributes:
        patches: F × K lists of the real patches nearest to each prototype.
        example: one image, the prediction and which prototype each pixel is nearest to.
        maps: F × K maps of the cosine over that image.
    """

    patches: Sequence[Sequence[Sequence[Picture]]]
    example: Sequence[Picture]
    maps: Sequence[Sequence[Picture]]


@dataclass(frozen=True)
class RunContent:
    """What the page shows of a run.

    Attributes:
        summary: its part of summary.json.
        examples: test images.
        prototypes: pictures of its prototypes, if it has some.
    """

    summary: Content
    examples: Sequence[Example] = ()
    prototypes: PrototypePictures | None = None


@dataclass(frozen=True)
class Report:
    """What is written.

    Attributes:
        runs: one at least.
        comparison: of every other run with the first one, as `compared` gives it.
        differing: the images on which runs differ most.
    """

    runs: Sequence[RunContent]
    comparison: Sequence[Content] = ()
    differing: Sequence[Example] = field(default_factory=tuple)


def write_report(report: Report, out: Path) -> list[Path]:
    """Writes report.html, summary.json and MODEL_CARD.md into `out`; returns their paths.

    Raises WriteError as `replacing` does: then all three are as they were.
    """
    page, card = (text.encode("utf-8", errors="backslashreplace") for text in (_page(report), _card(report)))
    content = {"report.html": page, "summary.json": json_bytes(summary_of(report)), "MODEL_CARD.md": card}
    with ExitStack() as whole:
        for name, data in content.items():
            whole.enter_context(replacing(out / name)).write_bytes(data)
    return [out / name for name in content]


def summary_of(report: Report) -> Content:
    """Returns the content of summary.json."""
    runs = [one.summary for one in report.runs]
    return {"runs": runs, **({"comparison": list(report.comparison)} if report.comparison else {})}


def _page(report: Report) -> str:
    several = len(report.runs) > 1
    runs = [
        {
            "summary": one.summary,
            "anchor": f"run{number}-" if several else "",
            "short": in_short(one.summary),
            "warnings": warnings(one.summary),
            "sections": sections.of_run(one.summary),
            "examples": one.examples,
            "prototypes": one.prototypes,
        }
        for number, one in enumerate(report.runs, start=1)
    ]
    names = [one.summary["name"] for one in report.runs]
    together = of_comparison([one.summary for one in report.runs], report.comparison) if several else None
    return (
        _environment(autoescape=True)
        .get_template("page.html.j2")
        .render(
            title=f"Report: {', '.join(names)}",
            runs=runs,
            several=several,
            together=together,
            differing=report.differing,
            style=Markup(_shipped("page.css")),
            versions=report.runs[0].summary["versions"],
        )
    )


def _card(report: Report) -> str:
    template = _environment(autoescape=False).get_template("card.md.j2")
    runs = [
        {"summary": one.summary, "short": in_short(one.summary), "warnings": warnings(one.summary)}
        for one in report.runs
    ]
    return template.render(runs=runs)


def _environment(*, autoescape: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_shipped),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"percent": percent, "points": points, "cell": _cell, "count_of": count}
    return environment


def _shipped(name: str) -> str:
    return (resources.files("mpamatch.report") / name).read_text(encoding="utf-8")


def _cell(value: Any) -> str:
    """Makes a name fit for a cell of a Markdown table."""
    return str(value).replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
