"""Makes docs/API.md from the docstrings of all that the package exports:  python tools/api_page.py

It reads the sources and imports nothing of them, so signatures keep the comments that tell shapes, which griffe2md and
pdoc drop. Docstrings have Google's sections, indented by 4 columns, their continuation lines by 8.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "API.md"
HEAD = """<!-- Made from the docstrings by `python tools/api_page.py`: change those, then run it. -->
# API

What users import. In signatures (B, C, H, W) is a shape; f32, f64, i32, i64 and u8 are dtypes; the label 255 means
ignore. What a user did wrong, in a file, a field or a name, raises `mpamatch.errors.InputError`: one sentence that says
what is wrong and what to do.
"""
# The modules of the page, each with the classes that no module exports but whose instances users hold.
MODULES = {
    "mpamatch": [
        "mpamatch.inference.segmenter.Segmenter",
        "mpamatch.inference.slides.SlideResult",
        "mpamatch.slides.mask.MaskFile",
    ],
    "mpamatch.ops": [],
    "mpamatch.models": ["mpamatch.registry.Registry"],
    "mpamatch.methods": ["mpamatch.batch.Batch", "mpamatch.batch.Labelled", "mpamatch.batch.Unlabelled"],
    "mpamatch.settings": [],
}
SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises")
DECORATORS = ("property", "classmethod", "abstractmethod", "dataclass", "settings")  # those that a user must know of
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Docstring:
    """The parts of a docstring."""

    text: str = ""  # all but the sections
    entries: dict[str, dict[str, str]] = field(default_factory=dict)  # section → name → text: Args, Attributes, Raises
    prose: dict[str, str] = field(default_factory=dict)  # section → text: Returns, Yields


@dataclass(frozen=True)
class Entry:
    """A function, class or constant: the module that defines it, its statement and its docstring."""

    name: str  # as a user says it: build_model, Method.forward
    module: str
    node: Function | ast.ClassDef | ast.Assign | ast.AnnAssign
    docstring: Docstring | None

    @property
    def lines(self) -> list[str]:
        """The lines of the module's source."""
        return source(self.module)[0]

    def decorators(self) -> list[str]:
        """Lists the names of its decorators."""
        found = self.node.decorator_list if isinstance(self.node, Function | ast.ClassDef) else []
        return [ast.unparse(one.func if isinstance(one, ast.Call) else one).rpartition(".")[2] for one in found]


@cache
def source(module: str) -> tuple[list[str], ast.Module]:
    """Reads a module of the package: its lines and its tree."""
    place = ROOT.joinpath(*module.split("."))
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    text = file.read_text(encoding="utf-8")
    return text.splitlines(), ast.parse(text)


def statements(body: list[ast.stmt]) -> Iterator[tuple[ast.stmt, ast.stmt | None]]:
    """Yields every statement, those of `if` among them, with the one after it."""
    for one, after in zip(body, [*body[1:], None], strict=True):
        yield one, after
        if isinstance(one, ast.If):
            yield from statements(one.body)


