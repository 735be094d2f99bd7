"""The studies: what each varies, over which values, and what every point is compared with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mpamatch.data.splits import Split, read_budget
from mpamatch.engine.config import Config, flags_for
from mpamatch.errors import InputError, unknown
from mpamatch.methods import METHODS
from mpamatch.methods.towers import TEXT, descriptions
from mpamatch.models.text_encoders import MINILM, text_encoders
from mpamatch.settings import fields_of
from mpamatch.studies.sweep import StudyRun, Sweep

NO_TEXT = "none"  # the point of `prompts` without text prototypes
WITH_SEED = ("shuffled", "random")  # prompts that are drawn anew for every seed


@dataclass(frozen=True)
class Study:
    """A question, and the runs that answer it.

    Attributes:
        varies: a field of the configuration; or "labels" (the budget) or "methods".
        axis: what is varied, in words.
        values: of what is varied.
        reference: the value that the others are compared with; None: methods are compared with the first one, at the
            same budget.
        text: whether text prototypes are switched on (MiniLM) if the recipe has none.
    """

    name: str
    question: str
    varies: str
    axis: str
    values: tuple[str, ...]
    reference: str | None
    methods: tuple[str, ...]
    text: bool = False


STUDIES = {
    study.name: study
    for study in (
        Study(
            "prototypes",
            "How many image prototypes does a class need?",
            varies="method.prototypes",
            axis="image prototypes per class, K",
            values=("1", "3", "5", "10", "20"),
            reference="10",
            methods=("mpamatch",),
        ),
        Study(
            "threshold",
            "How sure must a pseudo-label be?",
            varies="method.threshold",
            axis="confidence threshold τ",
            values=("0.8", "0.9", "0.95", "0.99"),
            reference="0.95",
            methods=("mpamatch",),
        ),
        Study(
            "tokens",
            "Do learnable context tokens before the descriptions help, and how many?",
            varies="method.context_tokens",
            axis="CoOp context tokens",
            values=("0", "1", "2", "4"),
            reference="0",
            methods=("mpamatch",),
            text=True,
        ),
        Study(
            "prompts",
            "How much do the words of the class descriptions matter?",
            varies="method.prompts",
            axis="class descriptions",
            values=("pathology", "generic", "shuffled", "random", NO_TEXT),
            reference="pathology",
            methods=("mpamatch",),
            text=True,
        ),
        Study(
            "labels",
            "How many labels does a method need?",
            varies="labels",
            axis="labelled patients",
            values=("1%", "5%", "10%", "25%", "50%", "100%"),
            reference=None,
            methods=("supervised", "mpamatch"),
        ),
        Study(
            "seeds",
            "Do methods differ beyond the luck of the draw?",
            varies="methods",
            axis="method",
            values=("recipe",),
            reference=None,
            methods=("supervised", "fixmatch", "unimatch", "mpamatch"),
        ),
    )
}
OWN_FIELDS = ("method.name", "engine.seed")  # of every study


@dataclass(frozen=True)
class Point:
    """One value of a study for one method on one budget."""

    method: str
    labelled: str
    value: str  # of what the study varies, if that is a field
    trial: str  # name of the settings: prototypes-10

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.labelled, self.method, self.trial)


def find_study(name: str) -> Study:
    """Finds the study called `name`. Raises InputError, with the nearest right name, if there is none."""
    if name not in STUDIES:
        raise unknown("study", name, STUDIES)
    return STUDIES[name]


def points(study: Study, methods: Sequence[str], values: Sequence[str], labelled: str) -> list[Point]:
    """Lists every point once, methods side by side."""
    budgets = values if study.varies == "labels" else (labelled,)
    field = study.varies.partition("method.")[2]
    trials = [(value, f"{field}-{value}") for value in values] if field else [("", "recipe")]
    return [Point(method, budget, *trial) for budget in budgets for trial in trials for method in methods]


def along(study: Study, point: Point) -> str:
    """Returns the value of a point on the study's axis."""
    return {"labels": point.labelled, "methods": point.method}.get(study.varies, point.value)


def axis_name(study: Study, found: Sequence[Point]) -> str:
    """Says what lies along the study's axis; for `labels` what its budgets count, patients or images."""
    if study.varies != "labels":
        return study.axis
    return f"labelled {' or '.join(sorted({read_budget(point.labelled).unit for point in found}))}"


