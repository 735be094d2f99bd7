"""Means over seeds and paired differences, in percent of mDice."""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from scipy import stats

from mpamatch.files import replacing
from mpamatch.studies.sweep import RunResult

Key = tuple[str, str, str]  # labelled, method, trial


@dataclass(frozen=True)
class Difference:
    """The mean difference between two points over the seeds that both have.

    Attributes:
        pairs: seeds.
        mean: in points of mDice.
        error: its standard error.
        low: of its 95 % interval, by Student's t.
        high: of the same interval.
    """

    pairs: int
    mean: float
    error: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """A row of the table: a point of a study over its seeds.

    Attributes:
        mean: mDice in percent.
        sd: its standard deviation over seeds; NaN for one seed.
        difference: to the reference; None for the reference itself and for fewer than two pairs.
        seconds: per step, the median over seeds.
        miou: mIoU in percent; NaN if a run has none.
        measures: what the runs measured of their prototypes, by name: the mean over the seeds that have it.
    """

    labelled: str
    method: str
    trial: str
    seeds: int
    mean: float
    sd: float
    difference: Difference | None
    seconds: float
    miou: float = math.nan
    measures: Mapping[str, float] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        """The point, as `by_key` names it."""
        return (self.labelled, self.method, self.trial)


def part_scored(results: Sequence[RunResult]) -> str:
    """Finds the part that all runs have been scored on: test, or validation if one lacks a score on the test part."""
    return "test" if results and all("test" in result for result in results) else "validation"


def score(result: RunResult, part: str) -> float:
    """Returns the mDice of a run in percent; NaN if every pixel of the part is ignored."""
    found = result["test"]["mdice"] if part == "test" else result["validation_mdice"]
    return math.nan if found is None else 100 * found


def miou(result: RunResult, part: str) -> float:
    """Returns the mIoU of a run in percent; NaN for a result from before it was kept."""
    found = result["test"].get("miou") if part == "test" else result.get("validation_miou")
    return math.nan if found is None else 100 * found


def measured(results: Sequence[RunResult], names: Iterable[str]) -> dict[Key, dict[str, float]]:
    """Averages what runs measured of their prototypes: point → name → mean over the seeds that have it.

    A cosine of exactly 0 is left out: it stands for no two prototypes to compare, as within a class that has one.
    """
    found: dict[Key, dict[str, list[float]]] = {}
    for result in results:
        of_point = found.setdefault((result["labelled"], result["method"], result["trial"]), {})
        for name in names:
            value = result.get("prototypes", {}).get(name)
            if value is not None and not (value == 0 and "cosine" in name):
                of_point.setdefault(name, []).append(value)
    return {key: {name: float(np.mean(values)) for name, values in of.items()} for key, of in found.items()}


def by_key(results: Sequence[RunResult], part: str) -> dict[Key, dict[int, float]]:
    """Groups scores: point → seed → mDice in percent, in the order of the results."""
    found: dict[Key, dict[int, float]] = {}
    for result in results:
        key = (result["labelled"], result["method"], result["trial"])
        found.setdefault(key, {})[result["seed"]] = score(result, part)
    return found


def paired(mine: Mapping[int, float], other: Mapping[int, float]) -> Difference | None:
    """Computes the difference of `mine` to `other` over the seeds that both have; None for fewer than two."""
    both = sorted(set(mine) & set(other))
    if len(both) < 2:
        return None
    difference = np.array([mine[seed] - other[seed] for seed in both])
    mean, error = float(difference.mean()), float(difference.std(ddof=1) / math.sqrt(len(both)))
    half = float(stats.t.ppf(0.975, len(both) - 1)) * error
    return Difference(len(both), mean, error, mean - half, mean + half)


def table_rows(results: Sequence[RunResult], references: Mapping[Key, Key], measures: Sequence[str] = ()) -> list[Row]:
    """Makes a row per point that has a result, in the order of `references` (point → the point it is compared with).

    `measures` names what each row shows of what the runs measured of their prototypes.
    """
    part = part_scored(results)
    scores, of_prototypes = by_key(results, part), measured(results, measures)
    seconds: dict[Key, list[float]] = {}
    ious: dict[Key, list[float]] = {}
    for result in results:
        key = (result["labelled"], result["method"], result["trial"])
        seconds.setdefault(key, []).append(result["seconds"])
        ious.setdefault(key, []).append(miou(result, part))
    rows = []
    for key, reference in references.items():
        if key in scores:
            values = np.array(list(scores[key].values()))
            sd = float(values.std(ddof=1)) if len(values) > 1 else math.nan
            difference = paired(scores[key], scores.get(reference, {})) if reference != key else None
            mean, median = float(values.mean()), float(np.median(seconds[key]))
            iou = float(np.mean(ious[key]))
            rows.append(Row(*key, len(values), mean, sd, difference, median, iou, of_prototypes[key]))
    return rows


def header(measures: Mapping[str, str]) -> list[str]:
    """Returns the headings of `cells`; `measures`: what rows show of prototypes → its heading."""
    known = ["labelled", "method", "point", "seeds", "mDice, %", "− reference ± se", "95 % interval", "mIoU, %"]
    return [*known, *measures.values(), "s/step"]


def cells(row: Row, measures: Iterable[str] = ()) -> list[str]:
    """Formats a row; the cells stand under `header`."""
    spread = "" if math.isnan(row.sd) else f" ± {row.sd:.2f}"
    change, interval = "–", "–"
    if row.difference:
        change = f"{row.difference.mean:+.2f} ± {row.difference.error:.2f}"
        interval = f"[{row.difference.low:+.2f}, {row.difference.high:+.2f}]"
    iou = "–" if math.isnan(row.miou) else f"{row.miou:.2f}"
    shown = [f"{row.measures[name]:.2f}" if name in row.measures else "–" for name in measures]
    known = [row.labelled, row.method, row.trial, str(row.seeds), f"{row.mean:.2f}{spread}", change, interval, iou]
    return [*known, *shown, f"{row.seconds:.2f}"]


def markdown(rows: Sequence[Row], measures: Mapping[str, str] | None = None) -> str:
    """Formats the rows as a Markdown table; `measures` as of `header`."""
    measures = measures or {}
    first = header(measures)
    lines = [first, ["---"] * len(first), *(cells(row, measures) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_csv(path: Path, rows: Sequence[Row], part: str, measures: Sequence[str] = ()) -> None:
    """Writes the rows unrounded; scores and differences are percent of mDice on `part`, an empty cell has no number.

    Behind them stand mIoU in percent and the `measures` of prototypes by their names in metrics.jsonl.
    """
    names = ("labelled", "method", "point", "seeds", "part", "mean", "sd")
    of_difference = ("pairs", "difference", "standard_error", "low", "high")
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*names, *of_difference, "seconds_per_step", "miou", *measures])
        for row in rows:
            sd = "" if math.isnan(row.sd) else row.sd
            difference = list(asdict(row.difference).values()) if row.difference else [""] * len(of_difference)
            behind = ["" if math.isnan(row.miou) else row.miou, *(row.measures.get(name, "") for name in measures)]
            known = [row.labelled, row.method, row.trial, row.seeds, part, row.mean, sd]
            writer.writerow([*known, *difference, row.seconds, *behind])
