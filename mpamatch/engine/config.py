"""The configuration of a run: settings classes beside what they configure, recipes in YAML, fields as options.

Values go one way: recipe < file < flags, a mapping of sections → the settings classes, which check them once.
"""

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from annotated_types import Ge, Lt

from mpamatch.data.config import DataConfig
from mpamatch.data.kinds import kinds
from mpamatch.device import on_gpu
from mpamatch.errors import InputError, shown, unknown
from mpamatch.files import read_json, read_yaml, replacing
from mpamatch.methods import METHODS, Method
from mpamatch.models.build import network_config
from mpamatch.models.network import NETWORKS, NetworkConfig
from mpamatch.settings import Count, Fraction, NonNegative, fields_of, from_words, help_of, idle_fields, settings

DEFAULT_METHOD = "mpamatch"
START = "_start"  # in the folder of recipes: what all others start from, unless one says `start: false`
OF_ENCODER = ("encoder_norm", "frozen_stages", "skips")  # what a recipe says of its own encoder alone
OPTIONS = ("recipe", "config", "run", "resume", "data")  # of `mpamatch train` beside the fields
SECTIONS = ("data", "model", "method", "engine")
_UNLABELLED = {"data.unlabelled_batch"}  # fields that do nothing for a method without unlabelled images
Content = dict[str, dict[str, Any]]  # section → field → value


@settings("engine")
class EngineConfig:
    """Settings of the training loop.

    Attributes:
        steps: optimizer steps.
        optimizer: adamw or sgd (momentum .9).
        learning_rate: at the first step; a pretrained encoder has model.encoder_lr_scale times as much.
        power: exponent of the polynomial decay of the learning rate to zero.
        weight_decay: of matrices and convolutions; norms and biases have none.
        precision: 32, bf16 (mixed) or 64 (for tests of exactness).
        device: auto (the GPU if there is one), cpu or cuda.
        seed: of initial weights and of all draws.
        compile: none; default (torch.compile turns the step into one graph); or reduce-overhead (the same, replayed as
            a CUDA graph on one GPU).
        accumulate: passes that a step's batch is cut into, for memory; each normalises by its own pixels.
        fused: whether the optimizer is one fused kernel.
        keep_memory: whether freed memory stays with the process on a CPU; if not, each step touches new pages.
        channels_last: memory layout of the network: true, false or auto (on a GPU, and on a CPU for encoders that are
            backbones of timm).
        validate_every: steps between validations; the weights that scored best are kept.
        save_every: steps between checkpoints to resume from.
        log_every: steps between lines of metrics.jsonl.
        overlap: of neighbouring windows in validation and prediction, as a share of their side.
    """

    steps: Count = 2000
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: NonNegative = 1e-3
    power: NonNegative = 0.9
    weight_decay: NonNegative = 0.01
    precision: Literal["32", "bf16", "64"] = "32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: Annotated[int, Ge(0), Lt(2**63)] = 0
    compile: Literal["none", "default", "reduce-overhead"] = "none"
    accumulate: Count = 1
    fused: bool = True
    keep_memory: bool = True
    channels_last: Literal["auto", "true", "false"] = "auto"
    validate_every: Count = 100
    save_every: Count = 100
    log_every: Count = 10
    overlap: Fraction = 0.25


@dataclass(frozen=True)
class Config:
    """All settings of a run; saved in its config.yaml.

    Attributes:
        recipe: the recipe or file that it started from; it names the run's folder.
        data: what it trains on and how crops are made.
        model: settings of the network that the method trains.
        method: settings of the method; its `name` chooses the class.
        engine: settings of the training loop.
    """

    recipe: str
    data: DataConfig
    model: Any
    method: Any
    engine: EngineConfig

    @property
    def trains(self) -> type[Method]:
        """The class of the method that the run trains."""
        return METHODS[self.method.name]


