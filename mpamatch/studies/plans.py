"""What a study runs: its points, the settings of each, and the point that each is compared with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mpamatch.data.splits import Split, read_budget
from mpamatch.engine.build import settled
from mpamatch.engine.config import Config, flags_for
from mpamatch.errors import InputError, unknown
from mpamatch.methods import METHODS
from mpamatch.methods.towers import TEXT, descriptions
from mpamatch.models.text_encoders import MINILM, text_encoders
from mpamatch.settings import fields_of, fields_under
from mpamatch.studies.catalogue import NONE, Study
from mpamatch.studies.sweep import StudyRun, Sweep

WITH_SEED = ("shuffled", "random")  # prompts that are drawn anew for every seed
OWN_FIELDS = ("method.name", "engine.seed")  # of every study
ANY = "open_clip:MODEL"  # stands for many encoders, of which none is chosen by itself
# What each point of `terms` sets. Without weight the prototypes move no weight of the network, so `none` trains by
# UniMatch's terms alone, with the weights that they have in MPAMatch.
TERMS = {
    NONE: {"method.weight_prototype": "0", "method.text_encoder": NONE, "method.second_opinion": NONE},
    "image": {"method.image_prototypes": "true", "method.text_encoder": NONE},
    "text": {"method.image_prototypes": "false"},
    "both": {"method.image_prototypes": "true"},
}


@dataclass(frozen=True)
class Point:
    """One value of a study for one method on one budget.

    Attributes:
        value: of what the study varies, unless that is the budget or the method.
        trial: name of the settings: prototypes-10.
        across: the value of a second field, if the study varies two.
    """

    method: str
    labelled: str
    value: str
    trial: str
    across: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.labelled, self.method, self.trial)


def default_values(study: Study) -> tuple[tuple[str, ...], dict[str, str]]:
    """Returns the values that a study takes unless others are asked for, and those left out, each with the reason.

    Of text encoders these are the ones whose weights are at hand, and none; no network is asked.
    """
    if study.values:
        return study.values, {}
    known = {name: missing for name, missing in text_encoders().items() if name != ANY}
    here = [name for name, missing in known.items() if not missing]
    return (*here, NONE), {name: missing for name, missing in known.items() if missing}


def points(
    study: Study, methods: Sequence[str], values: Sequence[str], labelled: str, across: Sequence[str] = ()
) -> list[Point]:
    """Lists every point once, methods side by side. Raises InputError for two values of one name."""
    budgets = values if study.varies == "labels" else (labelled,)
    trials = [("", "recipe", "")]
    if study.varies not in ("labels", "methods"):
        trials = [(value, _trial(study, value, other), other) for value in values for other in across or ("",)]
    names = [trial for _, trial, _ in trials]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InputError(
            f"study {study.name}: --values names {twice} twice; compare its files in studies of their own."
        )
    return [Point(method, budget, *trial) for budget in budgets for trial in trials for method in methods]


def along(study: Study, point: Point) -> str:
    """Returns the value of a point on the study's axis."""
    return {"labels": point.labelled, "methods": point.method}.get(study.varies, shown(study, point.value))


def shown(study: Study, value: str) -> str:
    """Returns a value as tables and figures show it: of NAME=FILE the name."""
    name, _, weights = value.partition("=")
    return name if study.name == "text-encoders" and Path(weights).is_file() else value


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

    value, across = _reference_values(study, found)
    first: dict[tuple[str, str], Point] = {}
    for point in found:
        if group(point) not in first or (study.reference and (point.value, point.across) == (value, across)):
            first[group(point)] = point
    return {point.key: first[group(point)].key for point in found}


def reference_name(study: Study, found: Sequence[Point]) -> str:
    """Says in words what `references` compares with."""
    if study.reference is None:
        return f"{found[0].method} on the same labelled images"
    value, across = _reference_values(study, found)
    other = f" with {study.across.varies} {across}" if study.across else ""
    return f"{study.varies} {shown(study, value)}{other}"


