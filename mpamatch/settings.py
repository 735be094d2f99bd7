"""Settings: dataclasses with ranges in their fields' types, checked once, when an instance is made.

`@settings("engine")` makes a frozen dataclass whose values are checked by pydantic. A wrong value raises one InputError
that names the field, such as "engine.steps: expected at least 1, got 0.". The sentences are built from pydantic's
structured errors and the fields' types, never from another library's prose.
"""

import dataclasses
import functools
import inspect
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

import yaml
from annotated_types import Ge, GroupedMetadata, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BeforeValidator, ConfigDict, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from mpamatch.errors import SHOWN, InputError, shown, unknown

__all__ = [
    "Count",
    "Fraction",
    "NonNegative",
    "OnlyIf",
    "Positive",
    "Share",
    "Whole",
    "fields_of",
    "fields_under",
    "from_words",
    "help_of",
    "idle_fields",
    "settings",
]

Count = Annotated[int, Ge(1)]
"""The type of a field that counts things: an integer of at least 1."""

Whole = Annotated[int, Ge(0)]
"""The type of a field that may be 0: an integer of at least 0, such as a step or a seed."""

NonNegative = Annotated[float, Ge(0)]
"""The type of a weight: a float of at least 0."""

Positive = Annotated[float, Gt(0)]
"""The type of a temperature or size: a float above 0."""

Share = Annotated[float, Ge(0), Le(1)]
"""The type of a share or momentum: a float, 0 <= x <= 1."""

Fraction = Annotated[float, Ge(0), Lt(1)]
"""The type of a probability or decay that must not reach 1: a float, 0 <= x < 1."""

Class = TypeVar("Class", bound=type)


@dataclass(frozen=True)
class OnlyIf:
    """A mark in a field's type: the field does nothing unless another field has certain values.

    `Annotated[int, OnlyIf("tuning", ("lora",))]` marks a field that does nothing unless `tuning` is "lora". A run that
    sets such a field in vain is refused. `OnlyIf("prompts", ("random",)) | OnlyIf("noise")`: one of them is enough.

    Attributes:
        field: name of the other field, of the same settings.
        values: values of it with which the marked field does something; empty: all but None, "none", False and 0.
        other: a condition that is enough too; None: there is none.
    """

    field: str
    values: tuple[Any, ...] = ()
    other: "OnlyIf | None" = None

    def __or__(self, other: "OnlyIf") -> "OnlyIf":
        return dataclasses.replace(self, other=other)

    def holds(self, config: Any) -> bool:
        """Tells whether the marked field does something.

        Args:
            config: the settings that hold both fields.

        Returns:
            True if `field` of `config` has one of the values, or if the other condition holds.
        """
        value = getattr(config, self.field)
        if value in self.values if self.values else value not in (None, "none", False):
            return True
        return self.other is not None and self.other.holds(config)

    def __str__(self) -> str:
        own = f"{self.field} is {' or '.join(map(str, self.values)) or 'set'}"
        return own if self.other is None else f"{own}, or {self.other}"

    @property
    def fields(self) -> set[str]:
        """The names of all fields that it asks for."""
        return {self.field} | (self.other.fields if self.other is not None else set())


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def settings(section: str) -> Callable[[Class], Class]:
    """Makes a class a frozen dataclass whose values are checked against the types of its fields; a decorator.

    Making an instance, or a copy by `dataclasses.replace`, raises InputError for a value of the wrong type or outside
    its range. Checks of several fields together stand in `__post_init__`, which may raise InputError too. Values are
    read as YAML writes them: "3" is an integer, 1e-3 a float, and a field of text takes 5 and true as words.

    Args:
        section: name of the group of settings, such as "method"; it stands before a field's name in messages and on
            the command line (--method.threshold).

    Returns:
        The decorator.
    """

    def make(plain: Class) -> Class:
        checked: Any = checked_dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))(
            _with_words(plain)
        )
        init = checked.__init__

        @functools.wraps(init)
        def checked_init(self: Any, *args: Any, **kwargs: Any) -> None:
            try:
                init(self, *args, **kwargs)
            except ValidationError as error:
                raise _sentence(section, type(self), error) from None

        checked.__init__ = checked_init
        return checked

    return make