def possible(found: Sequence[Point], splits: Mapping[tuple[str, int], Split]) -> list[Point]:
    """Leaves out points whose method learns from unlabelled images if their budget leaves none."""
    full = {budget for (budget, _), split in splits.items() if len(split.images) == split.of_images}
    return [point for point in found if point.labelled not in full or not METHODS[point.method].strong_views]


def references(study: Study, found: Sequence[Point]) -> dict[tuple[str, str, str], tuple[str, str, str]]:
    """Finds the key of the point that each is compared with: that of the reference value, or of the first method.

    If the reference value is not among the values, the first value takes its place.
    """

    def group(point: Point) -> tuple[str, str]:
        return (point.labelled, point.method if study.reference else point.value)

    first: dict[tuple[str, str], Point] = {}
    for point in found:
        if group(point) not in first or point.value == study.reference:
            first[group(point)] = point
    return {point.key: first[group(point)].key for point in found}


def reference_name(study: Study, found: Sequence[Point]) -> str:
    """Says in words what `references` compares with."""
    if study.reference is None:
        return f"{found[0].method} on the same labelled images"
    values = [point.value for point in found]
    return f"{study.varies} {study.reference if study.reference in values else values[0]}"


def planned_runs(
    study: Study,
    found: Sequence[Point],
    seeds: Sequence[int],
    splits: Mapping[tuple[str, int], str],  # (budget, seed) → name
    sweep: Sweep,
    flags: Sequence[str],
    class_names: Sequence[str],
) -> list[StudyRun]:
    """Plans the runs, seed by seed, so that an interrupted study holds whole pairs.

    Raises InputError if the configuration or the descriptions of a point are wrong, before anything runs.
    """
    planned: list[StudyRun] = []
    for seed in seeds:
        for point in found:
            own = (*flags_for(point.method, flags), *_settings(study, point, seed))
            split = splits[point.labelled, seed]
            planned.append(StudyRun(point.method, point.labelled, seed, split, point.trial, own))
    if study.text:
        planned = [_with_text(study, run, sweep) for run in planned]
    for run in planned[: len(found)]:
        _check(sweep.configuration(run), class_names)
    return planned


def check_flags(study: Study, methods: Sequence[str], flags: Sequence[str]) -> None:
    """Raises InputError for a field that the study sets itself or that none of its methods has."""
    for flag in flags:
        name = flag[2:].partition("=")[0]
        if not flag.startswith("--"):
            continue
        if name in (*OWN_FIELDS, study.varies):
            option = {"method.name": "--methods", "engine.seed": "--seeds"}.get(name, "--values")
            raise InputError(f"study {study.name}: sets {name} itself; say what it takes with {option}.")
        known = {f"method.{field}" for method in methods for field in fields_of(METHODS[method].configuration)}
        if name.startswith("method.") and name not in known:
            raise unknown("field", name, known)


def _settings(study: Study, point: Point, seed: int) -> list[str]:
    """Lists the flags that set a point's value."""
    if not study.varies.startswith("method."):
        return []
    if study.name == "prompts" and point.value == NO_TEXT:
        return ["--method.text_encoder", "none"]
    own = [f"--{study.varies}", point.value]
    return [*own, "--method.prompt_seed", str(seed)] if point.value in WITH_SEED else own


def _with_text(study: Study, run: StudyRun, sweep: Sweep) -> StudyRun:
    """Adds MiniLM to the run unless the recipe or a flag says which text encoder to take, or none."""
    if any(flag.partition("=")[0] == "--method.text_encoder" for flag in run.flags):
        return run
    config = sweep.configuration(replace(run, flags=()))  # its own settings need not make sense without text
    if TEXT not in config.trains.towers or TEXT.encoder(config.method):
        return run
    missing = text_encoders()[MINILM]
    if missing:
        raise InputError(
            f"study {study.name}: needs text prototypes; name an encoder with --method.text_encoder, "
            f"or bring the offline one ({missing})."
        )
    return replace(run, flags=(*run.flags, "--method.text_encoder", MINILM))


def _check(config: Config, class_names: Sequence[str]) -> None:
    """Raises InputError if the descriptions do not fit the classes."""
    if TEXT in config.trains.towers and TEXT.encoder(config.method):
        descriptions(config.method, class_names)
