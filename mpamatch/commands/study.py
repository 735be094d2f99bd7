"""`mpamatch study NAME`: sweeps one choice over paired seeds and makes a table and a figure."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from mpamatch import ranks
from mpamatch.claims import LOCK, alone
from mpamatch.commands.train import quiet_libraries
from mpamatch.console import new_console, say
from mpamatch.data.cache import ImageCache
from mpamatch.data.prepared import Prepared, load_prepared
from mpamatch.data.splits import draw_splits, save_split
from mpamatch.engine.build import open_data
from mpamatch.engine.config import flags_for, full_names, load_config
from mpamatch.engine.loop import last_checkpoint
from mpamatch.engine.prototype_pictures import PrototypeViewer
from mpamatch.errors import InputError, shown
from mpamatch.files import read_json, replacing, write_json
from mpamatch.methods import METHODS
from mpamatch.studies import plans, scores
from mpamatch.studies.catalogue import Study, find_study
from mpamatch.studies.plans import Point
from mpamatch.studies.sweep import RunResult, StudyRun, Sweep, do_runs, read_results

LABELLED = "10%"
SHOWN = 50  # images among which the one to be drawn is chosen


def run(arguments: argparse.Namespace) -> int:
    """Does the runs that are missing, then writes table and figure; returns 1 if a run failed, else 0."""
    study = find_study(arguments.study)
    console = new_console()
    sweep, runs, points, left_out = plan(study, arguments)
    say(console, f"{study.question} {len(runs)} runs in {sweep.out}")
    if arguments.values is None:
        _say_lacking(study, console)
    for point in left_out:
        say(console, f"left out: {point.method} at {point.labelled}, where no image is unlabelled")
    quiet_libraries()
    failed = do_runs(sweep, runs, jobs=arguments.jobs, say=lambda text: say(console, text))
    report(study, points, runs, Path(sweep.out), console)
    return 1 if failed else 0


def plan(study: Study, arguments: argparse.Namespace) -> tuple[Sweep, list[StudyRun], list[Point], list[Point]]:
    """Checks everything, plans the runs, and writes study.json and the splits.

    Returns:
        The sweep, its runs, the points they are of, and the points left out because no image would be unlabelled.

    Raises:
        InputError: options, configuration or data do not allow the study; nothing is written then.
    """
    if ranks.started() > 1:
        raise InputError("study: starts its own processes; leave out torchrun and say how many at a time with --jobs.")
    _check_numbers(arguments)
    steps = [] if arguments.steps is None else ["--engine.steps", str(arguments.steps)]
    methods, flags = _methods(study, arguments), full_names([*arguments.flags, *steps])
    plans.check_flags(study, methods, flags)
    file = Path(arguments.config) if arguments.config else None
    settings = arguments.recipe or Path(arguments.config).stem
    base = load_config(arguments.recipe, file, [*flags_for(methods[0], flags), "--method.name", methods[0]]).data
    prepared = open_data(load_config(arguments.recipe, file, ["--data.root", base.root]))
    out = arguments.out or f"runs/study-{study.name}-{settings}"
    sweep = Sweep(out, base.root, arguments.recipe, arguments.config, arguments.test)
    _check_parts(prepared, sweep)

    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    labelled = _labelled(study, arguments, base.split)
    points = plans.points(study, methods, _values(study, arguments), labelled, _across(study, arguments))
    budgets = list(dict.fromkeys(point.labelled for point in points))
    drawn = {} if base.split else draw_splits(prepared, budgets, seeds)
    kept = plans.possible(points, drawn)
    splits = {(labelled, seed): labelled for seed in seeds} | {key: split.name for key, split in drawn.items()}
    runs = plans.planned_runs(study, kept, seeds, splits, sweep, flags, prepared.class_names, prepared.name)
    _claim(study, sweep, flags)
    for split in drawn.values():
        save_split(prepared, split)
    return sweep, runs, kept, [point for point in points if point not in kept]


def report(study: Study, points: Sequence[Point], runs: Sequence[StudyRun], out: Path, console: Console) -> None:
    """Writes table.csv, table.md and figure.png of the results so far, and prints the table."""
    names = {one.name for one in runs}
    results = [result for result in read_results(out) if result["name"] in names]
    if not results:
        return
    measures, part = dict(study.measures), scores.part_scored(results)
    rows = scores.table_rows(results, plans.references(study, points), list(measures))
    reference = plans.reference_name(study, points)
    about = f"{part} mDice, mean ± sd over seeds; differences to {reference}"
    say(console, f"{study.name}: {about}")
    for table in tables(rows, measures):
        console.print(table)
    say(console, "The checkpoint of every run is the best on validation.")
    if part == "validation":
        say(console, "So validation scores flatter every point; --test adds the test part.")
    scores.write_csv(out / "table.csv", rows, part, list(measures))
    with replacing(out / "table.md") as temporary:
        text = scores.markdown(rows, measures)
        temporary.write_text(f"{study.question} {about[0].upper()}{about[1:]}.\n\n{text}", "utf-8")
    (draw_across if study.across else draw)(study, points, results, out / "figure.png", part, reference)
    pictures = draw_pictures(study, points, runs, out) if study.pictures else None
    say(console, f"wrote {out / 'table.csv'}, table.md and figure.png{' and assignments.png' if pictures else ''}")


def tables(rows: Sequence[scores.Row], measures: Mapping[str, str]) -> list[Table]:
    """Builds what is printed: the scores, and below what runs measured of their prototypes, if they did.

    A budget or method that all rows share is left out, as a terminal is 80 columns wide.
    """
    names = scores.header(measures)
    lines = [dict(zip(names, scores.cells(row, measures), strict=True)) for row in rows]
    alike = {name for name in ("labelled", "method") if len({line[name] for line in lines}) == 1}
    first = [name for name in names if name not in {*alike, *measures.values()}]
    second = [name for name in names if name in {"labelled", "method", "point", *measures.values()} - alike]
    found = []
    for columns in (first, second) if any(row.measures for row in rows) else (first,):
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in columns:
            words = name in ("labelled", "method", "point")
            table.add_column(name, overflow="fold", no_wrap=words, justify="left" if words else "right")
        for line in lines:
            table.add_row(*(line[name] for name in columns))
        found.append(table)
    return found


def draw(
    study: Study, points: Sequence[Point], results: Sequence[RunResult], path: Path, part: str, reference: str
) -> None:
    """Draws the figure: along its axis what the study varies, with a curve per method unless that is the method."""
    from mpamatch.report.study import Curve, draw_study

    found, references = scores.by_key(results, part), plans.references(study, points)
    ious = {row.key: row.miou for row in scores.table_rows(results, references)}
    measured = scores.measured(results, dict(study.measures))
    curves: dict[str, Curve] = {}
    for point in points:
        if point.key not in found:
            continue
        name = study.name if study.varies == "methods" else point.method
        curve, along = curves.setdefault(name, Curve(name, {}, {})), plans.along(study, point)
        curve.scores[along] = found[point.key]
        difference = scores.paired(found[point.key], found.get(references[point.key], {}))
        if difference and references[point.key] != point.key:
            curve.differences[along] = (difference.mean, difference.low, difference.high)
        curve.miou[along] = ious[point.key]
        for name, heading in study.measures:
            if name in measured[point.key]:
                curve.measures.setdefault(heading, {})[along] = measured[point.key][name]
    values = list(dict.fromkeys(plans.along(study, point) for point in points))
    axis = plans.axis_name(study, points)
    draw_study(path, list(curves.values()), values, title=study.question, axis=axis, part=part, reference=reference)


def draw_across(
    study: Study, points: Sequence[Point], results: Sequence[RunResult], path: Path, part: str, reference: str
) -> None:
    """Draws the figure of a study of two fields: heat maps of the means and of the differences, a row per method."""
    from mpamatch.report.study import Grid, draw_grid

    assert study.across is not None
    found, references = scores.by_key(results, part), plans.references(study, points)
    grids: dict[str, Grid] = {}
    for point in points:
        if point.key not in found:
            continue
        grid, cell = grids.setdefault(point.method, Grid(point.method, {}, {})), (point.value, point.across)
        grid.scores[cell] = found[point.key]
        difference = scores.paired(found[point.key], found.get(references[point.key], {}))
        if difference and references[point.key] != point.key:
            grid.differences[cell] = (difference.mean, difference.low, difference.high)
    values, across = (list(dict.fromkeys(one)) for one in zip(*((p.value, p.across) for p in points), strict=True))
    axes = (study.axis, study.across.axis)
    draw_grid(
        path, list(grids.values()), values, across, title=study.question, axes=axes, part=part, reference=reference
    )


def draw_pictures(study: Study, points: Sequence[Point], runs: Sequence[StudyRun], out: Path) -> Path | None:
    """Draws a validation image, or else a test image, with the nearest prototypes of every point's first finished run;
    None if there is no such run or image."""
    from mpamatch.report.prototypes import Assigned, draw_assignments

    about = read_json(out / "study.json")
    prepared = load_prepared(Path(about["data"]))
    chosen = _shown_image(prepared)
    if chosen is None:
        return None
    image, truth = chosen
    rows, viewer = list[Assigned](), None
    for point in points:
        mine = (run for run in runs if (run.labelled, run.method, run.trial) == point.key)
        folder = next((path for run in mine if last_checkpoint(path := out / "runs" / run.name).is_file()), None)
        if folder is None:
            continue
        viewer = PrototypeViewer(folder, "cpu")
        look = viewer.look(image)
        name = f"{plans.along(study, point)}{f', {point.method}' if point.method != points[0].method else ''}"
        top, left = ((a - b) // 2 for a, b in zip(truth.shape, look.label.shape, strict=True))
        part = truth[top : top + look.label.shape[0], left : left + look.label.shape[1]]
        labels = {"mask": part, "prediction": look.label}
        rows.append(Assigned(f"K = {name}", look.image, labels, look.nearest, look.cosine.shape[1]))
    if viewer is None:
        return None
    names, colours = viewer.settings.class_names, viewer.settings.colours
    return draw_assignments(out / "assignments.png", rows, colours, names, title=study.question)


def _shown_image(prepared: Prepared) -> tuple[np.ndarray, np.ndarray] | None:
    """Chooses the image and label of the first labelled ones for validation, or else test, that show most classes."""
    names = prepared.labelled("validation") or prepared.labelled("test")
    pairs = [ImageCache(prepared, cache_mb=0).labelled(name) for name in names[:SHOWN]]
    return max(pairs, key=lambda pair: len(np.unique(pair[1])), default=None)


def _say_lacking(study: Study, console: Console) -> None:
    """Says which values were left out, and what they lack."""
    lacking = plans.default_values(study)[1]
    for name, missing in lacking.items():
        say(console, f"left out: {name}: {missing}")
    if lacking:
        say(
            console,
            "In this study --values NAME=FILE gives an encoder its weights, such as --values conch=FILE,minilm.",
        )


def _across(study: Study, arguments: argparse.Namespace) -> list[str]:
    if study.across is None:
        if arguments.across is not None:
            raise InputError(f"--across: study {study.name} varies one thing; name its values with --values.")
        return []
    return _words(arguments.across, study.across.values, "--across")


def _check_numbers(arguments: argparse.Namespace) -> None:
    for name, least in (("seeds", 1), ("first_seed", 0), ("jobs", 0)):
        if getattr(arguments, name) < least:
            option = name.replace("_", "-")
            raise InputError(f"--{option}: expected at least {least}, got {getattr(arguments, name)}.")
    if not (arguments.recipe or arguments.config):
        raise InputError("study: name the settings with --recipe NAME or --config FILE (mpamatch info lists recipes).")


def _methods(study: Study, arguments: argparse.Namespace) -> list[str]:
    methods = _words(arguments.methods, study.methods, "--methods")
    for method in methods:
        METHODS.find(method)
    return methods


def _values(study: Study, arguments: argparse.Namespace) -> list[str]:
    if arguments.values and study.varies == "methods":
        raise InputError(f"--values: study {study.name} compares methods; name them with --methods.")
    return _words(arguments.values, plans.default_values(study)[0], "--values")


def _words(given: str | None, otherwise: Sequence[str], option: str) -> list[str]:
    """Splits `given` at its commas, each word once; `otherwise` if it is None. Raises InputError for an empty word."""
    words = list(otherwise) if given is None else [word.strip() for word in given.split(",")]
    if not all(words):
        raise InputError(f"{option} {given!r}: expected words with commas between them.")
    return list(dict.fromkeys(words))


def _labelled(study: Study, arguments: argparse.Namespace, split: str | None) -> str:
    """Chooses the budget of every point, or the name of the one split that all seeds share."""
    if study.varies == "labels" and (arguments.labelled or split):
        given = "--labelled" if arguments.labelled else "data.split"
        raise InputError(f"{given}: study labels draws its own splits; say which with --values, such as 5%,10%.")
    if arguments.labelled and split:
        raise InputError("--labelled: draws a split per seed; leave it out where data.split names one for all seeds.")
    return split or arguments.labelled or LABELLED


def _check_parts(prepared: Prepared, sweep: Sweep) -> None:
    if not prepared.labelled("validation") and not sweep.test:
        raise InputError(f"{prepared.root}: its validation part has no labelled image to score; add --test.")
    if sweep.test and not prepared.labelled("test"):
        raise InputError(f"{prepared.root}: its test part has no labelled image; leave out --test.")


def _claim(study: Study, sweep: Sweep, flags: Sequence[str]) -> None:
    """Writes study.json, what the folder's runs share. Raises InputError if the folder holds runs of other settings."""
    path = Path(sweep.out) / "study.json"
    shared = {name: value for name, value in asdict(sweep).items() if name not in ("out", "test")}
    about = {"study": study.name, **shared, "data": str(Path(sweep.data).resolve()), "flags": list(flags)}
    with alone(path.parent / LOCK, f"{path}: another command begins there; wait for it.", patience=60):
        if not path.exists():
            write_json(path, about)
            return
        before = read_json(path)
    if not isinstance(before, dict):
        raise InputError(f"{path}: is no record of a study; give another --out.")
    for name, value in about.items():
        if before.get(name) != value:
            raise InputError(
                f"{path}: holds runs with {name} {shown(before.get(name))}, not {shown(value)}; give another --out, or "
                "the same settings."
            )