def string(node: ast.stmt | None) -> str | None:
    """Returns the text of a statement that is a string alone, such as the docstring after a constant."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return node.value.value
    return None


def find(module: str, name: str) -> Entry | None:
    """Finds what `name` is in a module, through its imports; None for what is not of this package."""
    for node, after in statements(source(module)[1].body):
        if isinstance(node, Function | ast.ClassDef) and node.name == name:
            return Entry(name, module, node, parsed(ast.get_docstring(node)))
        if isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and target.id == name:
                return Entry(name, module, node, parsed(string(after)))
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "mpamatch":
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return find(str(node.module), alias.name)
    return None


def exported(module: str) -> list[Entry]:
    """Lists what a module exports: the names of `__all__`, and the classes that belong to it on the page."""
    (names,) = [
        ast.literal_eval(node.value)
        for node, _ in statements(source(module)[1].body)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    places = [f"{module}.{name}" for name in names] + MODULES[module]
    found = {place: find(*place.rsplit(".", 1)) for place in places}
    if lost := [place for place, entry in found.items() if entry is None]:
        raise LookupError(f"{', '.join(lost)}: not found in the sources.")
    return [entry for entry in found.values() if entry is not None]


def methods(entry: Entry) -> list[Entry]:
    """Lists the public methods that a class defines itself and documents, or that no base class documents."""
    assert isinstance(entry.node, ast.ClassDef)
    found = []
    for node in entry.node.body:
        if isinstance(node, Function) and not node.name.startswith("_"):
            method = Entry(f"{entry.name}.{node.name}", entry.module, node, parsed(ast.get_docstring(node)))
            inherits = any(node.name in documented(base) for base in bases(entry))
            if "overload" not in method.decorators() and (method.docstring or not inherits):
                found.append(method)
    return found


def bases(entry: Entry) -> Iterator[Entry]:
    """Yields the base classes of a class, nearest first, those of this package only."""
    assert isinstance(entry.node, ast.ClassDef)
    for node in entry.node.bases:
        base = find(entry.module, ast.unparse(node))
        if base is not None and isinstance(base.node, ast.ClassDef):
            yield base
            yield from bases(base)


def documented(entry: Entry) -> set[str]:
    """Names the methods of a class that have a docstring of their own."""
    assert isinstance(entry.node, ast.ClassDef)
    return {node.name for node in entry.node.body if isinstance(node, Function) and ast.get_docstring(node)}


def parsed(docstring: str | None) -> Docstring | None:
    """Splits a docstring into its text and its sections."""
    if docstring is None:
        return None
    found = Docstring()
    pieces = re.split(rf"^({'|'.join(SECTIONS)}):\n", inspect.cleandoc(docstring) + "\n", flags=re.MULTILINE)
    for section, body in zip(pieces[1::2], pieces[2::2], strict=True):
        if section in ("Returns", "Yields"):
            found.prose[section] = inspect.cleandoc(body)
        else:
            entries = re.findall(r"^ {4}(\S[^:\n]*): ((?:.|\n {8})+)", body, re.MULTILINE)
            found.entries[section] = {name.lstrip("*"): " ".join(text.split()) for name, text in entries}
    return Docstring(pieces[0].strip(), found.entries, found.prose)


def signature(entry: Entry) -> str:
    """Copies a signature from the source, comments too; of a class also its fields and its constructor."""
    node, lines = entry.node, entry.lines
    if isinstance(node, ast.Assign | ast.AnnAssign):
        return _without_ignore(lines[node.lineno - 1]).strip()
    decorators = zip(node.decorator_list, entry.decorators(), strict=True)
    shown = [lines[one.lineno - 1].strip() for one, name in decorators if name in DECORATORS]
    shown += textwrap.dedent("\n".join(_head(node, lines))).splitlines()
    if isinstance(node, ast.ClassDef):
        fields = [line for one in fields_of(node) for line in _with_comments(one, lines)]
        constructor = constructor_of(node)
        shown += fields
        shown += [""] if fields and constructor else []
        shown += _head(constructor, lines) if constructor else []
    return "\n".join(shown)


def constructor_of(node: ast.ClassDef) -> Function | None:
    """Returns the `__init__` that a class defines itself."""
    return next((one for one in node.body if isinstance(one, Function) and one.name == "__init__"), None)


def fields_of(node: ast.ClassDef) -> list[ast.AnnAssign]:
    """Lists the public fields that a class declares with a type."""
    found = [one for one in node.body if isinstance(one, ast.AnnAssign)]
    return [one for one in found if not ast.unparse(one.target).startswith("_")]


def _head(node: Function | ast.ClassDef, lines: list[str]) -> list[str]:
    """Returns the lines of a definition before its body, without the colon at their end."""
    first, body = node.lineno - 1, node.body[0].lineno - 1
    *others, last = lines[first:body] or [lines[first].removesuffix(" ...")]  # the body may follow on the same line
    return [*others, re.sub(r":(?=( *#.*)?$)", "", last)]


def _with_comments(node: ast.AnnAssign, lines: list[str]) -> list[str]:
    """Returns the lines of a field, with the comment lines directly above it."""
    first = node.lineno
    while lines[first - 2].strip().startswith("#"):
        first -= 1
    return [_without_ignore(line) for line in lines[first - 1 : node.end_lineno]]


def _without_ignore(line: str) -> str:
    """Cuts off what a line says to mypy."""
    return line.partition("  # type: ignore")[0]


def rendered(entry: Entry, level: int) -> str:
    """Renders an entry as Markdown, with the methods of a class below it."""
    parts = [f"{'#' * level} `{entry.name}`", f"```python\n{signature(entry)}\n```"]
    docstring = entry.docstring or Docstring()
    parts += [docstring.text] if docstring.text else []
    for section in SECTIONS:
        if section in docstring.prose:
            parts.append(f"**{section}**: {docstring.prose[section]}")
        if section in docstring.entries:
            listed = "\n".join(f"- `{name}`: {text}" for name, text in docstring.entries[section].items())
            parts.append(f"**{section}**\n\n{listed}")
    if isinstance(entry.node, ast.ClassDef):
        parts += [rendered(method, level + 1) for method in methods(entry)]
    return "\n\n".join(parts)


def anchor(name: str) -> str:
    """Returns the anchor that GitHub gives the heading of `name`."""
    return name.lower().replace(".", "")


def page() -> str:
    """Renders the whole page."""
    contents, parts = [], []
    for module in MODULES:
        entries = exported(module)
        links = ", ".join(f"[`{one.name}`](#{anchor(one.name)})" for one in entries)
        contents.append(f"- [`{module}`](#{anchor(module)}): {links}")
        parts.append(f"## `{module}`\n\n{inspect.cleandoc(ast.get_docstring(source(module)[1]) or '')}")
        parts += [rendered(one, 3) for one in entries]
    return "\n\n".join([HEAD.rstrip(), "\n".join(contents), *parts]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)} is written.")
