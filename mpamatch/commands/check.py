"""`mpamatch check DATA`: names every problem of a prepared set by file and draws a contact sheet."""

import argparse
from pathlib import Path

from rich.table import Table
from rich.text import Text

from mpamatch.console import new_console, say
from mpamatch.data.checks import Report, examine, write_contact_sheet


def run(arguments: argparse.Namespace) -> int:
    """Checks the folder `arguments.data`; returns 1 if a problem would spoil training, else 0."""
    root = Path(arguments.data)
    report = examine(root)
    console = new_console()
    console.print(_counts(report))
    console.print(_classes(report))
    if report.problems:
        console.print(_problems(report))
    blocking = sum(problem.blocking for problem in report.problems)
    say(console, f"{blocking} problems that spoil training, {len(report.problems) - blocking} to know about")
    sheet = root / "check.png"
    samples = write_contact_sheet(report, sheet)
    if samples:
        say(console, f"{sheet}: {samples} samples to look at")
    return 1 if report.blocking else 0


def _counts(report: Report) -> Table:
    table = Table(title=report.prepared.name, title_justify="left")
    table.add_column("part")
    for column in ("images", "labelled", "groups"):
        table.add_column(column, justify="right")
    for part, count in report.counts.items():
        table.add_row(part, str(count.images), str(count.labelled), str(count.groups))
    return table


def _classes(report: Report) -> Table:
    table = Table(title="pixels per class, %", title_justify="left")
    table.add_column("class", overflow="fold")
    for part in report.counts:
        table.add_column(part, justify="right")
    for i, name in enumerate(report.prepared.class_names):
        shares = (100 * count.pixels[i] / max(1, sum(count.pixels)) for count in report.counts.values())
        table.add_row(Text(name), *(f"{share:.1f}" for share in shares))
    return table


def _problems(report: Report) -> Table:
    table = Table(title="problems", title_justify="left")
    table.add_column("file", overflow="fold")
    table.add_column("problem", overflow="fold")
    table.add_column("spoils training")
    for problem in report.problems:
        table.add_row(Text(problem.file), Text(problem.problem), "yes" if problem.blocking else "no")
    return table
