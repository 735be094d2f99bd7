"""One configuration: dataclasses from next to what they configure, recipes in YAML, any field from the command line."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from mpamatch.data.config import DataConfig
from mpamatch.errors import InputError, unknown
from mpamatch.files import replacing
from mpamatch.methods import METHODS, config_class
from mpamatch.models.transunet import ModelConfig

DEFAULT_METHOD = "mpamatch"
OPTIONS = ("recipe", "config", "run", "resume")  # of `mpamatch train` beside the fields
COMPILE = ("none", "default", "reduce-overhead")
SECTIONS = ("data", "model", "method", "engine")


@dataclass
class EngineConfig:
    """The loop.

    Attributes:
        steps: optimizer steps.
        optimizer: adamw or sgd (momentum .9).
        learning_rate: of the heads, at the start.
        power: of the polynomial decay to zero.
        weight_decay: on matrices and convolutions.
        precision: 32, bf16 (mixed) or 64 (for tests of exactness).
        device: auto, cpu or cuda.
        seed: of weights and draws.
        compile: none; default (torch.compile turns the step into one graph); or reduce-overhead (the same, replayed as
            a CUDA graph on one GPU).
        accumulate: passes that a step's batch is cut into, for memory; each normalises by its own pixels.
        fused: whether the optimizer is one fused kernel.
        keep_memory: whether freed memory stays with the process on a CPU; off, each step touches new pages.
        channels_last: auto (on a GPU), true or false: the memory layout of the network.
        validate_every: steps between validations; the best one's weights are kept.
        save_every: steps between checkpoints to resume from.
        log_every: steps between lines of metrics.jsonl.
        overlap: of neighbouring windows in validation and prediction, as a share of the window.
    """

    steps: int = 2000
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    power: float = 0.9
    weight_decay: float = 0.01
    precision: str = "32"
    device: str = "auto"
    seed: int = 0
    compile: str = "none"
    accumulate: int = 1
    fused: bool = True
    keep_memory: bool = True
    channels_last: str = "auto"
    validate_every: int = 100
    save_every: int = 100
    log_every: int = 10
    overlap: float = 0.25

    def __post_init__(self) -> None:
        for name, choices in (
            ("optimizer", ("adamw", "sgd")),
            ("precision", ("32", "bf16", "64")),
            ("device", ("auto", "cpu", "cuda")),
            ("compile", COMPILE),
            ("channels_last", ("auto", "true", "false")),
        ):
            if str(getattr(self, name)) not in choices:
                raise unknown(f"engine.{name}", str(getattr(self, name)), choices)
        for name in ("steps", "accumulate", "validate_every", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise InputError(f"engine.{name}: expected at least 1, got {getattr(self, name)}.")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"engine.seed: expected 0 to 2^63 − 1, got {self.seed}.")
        for name in ("learning_rate", "power", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise InputError(f"engine.{name}: expected at least 0, got {getattr(self, name)}.")
        if not 0 <= self.overlap < 1:
            raise InputError(f"engine.overlap: expected 0 <= overlap < 1, got {self.overlap}.")


@dataclass
class Config:
    """Everything that defines a run; saved in its config.yaml."""

    recipe: str
    data: DataConfig
    model: ModelConfig
    method: Any  # one of the configurations in mpamatch.methods
    engine: EngineConfig


def recipes() -> list[str]:
    """The names of the recipes that come with the package."""
    folder = resources.files("mpamatch.recipes")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_config(recipe: str | None = None, file: Path | None = None, flags: Sequence[str] = ()) -> Config:
    """Dataclass defaults < recipe < file < flags such as ["--method.threshold", "0.9"].

    Raises InputError in one sentence that names the field and the nearest right one.
    """
    content: dict[str, Any] = {}
    if recipe is not None:
        content = _recipe(recipe)
    if file is not None:
        content = _merged(content, _read_yaml(file))
    name = str(_flag(flags, "method.name") or _get(content, "method", "name") or DEFAULT_METHOD)
    parser = _parser(name)
    values = dict(_flat(_for_method(content, name)))
    source = str(file) if file else f"recipe {recipe!r}"
    _check_keys(values, parser, source)
    _check_flags(flags, parser)
    try:
        parser.parse_object({**values, "method.name": name})  # refuses wrong types, which set_defaults would let pass
        parser.set_defaults({**values, "method.name": name})
        parsed = parser.parse_args(list(flags))
        made = parser.instantiate_classes(parsed)
    except InputError:
        raise
    except Exception as error:  # jsonargparse raises its own ArgumentError, TypeError or ValueError by case
        raise InputError(_one_sentence(error)) from error
    return Config(recipe or (file.stem if file else "run"), made.data, made.model, made.method, made.engine)


def field_help() -> str:
    """The help text of every field, for the default method."""
    return _parser(DEFAULT_METHOD).format_help()


def save_config(config: Config, path: Path) -> None:
    """Writes the resolved configuration as YAML that `load_config(file=…)` reads back to the same."""
    content = {name: dataclasses.asdict(getattr(config, name)) for name in SECTIONS}
    with replacing(path) as temporary:
        temporary.write_text(yaml.safe_dump({"recipe": config.recipe, **content}, sort_keys=False), encoding="utf-8")


def load_saved(path: Path) -> Config:
    """The configuration of a run folder."""
    if not path.is_file():
        raise InputError(f"{path.parent}: is no run folder (it has no {path.name}).")
    content = _read_yaml(path)
    config = load_config(file=path)
    config.recipe = str(content.get("recipe", "run"))
    return config


def _recipe(name: str) -> dict[str, Any]:
    if name not in recipes():
        raise unknown("recipe", name, recipes())
    return yaml.safe_load((resources.files("mpamatch.recipes") / f"{name}.yaml").read_text(encoding="utf-8")) or {}


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such configuration file.") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: cannot be read as YAML ({str(error).splitlines()[0]}).") from error
    if content is not None and not isinstance(content, dict):
        raise InputError(f"{path}: expected sections {', '.join(SECTIONS)}.")
    return _sections(content or {}, path)


def _sections(content: dict[Any, Any], path: Path) -> dict[str, Any]:
    """The sections of a file, without empty ones. Raises InputError for one that is unknown or holds no settings."""
    for section, values in content.items():
        if section not in (*SECTIONS, "methods", "recipe"):
            raise InputError(f"{path}: {unknown('section', str(section), SECTIONS)}")
        settings = list(values.values()) if section == "methods" and isinstance(values, dict) else []
        if section != "recipe" and not all(isinstance(one, dict | None) for one in (values, *settings)):
            raise InputError(f"{path}: {section}: expected settings such as engine: {{steps: 500}}, got {values!r}.")
    return {section: values for section, values in content.items() if values is not None}


def _parser(method: str) -> ArgumentParser:
    parser = ArgumentParser(prog="mpamatch train", exit_on_error=False, usage=None)
    sections = {
        "data": DataConfig,
        "model": ModelConfig,
        "method": config_class(method),
        "engine": EngineConfig,
    }
    for section, configuration in sections.items():
        parser.add_class_arguments(configuration, section)
    return parser


def _for_method(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The recipe with its `methods: {name: settings}` folded into `method`."""
    of_methods = content.get("methods") or {}
    for known in of_methods:
        if known not in METHODS:
            raise unknown("method", known, METHODS)
    result = {k: v for k, v in content.items() if k not in ("methods", "recipe")}
    own = dict(content.get("method") or {})
    if own.get("name", name) != name:  # the recipe's method was changed by a flag: its own settings do not apply
        own = {}
    result["method"] = {**(of_methods.get(name) or {}), **own, "name": name}
    return result


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if nested else value
    return merged