def fields_of(configuration: type) -> dict[str, dataclasses.Field[Any]]:
    """Lists the fields of a settings class.

    Args:
        configuration: a class made by `@settings`.

    Returns:
        Name → field, those of its base classes first.
    """
    return {field.name: field for field in dataclasses.fields(configuration)}


def from_words(configuration: type, name: str, word: str) -> Any:
    """Reads a word of the command line: text for a field of text, else as YAML reads it.

    So `--data.split 5` and `split: 5` are the same, and `--data.zoom [0.8, 1.2]` is a list.

    Args:
        configuration: a class made by `@settings`.
        name: one of its fields.
        word: what the user wrote. A word that is no YAML stays text.

    Returns:
        The value, which is checked when the settings are made.
    """
    kind = get_type_hints(configuration)[name]
    if word in ("null", "None") and type(None) in _alternatives(kind):
        return None
    if _is_text(kind):
        return word
    try:
        return yaml.safe_load(word)
    except yaml.YAMLError:
        return word


def idle_fields(config: Any) -> dict[str, str]:
    """Finds the fields that do nothing with the other values of their settings.

    Args:
        config: an instance of a class made by `@settings`.

    Returns:
        Name → the condition that does not hold, such as "tuning is lora".
    """
    idle: dict[str, str] = {}
    for name, kind in get_type_hints(type(config), include_extras=True).items():
        for mark in _marks(kind):
            if isinstance(mark, OnlyIf) and not mark.holds(config):
                idle[name] = str(mark)
    return idle


def fields_under(configuration: type, name: str) -> set[str]:
    """Finds the fields that do nothing once a field is off.

    Args:
        configuration: a class made by `@settings`.
        name: the field that is None, "none", False or 0.

    Returns:
        The fields whose marks `OnlyIf` ask for it alone, and those under them in turn.
    """
    off = {name}
    for _ in fields_of(configuration):  # a chain is no longer than there are fields
        for field, kind in get_type_hints(configuration, include_extras=True).items():
            if any(isinstance(mark, OnlyIf) and mark.fields <= off for mark in _marks(kind)):
                off.add(field)
    return off - {name}


def help_of(configuration: type) -> dict[str, str]:
    """Collects what each field means from "Attributes:" in the docstrings of a settings class and of its base classes.

    Args:
        configuration: a class made by `@settings`. An entry is indented by 8 columns, its further lines by 12.

    Returns:
        Name → meaning in one line, of the fields that have an entry.
    """
    found: dict[str, str] = {}
    for cls in reversed(configuration.__mro__):
        _, _, attributes = (cls.__doc__ or "").partition("Attributes:\n")
        for name, text in re.findall(r"^        (\w+): ((?:.|\n {12})+)", attributes, re.MULTILINE):
            found[name] = " ".join(text.split())
    return {name: found[name] for name in fields_of(configuration) if name in found}


def _with_words(plain: Class) -> Class:
    """Changes the fields' types to take the words that YAML would turn into something else.

    `precision: 32` and `channels_last: true` are words for a field of text, and true is no number.
    """
    hints = get_type_hints(plain, include_extras=True)
    own = inspect.get_annotations(plain)
    plain.__annotations__ = {
        name: _of_words(hints[name]) if name in hints and get_origin(hints[name]) is not ClassVar else kind
        for name, kind in own.items()
    }
    return plain


def _of_words(kind: Any) -> Any:
    if _is_text(kind):
        return Annotated[kind, BeforeValidator(_as_word)]
    return kind if bool in _alternatives(kind) else Annotated[kind, BeforeValidator(_no_truth)]


def _is_text(kind: Any) -> bool:
    """Tells whether the values of a field are text: free, or words to choose from, unless a number is a choice too."""
    known = _alternatives(kind)
    words = any(isinstance(word, str) for one in known for word in get_args(one))
    return str in known or (words and not _numbers(kind))


def _numbers(kind: Any) -> bool:
    return any(one in (int, float) for one in _alternatives(kind))


