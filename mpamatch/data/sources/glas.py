"""GlaS (Warwick-QU): colorectal glands at 20×, masks with a number per gland, patients in Grade.csv.

Sirinukunwattana et al., Gland segmentation in colon histology images: the GlaS challenge contest, Medical
Image Analysis 2017, doi 10.1016/j.media.2016.08.008. Files: train_N, testA_N, testB_N and these with _anno.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpamatch.data.kinds import REGROUP, Kind, Option
from mpamatch.data.parts import held_out
from mpamatch.data.prepared import Class, Item, RawSet
from mpamatch.data.raw import Findings
from mpamatch.data.sources.drawn import NumberedMasks
from mpamatch.data.sources.layout import existing, without_mask
from mpamatch.errors import InputError, shown, unknown
from mpamatch.files import read_table
from mpamatch.images import default_colour
from mpamatch.names import visible, visible_below

KIND = Kind(
    name="glas",
    help="GlaS (Warwick-QU): train_N, testA_N, testB_N with _anno, Grade.csv",
    module=__name__,
    options=(Option("--task", "gland or grade"), REGROUP),
    recipes={"glas-gland": "glas", "glas-grade": "glas"},
)

TASKS = ("gland", "grade")
GRADES = ("benign", "malignant")

_FILE = re.compile(r"((train|testA|testB)_\d+)(_anno)?\.(?:bmp|png)", re.IGNORECASE)


def raw_set(source: Path, task: str = "gland", regroup: bool = False) -> RawSet:
    """Reads GlaS for one task: gland (background, gland) or grade (background, benign, malignant).

    The official test images (A and B) are the test part; 20 % of the official training images, by patient,
    are the validation part. The official parts share patients: `regroup` draws all parts by patient instead.
    Raises InputError for an unknown task, a missing folder or file, a mask without image, or a Grade.csv that
    lacks a column, or for the task grade an image.
    """
    if task not in TASKS:
        raise unknown("task of glas", task, TASKS)
    images, masks = _files(_folder(source))
    rows = _grades(source, task)
    groups = {stem: f"patient-{rows[stem].patient}" if stem in rows else stem for stem in images}
    parts: dict[str, str | None] = dict.fromkeys(images) if regroup else _official(groups)
    names = ("background", "gland") if task == "gland" else ("background", *GRADES)
    findings = Findings()
    return RawSet(
        name=f"glas-{task}",
        classes=tuple(Class(name, default_colour(i)) for i, name in enumerate(names)),
        items=_items(images, masks, groups, parts, rows if task == "grade" else None, findings),
        count=len(images),
        microns_per_pixel=0.62,  # 20×; as the challenge's paper states
        source="GlaS challenge (Warwick-QU), doi 10.1016/j.media.2016.08.008",
        licence="research use; see the terms of the GlaS challenge",
        keep_shared_groups="the official GlaS parts share patients; --regroup draws the parts by patient.",
        remarks=(
            *_remarks(rows, images),
            *without_mask(path for stem, path in images.items() if stem not in masks),
        ),
        findings=findings,
    )


@dataclass(frozen=True)
class _Row:
    patient: str
    grade: str


def _folder(source: Path) -> Path:
    """Finds the folder of the images: `source` itself or, as the archive unpacks, a folder in it."""
    for folder in (existing(source), *(path for path in visible(source) if path.is_dir())):
        if any(_FILE.fullmatch(path.name) for path in visible(folder)):
            return folder
    raise InputError(f"{source}: holds no train_N, testA_N or testB_N image (.bmp or .png).")


def _files(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    images: dict[str, Path] = {}
    masks: dict[str, Path] = {}
    for path in visible(folder):
        match = _FILE.fullmatch(path.name)
        if match is None:
            continue
        kind = masks if match[3] else images
        if match[1] in kind:
            raise InputError(f"{path}: is there as .bmp and as .png: remove one of them.")
        kind[match[1]] = path
    for stem, mask in masks.items():
        if stem not in images:
            raise InputError(f"{mask}: is a mask without image: add {stem}{mask.suffix} or remove it.")
    return images, masks


def _grades(source: Path, task: str) -> dict[str, _Row]:
    """Reads Grade.csv, by image; empty if there is none and the task can do without."""
    found = [path for path in visible_below(source) if path.name.lower() == "grade.csv"]
    if not found:
        if task == "grade":
            raise InputError(f"{source}: has no Grade.csv, which the task grade needs; take --task gland.")
        return {}
    rows = read_table(found[0])
    columns = ["".join(column.lower().split()) for column in rows[0]] if rows else []
    name, patient, grade = (_column(found[0], columns, start) for start in ("name", "patient", "grade(glas"))
    needed = max(name, patient, grade)
    for row in rows[1:]:
        if len(row) <= needed:
            raise InputError(f"{found[0]}: the row {shown(','.join(row))} has fewer columns than the header.")
    return {row[name]: _Row(row[patient], row[grade].lower()) for row in rows[1:]}


def _column(path: Path, columns: list[str], start: str) -> int:
    for i, column in enumerate(columns):
        if column.startswith(start):
            return i
    raise InputError(f"{path}: has no column {start!r}…; it needs name, patient ID and grade (GlaS).")


def _official(groups: dict[str, str]) -> dict[str, str | None]:
    training = {stem: group for stem, group in groups.items() if stem.lower().startswith("train")}
    validation = held_out(training.values())
    parts: dict[str, str | None] = {stem: "test" for stem in groups}
    for stem, group in training.items():
        parts[stem] = "validation" if group in validation else "train"
    return parts


def _items(
    images: dict[str, Path],
    masks: dict[str, Path],
    groups: dict[str, str],
    parts: dict[str, str | None],
    grades: dict[str, _Row] | None,
    findings: Findings,
) -> Iterator[Item]:
    glands = NumberedMasks(list(masks.values()))
    for stem, image in images.items():
        label = numbers = None
        if stem in masks:
            index = 1 if grades is None else _grade_index(grades, stem)
            drawn, numbers = glands.read(masks[stem])
            label = np.where(drawn, index, 0).astype(np.uint8)
        yield Item(stem, groups[stem], parts[stem], image, label, instances=numbers)
    findings.remarks += glands.findings()


def _grade_index(grades: dict[str, _Row], stem: str) -> int:
    if stem not in grades:
        raise InputError(f"Grade.csv: has no row for {stem}, which the task grade needs.")
    if grades[stem].grade not in GRADES:
        raise InputError(
            f"Grade.csv: {stem} has the grade {shown(grades[stem].grade)}; {' or '.join(GRADES)} is known."
        )
    return 1 + GRADES.index(grades[stem].grade)


def _remarks(rows: dict[str, _Row], images: dict[str, Path]) -> tuple[str, ...]:
    if not rows:
        return (
            "no Grade.csv: each image is its own group, though several come from one patient, and the "
            "official parts share patients.",
        )
    missing = sorted(set(images) - set(rows))
    return (f"not in Grade.csv, so a group each: {', '.join(missing)}",) if missing else ()
