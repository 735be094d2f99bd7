"""`mpamatch study NAME`: sweeps one choice over paired seeds and makes a table and a figure."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mpamatch import ranks
from mpamatch.commands.train import quiet_libraries
from mpamatch.console import new_console, say
from mpamatch.data.prepared import Prepared
from mpamatch.data.splits import draw_splits, save_split
from mpamatch.engine.build import open_data
from mpamatch.engine.config import flags_for, load_config
from mpamatch.errors import InputError
from mpamatch.files import read_json, replacing, write_json
from mpamatch.methods import METHODS
from mpamatch.studies import plans, scores
from mpamatch.studies.plans import Point, Study
from mpamatch.studies.sweep import RunResult, StudyRun, Sweep, do_runs, read_results

LABELLED = "10%"


def run(arguments: argparse.Namespace) -> int:
    """Does the runs that are missing, then writes table and figure; returns 1 if a run failed, else 0."""
    study = plans.find_study(arguments.study)
    console = new_console()
    sweep, runs, points, left_out = plan(study, arguments)
    say(console, f"{study.question} {len(runs)} runs in {sweep.out}")
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
    methods, flags = _methods(study, arguments), [*arguments.flags, *steps]
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
    points = plans.points(study, methods, _values(study, arguments), labelled)
    budgets = list(dict.fromkeys(point.labelled for point in points))
    drawn = {} if base.split else draw_splits(prepared, budgets, seeds)
    kept = plans.possible(points, drawn)
    splits = {(labelled, seed): labelled for seed in seeds} | {key: split.name for key, split in drawn.items()}
    runs = plans.planned_runs(study, kept, seeds, splits, sweep, flags, prepared.class_names)
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
    rows, part = scores.table_rows(results, plans.references(study, points)), scores.part_scored(results)
    reference = plans.reference_name(study, points)
    about = f"{part} mDice, mean ± sd over seeds; differences to {reference}"
    shown = Table(title=f"{study.name}: {about}", title_justify="left")
    for column in scores.HEADER:
        shown.add_column(column)
    for row in rows:
        shown.add_row(*scores.cells(row))
    console.print(shown)
    say(console, "The checkpoint of every run is the best on validation.")
    if part == "validation":
        say(console, "So validation scores flatter every point; --test adds the test part.")
    scores.write_csv(out / "table.csv", rows, part)
    with replacing(out / "table.md") as temporary:
        temporary.write_text(f"{study.question} {about[0].upper()}{about[1:]}.\n\n{scores.markdown(rows)}", "utf-8")
    draw(study, points, results, out / "figure.png", part, reference)
    say(console, f"wrote {out / 'table.csv'}, table.md and figure.png")


def draw(
    study: Study, points: Sequence[Point], results: Sequence[RunResult], path: Path, part: str, reference: str
) -> None:
    """Draws the figure: along its axis what the study varies, with a curve per method unless that is the method."""
    from mpamatch.report.study import Curve, draw_study

    found, references = scores.by_key(results, part), plans.references(study, points)
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
    values = list(dict.fromkeys(plans.along(study, point) for point in points))
    axis = plans.axis_name(study, points)
    draw_study(path, list(curves.values()), values, title=study.question, axis=axis, part=part, reference=reference)


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
    return _words(arguments.values, study.values, "--values")


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
    if not path.exists():
        write_json(path, about)
        return
    before = read_json(path)
    for name, value in about.items():
        if before.get(name) != value:
            raise InputError(
                f"{path}: holds runs with {name} {before.get(name)!r}, not {value!r}; give another --out, or the same "
                "settings."
            )
