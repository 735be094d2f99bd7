"""`mpamatch prepare KIND [SOURCE] DEST`: writes a raw data set in the prepared form."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

from mpamatch.console import new_console, say
from mpamatch.data.kinds import Kind, every_option, kind_named, kinds
from mpamatch.data.prepared import PARTS, Prepared, load_prepared, with_parts_of, write_prepared
from mpamatch.data.raw import Findings, RawSet
from mpamatch.errors import InputError
from mpamatch.files import check_free


def run(arguments: argparse.Namespace) -> int:
    """Prepares `arguments.source` into `arguments.dest`, prints a table and what to do next.

    Returns 0; 1 if a part of the source could not be read and was left out.

    `arguments` has every option of any kind, None or False if it was not given.
    """
    kind = kind_named(arguments.kind)
    dest = Path(arguments.dest)
    check_free(dest)  # before the minutes that reading may take
    raw = _raw_set(kind, arguments)
    if arguments.parts_of is not None:
        raw = replace(raw, items=with_parts_of(load_prepared(Path(arguments.parts_of)), raw.items))
    prepared = write_prepared(dest, raw)
    console = new_console()
    console.print(_table(prepared))
    if raw.findings.rows:
        console.print(_findings_table(raw.findings))
    for remark in (prepared.note, *raw.remarks, *raw.findings.remarks):
        if remark:
            say(console, f"note: {remark}")
    for failure in raw.findings.failed:
        say(console, f"left out: {failure}")
    recipe = kind.recipes.get(prepared.name, "folder")
    split = f"      mpamatch split {dest} --labelled 10%        (count few of the images as labelled)\n"
    few = 2 * len(prepared.labelled("train")) < len(prepared.parts["train"])  # as of slides: such labels are for use
    say(
        console,
        f"next: mpamatch check {dest}\n"
        f"{'' if prepared.present or few else split}"
        f"      mpamatch-train --recipe {recipe} --data.root {dest}",
    )
    return 1 if raw.findings.failed else 0


def _raw_set(kind: Kind, arguments: argparse.Namespace) -> RawSet:
    """Opens the raw set with the options given. Raises InputError if an option does not fit."""
    options = _options(kind, arguments)
    if kind.takes_source:
        if arguments.source is None:
            raise InputError(f"prepare {kind.name}: name the source folder and the folder to write.")
        options["source"] = Path(arguments.source)
    microns = arguments.microns_per_pixel
    if microns is not None and kind.sizes_pixels:
        raise InputError(f"--microns-per-pixel: prepare {kind.name} knows the size of a pixel itself: leave it out.")
    raw = kind.reader(**options)
    if microns is None:
        return raw
    if not 0 < microns < 100:
        raise InputError(f"--microns-per-pixel {microns}: must be above 0 and below 100.")
    return replace(raw, microns_per_pixel=microns)


def _options(kind: Kind, arguments: argparse.Namespace) -> dict[str, Any]:
    """Collects the options given, by keyword. Raises InputError for one that `kind` does not take."""
    given: dict[str, Any] = {}
    for option in every_option():
        value = getattr(arguments, option.keyword)
        if value is None or value is False:
            continue
        takers = [one.name for one in kinds().values() if option.flag in one.flags]
        if kind.name not in takers:
            raise InputError(f"{option.flag}: is an option of {', '.join(takers)}, not of {kind.name}: leave it out.")
        given[option.keyword] = value
    return given


def _findings_table(findings: Findings) -> Table:
    table = Table()
    for number, heading in enumerate(findings.heading):
        table.add_column(heading, justify="right" if number else "left")
    for row in findings.rows:
        table.add_row(*row)
    return table


def _table(prepared: Prepared) -> Table:
    table = Table(title=f"{prepared.name} → {prepared.root}", title_justify="left")
    table.add_column("part")
    weak = bool(prepared.present)
    for column in ("images", "labelled", "groups", *(["image-level labels"] if weak else [])):
        table.add_column(column, justify="right")
    for part in PARTS:
        names = prepared.parts[part]
        groups = {prepared.groups[name] for name in names}
        counts = [len(names), len(prepared.labelled(part)), len(groups)]
        table.add_row(part, *map(str, counts + ([len(prepared.with_present(part))] if weak else [])))
    return table