def _flat(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for section, values in content.items():
        if isinstance(values, Mapping):
            yield from ((f"{section}.{key}", value) for key, value in values.items())
        else:
            yield section, values


def _fields(parser: ArgumentParser) -> list[str]:
    return [key for key in parser.get_defaults().keys() if "." in key]  # noqa: SIM118 - a jsonargparse Namespace


def _check_keys(values: Mapping[str, Any], parser: ArgumentParser, source: str) -> None:
    for key in values:
        if key not in _fields(parser):
            raise InputError(f"{source}: {unknown('field', key, _fields(parser))}")


def _check_flags(flags: Sequence[str], parser: ArgumentParser) -> None:
    known = _fields(parser)
    expects_value = False
    for flag, after in zip(flags, [*flags, "--"][1:], strict=True):
        if flag.startswith("--"):
            key, has_value, _ = flag[2:].partition("=")
            if key not in known:
                raise unknown("field", key, [*known, *OPTIONS])
            if not has_value and after.startswith("--"):
                raise InputError(f"{key}: expected a value after {flag}.")
            expects_value = not has_value
        elif expects_value:
            expects_value = False
        else:
            raise InputError(f"{flag!r}: expected a field such as --engine.steps before it.")


def _flag(flags: Sequence[str], key: str) -> str | None:
    """The value of a flag; where it stands twice the last one counts, as for every other field."""
    found = None
    for place, flag in enumerate(flags):
        if flag == f"--{key}" and place + 1 < len(flags):
            found = flags[place + 1]
        if flag.startswith(f"--{key}="):
            found = flag.partition("=")[2]
    return found


def _get(content: Mapping[str, Any], section: str, key: str) -> Any:
    values = content.get(section)
    return values.get(key) if isinstance(values, Mapping) else None


def _one_sentence(error: Exception) -> str:
    """jsonargparse says `Parser key "a.b": Does not validate … Got value: x`; keep the key, the type and the value."""
    text = " ".join(str(error).split())
    key = re.search(r'key "([\w.]+)"|argument --?([\w.]+)', text)
    wanted = re.search(
        r"(?:Expected a|Expected|type) <?(?:class )?'?([\w\[\]., |]+?)'?>?[.:;]? (?:Got|Given|given)", text
    )
    got = re.search(r"(?:Got value|Given value): ?(.+?)(?: |$)", text)
    if key:
        expected = f"expected {wanted[1]}" if wanted else "has a value of the wrong type"
        return f"{key[1] or key[2]}: {expected}{', got ' + got[1] if got else ''}."
    return text if text.endswith(".") else f"{text}."


__all__ = [
    "Config",
    "EngineConfig",
    "Namespace",
    "field_help",
    "load_config",
    "load_saved",
    "recipes",
    "save_config",
]