def planned_runs(
    study: Study,
    found: Sequence[Point],
    seeds: Sequence[int],
    splits: Mapping[tuple[str, int], str],  # (budget, seed) → name
    sweep: Sweep,
    flags: Sequence[str],
    class_names: Sequence[str],
    set_name: str = "",
) -> list[StudyRun]:
    """Plans the runs, seed by seed, so that an interrupted study holds whole pairs.

    Raises InputError if the configuration, the weights or the descriptions of a point are wrong or missing, before
    anything runs.
    """
    planned: list[StudyRun] = []
    for seed in seeds:
        for point in found:
            own = _settings(study, point, seed)
            given = _applicable(point.method, flags_for(point.method, flags), own)
            words = (word for field, value in own.items() for word in (f"--{field}", value))
            split = splits[point.labelled, seed]
            planned.append(StudyRun(point.method, point.labelled, seed, split, point.trial, (*given, *words)))
    if study.text:
        planned = [_with_text(study, run, sweep) for run in planned]
    for run in planned[: len(found)]:
        _check(settled(sweep.configuration(run), set_name), class_names)
    return planned


def check_flags(study: Study, methods: Sequence[str], flags: Sequence[str]) -> None:
    """Raises InputError for a field that the study sets itself or that none of its methods has."""
    for flag in flags:
        name = flag[2:].partition("=")[0]
        if not flag.startswith("--"):
            continue
        if name in (*OWN_FIELDS, *study.own_fields):
            option = {"method.name": "--methods", "engine.seed": "--seeds"}.get(name, "--values")
            if study.across and name == study.across.varies:
                option = "--across"
            elif name in ("method.text_weights", "method.text_tokenizer"):
                option = "--values NAME=FILE, beside which a tokenizer's file may lie"
            raise InputError(f"study {study.name}: sets {name} itself; say what it takes with {option}.")
        known = {f"method.{field}" for method in methods for field in fields_of(METHODS[method].configuration)}
        if name.startswith("method.") and name not in known:
            raise unknown("field", name, known)


def _trial(study: Study, value: str, across: str) -> str:
    """Names the settings of a point."""
    name = f"{study.varies.rpartition('.')[2]}-{shown(study, value)}"
    return f"{name}-{study.across.varies.rpartition('.')[2]}-{across}" if study.across else name


def _settings(study: Study, point: Point, seed: int) -> dict[str, str]:
    """Returns the fields that make a point, each with its word."""
    if study.name == "terms":
        if point.value not in TERMS:
            raise unknown("value of study terms", point.value, TERMS)
        return TERMS[point.value]
    if not study.of_field:
        return {}
    if point.value == NONE and study.name in ("prompts", "text-encoders"):
        return {"method.text_encoder": NONE}
    if study.name == "text-encoders":
        name, _, weights = point.value.partition("=")
        return {study.varies: name, **({"method.text_weights": weights} if weights else {})}
    own = {study.varies: point.value, **({study.across.varies: point.across} if study.across else {})}
    drawn = study.name == "prompts" and point.value in WITH_SEED
    if study.name == "prompt-noise" and point.value.strip("0."):
        drawn = True
    return {**own, "method.prompt_seed": str(seed)} if drawn else own


def _applicable(method: str, flags: Sequence[str], own: Mapping[str, str]) -> list[str]:
    """Leaves out flags that do nothing at a point without text or image prototypes: others of the study need them."""
    switched_off = [field for field, value in own.items() if value in (NONE, "false")]
    configuration = METHODS[method].configuration
    idle = {f"--{field}" for field in switched_off}
    for field in switched_off:
        idle |= {f"--method.{name}" for name in fields_under(configuration, field.removeprefix("method."))}
    pairs = zip(flags[::2], flags[1::2], strict=True)
    return [word for flag, value in pairs if flag not in idle for word in (flag, value)]


def _reference_values(study: Study, found: Sequence[Point]) -> tuple[str, str]:
    """Returns the reference on both axes; where it is not among the values, the first of them."""
    values, across = [point.value for point in found], [point.across for point in found]
    names = [shown(study, value).partition("=")[0] if study.name == "text-encoders" else value for value in values]
    value = values[names.index(study.reference)] if study.reference in names else values[0]
    wanted = study.across.reference if study.across else ""
    return value, wanted if wanted in across else across[0]


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