def _as_word(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


def _no_truth(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("no truth value")
    return value


def _sentence(section: str, configuration: type, error: ValidationError) -> InputError:
    """Tells the first fault of `error` in one sentence."""
    fault: Mapping[str, Any] = error.errors()[0]
    raised = fault.get("ctx", {}).get("error")
    if isinstance(raised, InputError):  # of __post_init__
        return raised
    known = get_type_hints(configuration, include_extras=True)
    name, value = str(fault["loc"][0]), fault["input"]
    field = f"{section}.{name}"
    if name not in fields_of(configuration):
        return unknown("field", field, [f"{section}.{one}" for one in fields_of(configuration)])
    kind = known[name]
    words = _choices(kind) if _numbers(kind) else []
    if words and (isinstance(value, bool) or not isinstance(value, int | float)):
        return unknown(field, _text(value), [*words, "a number"])
    if fault["type"] == "literal_error":
        return unknown(field, _text(value), _choices(kind))
    if fault["type"].startswith(("greater_than", "less_than")):
        inner = get_origin(_bare(kind)) in (list, tuple)  # an item of a list
        limits = _range(_marks(get_args(_bare(kind))[0] if inner else kind), name)
        return InputError(
            f"{field}: expected {' or '.join([limits, *words])}{' each' if inner else ''}, got {_text(value)}."
        )
    if fault["type"] in ("too_short", "too_long"):
        return InputError(f"{field}: expected {_length(_marks(kind))}, got {_text(value)}.")
    return InputError(f"{field}: expected {_described(kind)}, got {_text(value)}.")


def _bare(kind: Any) -> Any:
    """Returns the type without the metadata of Annotated."""
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _alternatives(kind: Any) -> Sequence[Any]:
    """Lists the members of a union, or the type itself."""
    kind = _bare(kind)
    return [_bare(one) for one in get_args(kind)] if get_origin(kind) in (Union, types.UnionType) else [kind]


def _marks(kind: Any) -> list[Any]:
    """Lists the metadata of Annotated, of a type or of the members of a union."""
    said = getattr(kind, "__metadata__", ())
    own = [one for mark in said for one in (mark if isinstance(mark, GroupedMetadata) else (mark,))]
    bare = _bare(kind)
    members = get_args(bare) if get_origin(bare) in (Union, types.UnionType) else ()
    return own + [mark for one in members for mark in _marks(one)]


def _choices(kind: Any) -> list[str]:
    """Lists the words of a type, or of the items of a list."""
    if get_origin(_bare(kind)) is list:
        kind = get_args(_bare(kind))[0]
    return [str(word) for one in _alternatives(kind) if get_origin(one) is Literal for word in get_args(one)]


def _range(marks: Sequence[Any], name: str) -> str:
    """Puts the range that marks such as Ge(0) and Lt(1) state into words."""
    limits = [mark for mark in marks if isinstance(mark, Ge | Gt | Le | Lt)]
    bounds: dict[type, Any] = {type(mark): getattr(mark, type(mark).__name__.lower()) for mark in limits}
    low, high = bounds.get(Ge, bounds.get(Gt)), bounds.get(Le, bounds.get(Lt))
    if low is None:
        return f"at most {high}" if Le in bounds else f"less than {high}"
    if high is None:
        return f"at least {low}" if Ge in bounds else f"more than {low}"
    if Ge in bounds and Le in bounds:
        return f"{low} to {high}"
    return f"{low} {'<=' if Ge in bounds else '<'} {name} {'<=' if Le in bounds else '<'} {high}"


def _length(marks: Sequence[Any]) -> str:
    least = next((mark.min_length for mark in marks if isinstance(mark, MinLen)), 0)
    most = next((mark.max_length for mark in marks if isinstance(mark, MaxLen)), None)
    return f"{least} values" if least == most else f"at least {least} values"


def _described(kind: Any) -> str:
    kind = _bare(kind)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if get_origin(kind) in (list, tuple):
        inner = [_described(one) for one in get_args(kind) if one is not ...]
        return f"list of {inner[0]}" if inner else "list"
    names: list[str] = []
    for one in _alternatives(kind):
        names += _choices(one) or ["nothing" if one is type(None) else getattr(one, "__name__", str(one))]
    return " or ".join("text" if name == "str" else name for name in names)


def _text(value: Any) -> str:
    """Formats a wrong value, at most SHOWN letters of it."""
    if isinstance(value, str):
        return value if len(value) <= SHOWN else f"{value[:SHOWN]}…"
    return shown(value)
