"""`mpamatch prepare KIND [SOURCE] DEST`: any raw set into the one prepared form."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mpamatch.data.prepared import PARTS, Prepared, RawSet, write_prepared
from mpamatch.data.sources import acdc, bcss_wsss, busi, ebhi_seg, folder, glas, kpi, synthetic
from mpamatch.errors import InputError, unknown

# The options that a kind understands; another one is an error, for it would silently do nothing.
OPTIONS = {
    "acdc": ("regroup",),
    "bcss-wsss": (),
    "busi": ("task",),
    "ebhi-seg": ("task",),
    "folder": ("mask_values", "instances", "group_regex", "regroup"),
    "glas": ("task", "regroup"),
    "kpi": ("regroup",),
    "synthetic": ("images", "size", "seed"),
}
READERS: dict[str, Callable[..., RawSet]] = {
    "acdc": acdc.raw_set,
    "bcss-wsss": bcss_wsss.raw_set,
    "busi": busi.raw_set,
    "ebhi-seg": ebhi_seg.raw_set,
    "folder": folder.raw_set,
    "glas": glas.raw_set,
    "kpi": kpi.raw_set,
    "synthetic": synthetic.raw_set,
}
RECIPES = {
    "acdc": "acdc",
    "busi-lesion": "busi",
    "busi-classes": "busi",
    "ebhi-seg-gland": "ebhi-seg-gland",
    "ebhi-seg-cancer": "ebhi-seg-cancer",
    "ebhi-seg-classes": "ebhi-seg-classes",
    "ebhi-seg-weak": "ebhi-seg-weak",
    "bcss-wsss": "bcss-wsss",
    "glas-gland": "glas",
    "kpi": "kpi",
}


def run(arguments: argparse.Namespace) -> int:
    """`arguments`: kind, source, dest, microns_per_pixel, and all of OPTIONS, None or False if not given."""
    raw = _raw_set(arguments)
    dest = Path(arguments.dest)
    prepared = write_prepared(
        dest,
        raw.items,
        name=raw.name,
        classes=raw.classes,
        microns_per_pixel=raw.microns_per_pixel,
        source=raw.source,
        licence=raw.licence,
        keep_shared_groups=raw.keep_shared_groups,
        total=raw.count,
    )
    console = Console()
    console.print(_table(prepared))
    for remark in (prepared.note, *raw.remarks):
        if remark:
            console.print(f"note: {remark}", markup=False, highlight=False, soft_wrap=True)
    recipe = RECIPES.get(prepared.name, "folder")
    split = f"      mpamatch split {dest} --labelled 10%        (count few of the images as labelled)\n"
    console.print(
        f"next: mpamatch check {dest}\n"
        f"{'' if prepared.present else split}"
        f"      mpamatch-train --recipe {recipe} --data.root {dest}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return 0


def _raw_set(arguments: argparse.Namespace) -> RawSet:
    if arguments.kind not in READERS:
        raise unknown("kind of data set", arguments.kind, READERS)
    options = _options(arguments)
    if arguments.kind != "synthetic":
        if arguments.source is None:
            raise InputError(f"prepare {arguments.kind}: name the source folder and the folder to write.")
        options["source"] = Path(arguments.source)
    raw = READERS[arguments.kind](**options)
    microns = arguments.microns_per_pixel
    if microns is None:
        return raw
    if not 0 < microns < 100:
        raise InputError(f"--microns-per-pixel {microns}: must be above 0 and below 100.")
    return replace(raw, microns_per_pixel=microns)


def _options(arguments: argparse.Namespace) -> dict:
    given: dict = {}
    for options in OPTIONS.values():
        for option in options:
            value = getattr(arguments, option)
            if value is None or value is False:
                continue
            if option not in OPTIONS[arguments.kind]:
                flag = f"--{option.replace('_', '-')}"
                kinds = ", ".join(name for name, known in OPTIONS.items() if option in known)
                raise InputError(f"{flag}: is an option of {kinds}, not of {arguments.kind}: leave it out.")
            given[option] = value
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