def recipes() -> list[str]:
    """Lists the names of the recipes that come with the package."""
    folder = resources.files("mpamatch.recipes")
    names = (entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    return sorted(name for name in names if name != START)


def load_config(recipe: str | None = None, file: Path | None = None, flags: Sequence[str] = ()) -> Config:
    """Makes a configuration from defaults < recipe < file < flags.

    Args:
        recipe: the name of a recipe of the package; None: none.
        file: a YAML file of sections data, model, method, methods, engine; None: none.
        flags: words of the command line, such as ["--method.threshold", "0.9"]; a name that no other field ends in may
            stand alone: ["--threshold", "0.9"].

    Raises:
        InputError: a field is unknown (the sentence names the nearest one), a value is wrong, or a field given by file
            or flag would do nothing with the method, network and values chosen.
    """
    own = _read_yaml(file) if file is not None else {}
    given = dict(_pairs(flags))
    device = str(given.get("engine.device") or (own.get("engine") or {}).get("device") or "auto")
    base = _recipe(recipe, on_gpu=on_gpu(device)) if recipe is not None else {}
    encoder = str(given.get("model.encoder") or (own.get("model") or {}).get("encoder") or "")
    content = _merged(_for_encoder(base, encoder), own)
    written = str((content.get("method") or {}).get("name") or "")  # the method that file and recipe are for
    method = METHODS.find(str(given.get("method.name") or written or DEFAULT_METHOD))
    classes = _classes(method)
    chosen = _for_method(content, method, written)
    _check_names(chosen, classes, str(file) if file else f"recipe {recipe!r}")
    made = _made(_merged(chosen, _flag_values(given, method, classes)), classes)
    saved = "recipe" in own  # by a run, with every field
    changed = [] if saved else _changed(_for_method(own, method, written), classes)
    _check_idle(made, method, [*given, *changed])
    return Config(recipe or (file.stem if file else "run"), **made)


def recipe_for(flags: Sequence[str]) -> str:
    """Names the recipe for the data that the flags give: `demo` without data.root.

    A prepared set has the recipe that its kind names for it (`Kind.recipes`), any other `folder`. Raises InputError if
    dataset.json is no JSON, or for flags as `full_names` does.
    """
    root = dict(_pairs(flags)).get("data.root")
    if root is None:
        return "demo"
    about = Path(root) / "dataset.json"
    content = read_json(about) if about.is_file() else {}  # a folder that is no prepared set is refused when it is read
    name = content.get("name") if isinstance(content, dict) else None
    known = {str(name): recipe for kind in kinds().values() for name, recipe in kind.recipes.items()}
    return known.get(str(name), "folder")


def load_saved(path: Path) -> Config:
    """Reads the configuration of a run, RUN/config.yaml. Raises InputError if it is missing or wrong."""
    if not path.is_file():
        raise InputError(f"{path.parent}: is no run folder (it has no {path.name}).")
    content = _read_yaml(path)
    model = content.get("model") or {}
    if "head" in model:  # of a run from before networks had settings of their own
        content["model"] = dataclasses.asdict(network_config(None, model))
    method = METHODS.find(str((content.get("method") or {}).get("name")))
    chosen, classes = _for_method(content, method, method.name), _classes(method)
    _check_names(chosen, classes, str(path))
    return Config(str(content.get("recipe", "run")), **_made(chosen, classes))


def full_names(flags: Sequence[str]) -> list[str]:
    """Writes out fields that are given by the last part of their name alone: --threshold .9 is --method.threshold .9.

    Raises InputError if several fields end in it, or if a word stands without a field or a field without a word.
    """
    return [word for field, word in _pairs(flags) for word in (f"--{field}", word)]


def flags_for(method: str, flags: Sequence[str]) -> list[str]:
    """Selects the flags for a method: not method.name, and no field that only other methods or networks have."""
    chosen = METHODS.find(method)
    others = _every_name() - {*_names(_classes(chosen))} | {"method.name"}
    if not chosen.strong_views:
        others |= _UNLABELLED
    return [word for field, word in _pairs(flags) if field not in others for word in (f"--{field}", word)]


def save_config(config: Config, path: Path) -> None:
    """Writes the resolved configuration as YAML that `load_saved` reads back to the same."""
    content = {name: dataclasses.asdict(getattr(config, name)) for name in SECTIONS}
    with replacing(path) as temporary:
        temporary.write_text(yaml.safe_dump({"recipe": config.recipe, **content}, sort_keys=False), encoding="utf-8")


def field_help() -> list[tuple[str, str, str]]:
    """Lists every field of every section, network and method: its name, its default and what it means.

    A field that not all networks or methods have is followed by the name of the one that has it: "model.head_kernel
    (transunet)".
    """
    lines = [*_help("data", DataConfig), *_help("model", NetworkConfig)]
    for network in NETWORKS.values():
        lines += _help("model", network.configuration, f" ({network.name})", fields_of(NetworkConfig))
    for method in METHODS.values():
        lines += _help("method", method.configuration, f" ({method.name})", ["name"])
    return [*lines, *_help("engine", EngineConfig)]


def _help(section: str, configuration: type, of: str = "", told: Collection[str] = ()) -> list[tuple[str, str, str]]:
    """The lines of the fields of a settings class but for those in `told`."""
    meaning = help_of(configuration)
    blank = configuration()
    return [
        (f"{section}.{name}{of}", str(getattr(blank, name)), meaning.get(name, ""))
        for name in fields_of(configuration)
        if name not in told
    ]


def _classes(method: type[Method]) -> dict[str, type]:
    """Returns the settings class of each section."""
    return {
        "data": DataConfig,
        "model": method.network.configuration,
        "method": method.configuration,
        "engine": EngineConfig,
    }


def _made(chosen: Content, classes: Mapping[str, type]) -> dict[str, Any]:
    """Makes the settings of each section, which check their values. Raises InputError for the first wrong one."""
    return {section: configuration(**chosen.get(section, {})) for section, configuration in classes.items()}


def _recipe(name: str, *, on_gpu: bool) -> Content:
    """Reads a recipe on top of what all start from, each with its part for a GPU. Raises InputError for other names."""
    if name not in recipes():
        raise unknown("recipe", name, recipes())
    own = _shipped(name)
    content: Content = {}
    for part in (_shipped(START), own) if own.pop("start", True) else (own,):
        of_gpu = part.pop("gpu", {})
        content = _merged(_merged(content, part), of_gpu if on_gpu else {})
    return content


def _shipped(name: str) -> Content:
    return yaml.safe_load((resources.files("mpamatch.recipes") / f"{name}.yaml").read_text(encoding="utf-8")) or {}


def _for_encoder(recipe: Content, encoder: str) -> Content:
    """Leaves out what a recipe says of its own encoder if another one is chosen."""
    model = recipe.get("model") or {}
    if encoder in ("", model.get("encoder")):
        return recipe
    return {**recipe, "model": {name: value for name, value in model.items() if name not in OF_ENCODER}}


def _read_yaml(path: Path) -> Content:
    """Reads the sections of a file, without empty ones. Raises InputError if one is unknown or holds no settings."""
    content = read_yaml(path) or {}
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected sections {', '.join(SECTIONS)}.")
    for section, values in content.items():
        if section not in (*SECTIONS, "methods", "recipe"):
            raise InputError(f"{path}: {unknown('section', str(section), SECTIONS)}")
        inner = list(values.values()) if section == "methods" and isinstance(values, dict) else []
        if section != "recipe" and not all(isinstance(one, dict | None) for one in (values, *inner)):
            raise InputError(
                f"{path}: {section}: expected settings such as engine: {{steps: 500}}, got {shown(values)}."
            )
    return {section: values for section, values in content.items() if values is not None}


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if nested else value
    return merged


def _for_method(content: Mapping[str, Any], method: type[Method], written: str) -> Content:
    """Selects the settings that hold for `method`: `methods: {name: settings}` is folded into `method`.

    If a flag chose another method than the one `written` for, the settings of that method do not apply, and of those of
    its network only what both networks have.
    """
    of_methods = content.get("methods") or {}
    for known in of_methods:
        METHODS.find(known)
    result = {section: dict(content[section]) for section in SECTIONS if content.get(section)}
    own = result.get("method", {})
    if written not in ("", method.name):
        own = {}
        known_here = fields_of(method.network.configuration)
        known_there = fields_of(METHODS.find(written).network.configuration)
        if "model" in result:
            result["model"] = {k: v for k, v in result["model"].items() if k in known_here or k not in known_there}
    result["method"] = {**(of_methods.get(method.name) or {}), **own, "name": method.name}
    return result


def _pairs(flags: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields field and word of each flag. Raises InputError as `full_names` does."""
    words = iter(flags)
    for flag in words:
        if not flag.startswith("--"):
            raise InputError(f"{flag!r}: expected a field such as --engine.steps before it.")
        field, has_value, word = flag[2:].partition("=")
        if not has_value:
            word = next(words, "--")
            if word.startswith("--"):
                raise InputError(f"{field}: expected a value after {flag}.")
        yield _full_name(field), word


def _full_name(field: str) -> str:
    """Returns the one field, of any method or network, whose name ends in `field` if that has no dot; else `field`.

    So a short name means the same whatever method a run trains. Raises InputError if several fields end in it.
    """
    if "." in field:
        return field
    found = sorted(name for name in _every_name() if name.partition(".")[2] == field)
    if len(found) > 1:
        raise InputError(f"--{field}: is short for {' and for '.join(found)}; write out which.")
    return found[0] if found else field


def _flag_values(given: Mapping[str, str], method: type[Method], classes: Mapping[str, type]) -> Content:
    """Reads the words of flags as values. Raises InputError for a field that the method lacks."""
    values: Content = {}
    for field, word in given.items():
        section, _, key = field.partition(".")
        if section not in classes or key not in fields_of(classes[section]):
            raise _unknown_flag(field, method, classes)
        values.setdefault(section, {})[key] = from_words(classes[section], key, word)
    return values


def _names(classes: Mapping[str, type]) -> list[str]:
    return [f"{section}.{name}" for section, configuration in classes.items() for name in fields_of(configuration)]


def _every_name() -> set[str]:
    """Names the fields of every method and network."""
    return {name for one in METHODS.values() for name in _names(_classes(one))}


def _check_names(content: Content, classes: Mapping[str, type], source: str) -> None:
    for section, values in content.items():
        for key in values:
            if key not in fields_of(classes[section]):
                raise InputError(f"{source}: {unknown('field', f'{section}.{key}', _names(classes))}")


def _unknown_flag(field: str, method: type[Method], classes: Mapping[str, type]) -> InputError:
    """Builds the error for a field that the chosen method lacks: it names the methods that have it, or a near name."""
    section, _, name = field.partition(".")
    owners = []
    if section == "method":
        owners = [one.name for one in METHODS.values() if name in fields_of(one.configuration)]
    elif section == "model":
        owners = [one.name for one in METHODS.values() if name in fields_of(one.network.configuration)]
    if owners:
        return InputError(f"{field}: does nothing for {method.name}; it is a field of {', '.join(sorted(owners))}.")
    short = [] if "." in field else [one.partition(".")[2] for one in _names(classes)]
    return unknown("field", field, [*_names(classes), *short, *OPTIONS])


def _changed(content: Content, classes: Mapping[str, type]) -> list[str]:
    """Lists the fields that a file sets to something else than their default."""
    blank = {section: configuration() for section, configuration in classes.items()}
    return [
        f"{section}.{name}"
        for section, values in content.items()
        for name, value in values.items()
        if getattr(blank[section], name) != value
    ]


def _check_idle(made: Mapping[str, Any], method: type[Method], given: Sequence[str]) -> None:
    """Raises InputError if a field among `given` does nothing with the method or the other values."""
    for field in given:
        if field in _UNLABELLED and not method.strong_views:
            raise InputError(f"{field}: does nothing for {method.name}, which takes no unlabelled images.")
    for section, config in made.items():
        for name, reason in idle_fields(config).items():
            if f"{section}.{name}" in given:
                raise InputError(f"{section}.{name}: does nothing unless {section}.{reason}.")
