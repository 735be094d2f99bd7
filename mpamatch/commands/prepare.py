"""`mpamatch prepare KIND [SOURCE] DEST`: writes a raw data set in the prepared form."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

from mpamatch.console import new_console, say
from mpamatch.data.kinds import Kind, every_option, kind_named, kinds
from mpamatch.data.prepared import PARTS, Prepared, RawSet, write_prepared
from mpamatch.errors import InputError


def run(arguments: argparse.Namespace) -> int:
    """Prepares `arguments.source` into `arguments.dest`, prints a table and what to do next; returns 0.

    `arguments` has every option of any kind, None or False if it was not given.
    """
    kind = kind_named(arguments.kind)
    raw = _raw_set(kind, arguments)
    dest = Path(arguments.dest)
    prepared = write_prepared(dest, raw)
    console = new_console()
    console.print(_table(prepared))
    for remark in (prepared.note, *raw.remarks):
        if remark:
            say(console, f"note: {remark}")
    recipe = kind.recipes.get(prepared.name, "folder")
    split = f"      mpamatch split {dest} --labelled 10%        (count few of the images as labelled)\n"
    say(
        console,
        f"next: mpamatch check {dest}\n"
        f"{'' if prepared.present else split}"
        f"      mpamatch-train --recipe {recipe} --data.root {dest}",
    )
    return 0


def _raw_set(kind: Kind, arguments: argparse.Namespace) -> RawSet:
    """Opens the raw set with the options given. Raises InputError if an option does not fit."""
    options = _options(kind, arguments)
    if kind.takes_source:
        if arguments.source is None:
            raise InputError(f"prepare {kind.name}: name the source folder and the folder to write.")
        options["source"] = Path(arguments.source)
    raw = kind.reader(**options)
    microns = arguments.microns_per_pixel
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
