"""Kinds of raw data sets: what `mpamatch prepare KIND` must know of each before it reads any data.

A kind is one module of mpamatch.data.sources with a record KIND and a reader raw_set:

    KIND = Kind(
        name="kpi",
        help="KPIs 2024: GROUP/CASE/img and GROUP/CASE/mask",
        module=__name__,
        options=(REGROUP,),
        recipes={"kpi": "kpi"},
    )

    def raw_set(source: Path, regroup: bool = False) -> RawSet: ...
"""

import ast
import functools
import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.abc import InspectLoader
from typing import TYPE_CHECKING, Any

from mpamatch.data import sources
from mpamatch.errors import InputError, unknown

if TYPE_CHECKING:
    from mpamatch.data.prepared import RawSet


@dataclass(frozen=True)
class Option:
    """An option of `mpamatch prepare` that some kinds take.

    Attributes:
        flag: such as "--mask-values"; the reader's keyword is then mask_values.
        help: what it means, for `--help`.
        type: makes the value from the word; bool: a switch without a word.
    """

    flag: str
    help: str
    type: Callable[[str], Any] = str

    @property
    def keyword(self) -> str:
        """The keyword of the reader."""
        return self.flag.removeprefix("--").replace("-", "_")


REGROUP = Option("--regroup", "split by patient, whatever parts it comes in", bool)


@dataclass(frozen=True)
class Kind:
    """A kind of raw data set.

    Attributes:
        name: the word after `mpamatch prepare`.
        help: what the folder holds, in one line.
        module: holds the reader, raw_set(source, …) → RawSet, with a keyword for each option.
        options: that the reader takes.
        recipes: name of a prepared set → recipe to train it with; "folder" for names that are not listed.
        takes_source: False if the reader makes its images and takes no `source`.
        extra: that brings libraries which the module imports, such as "slides": pip install 'mpamatch[slides]'.
        sizes_pixels: True if the reader takes the size of a pixel from the files or an option of its own, so that
            --microns-per-pixel is refused.
    """

    name: str
    help: str
    module: str
    options: tuple[Option, ...] = ()
    recipes: Mapping[str, str] = field(default_factory=dict)
    takes_source: bool = True
    extra: str | None = None
    sizes_pixels: bool = False

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags of its options."""
        return tuple(option.flag for option in self.options)

    @property
    def reader(self) -> "Callable[..., RawSet]":
        """The function raw_set of its module, which is imported now.

        Raises InputError if it needs an extra that is not installed.
        """
        try:
            return importlib.import_module(self.module).raw_set
        except ImportError as error:
            if self.extra is None or (error.name or "").partition(".")[0] == "mpamatch":
                raise
            raise InputError(
                f"prepare {self.name}: needs {error.name}, which is not installed: "
                f"pip install 'mpamatch[{self.extra}]'."
            ) from error


@functools.cache
def kinds() -> dict[str, Kind]:
    """Finds every kind in mpamatch.data.sources, by name; one of your own joins by `kinds()[KIND.name] = KIND`."""
    modules = pkgutil.iter_modules(sources.__path__, f"{sources.__name__}.")
    found = (declared(module.name) for module in modules)
    return {kind.name: kind for kind in found if kind is not None}


def declared(module: str) -> Kind | None:
    """Reads the KIND of a module without importing it: numpy and the decoders take longer than a help may.

    The statement `KIND = …` alone is evaluated, from the source: it may use literals and the names of this file.
    None if there is no such statement. Raises NameError if it uses another name.
    """
    spec = importlib.util.find_spec(module)
    assert spec, module
    assert isinstance(spec.loader, InspectLoader), f"{module} is a Python module"
    for statement in ast.parse(spec.loader.get_source(module) or "").body:
        match statement:
            case ast.Assign(targets=[ast.Name(id="KIND")], value=record):
                code = compile(ast.Expression(record), spec.origin or module, "eval")
                return eval(code, {**globals(), "__name__": module})
    return None


def kind_named(name: str) -> Kind:
    """Finds the kind called `name`. Raises InputError, with the nearest right name, if there is none."""
    if name not in kinds():
        raise unknown("kind of data set", name, kinds())
    return kinds()[name]


def every_option() -> list[Option]:
    """Lists each option of any kind once; its help names the kinds that take it."""
    takers: dict[tuple[str, Callable[[str], Any]], dict[str, list[str]]] = {}  # flag and type → help → kinds
    for kind in kinds().values():
        for option in kind.options:
            takers.setdefault((option.flag, option.type), {}).setdefault(option.help, []).append(kind.name)
    return [
        Option(flag, "; ".join(f"{', '.join(names)}: {text}" for text, names in by_help.items()), read)
        for (flag, read), by_help in takers.items()
    ]
