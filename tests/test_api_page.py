"""docs/API.md is what the docstrings say, and these say everything: arguments, results, errors, fields."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools import api_page
from tools.api_page import Docstring, Entry, Function

ENTRIES = {f"{module}:{one.name}": one for module in api_page.MODULES for one in api_page.exported(module)}
COMMAND = "python tools/api_page.py"


def faults(entry: Entry) -> Iterator[str]:
    """What the docstring of an entry, or of a method of it, lacks or says too much."""
    if entry.docstring is None or not entry.docstring.text:
        yield f"{entry.name}: no docstring"
        return
    if isinstance(entry.node, Function):
        yield from _faults_of_arguments(entry.name, entry.node, entry.docstring)
        yield from _faults_of_results(entry)
        yield from _faults_of_errors(entry.name, [entry.node], entry.docstring)
    if isinstance(entry.node, ast.ClassDef):
        yield from _faults_of_class(entry, entry.node, entry.docstring)
        for method in api_page.methods(entry):
            yield from faults(method)


def _faults_of_arguments(name: str, node: Function, docstring: Docstring) -> Iterator[str]:
    arguments = node.args
    every = [*arguments.posonlyargs, *arguments.args, arguments.vararg, *arguments.kwonlyargs, arguments.kwarg]
    wanted = [one.arg for one in every if one is not None][name.count(".") :]  # a method has its object or class first
    described = list(docstring.entries.get("Args", {}))
    if described != wanted:
        yield f"{name}: Args has {described}, expected {wanted}"


def _faults_of_results(entry: Entry) -> Iterator[str]:
    assert isinstance(entry.node, Function)
    assert entry.docstring is not None
    returns = entry.node.returns
    nothing = returns is None or ast.unparse(returns) == "None" or "property" in entry.decorators()
    if nothing == bool(entry.docstring.prose):
        yield f"{entry.name}: {'Returns of nothing' if nothing else 'no Returns'}"


def _faults_of_errors(name: str, nodes: list[Function], docstring: Docstring) -> Iterator[str]:
    raises = [one for node in nodes for one in _own(node) if isinstance(one, ast.Raise)]
    if raises and "Raises" not in docstring.entries:
        yield f"{name}: no Raises"


def _own(node: ast.AST) -> Iterator[ast.AST]:
    """Everything in a function but for the functions that it defines."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, Function):
            yield child
            yield from _own(child)


def _faults_of_class(entry: Entry, node: ast.ClassDef, docstring: Docstring) -> Iterator[str]:
    made = [one for one in node.body if isinstance(one, Function) and one.name in ("__init__", "__post_init__")]
    yield from _faults_of_errors(entry.name, made, docstring)
    constructor = api_page.constructor_of(node)
    described = {name for one in (entry, *api_page.bases(entry)) for name in _names(one.docstring)}
    if constructor and not _arguments(constructor) <= described:
        yield f"{entry.name}: Args lacks {sorted(_arguments(constructor) - described)}"
    for one in api_page.fields_of(node):
        name = ast.unparse(one.target)
        if name not in described and not _commented(one, entry.lines):
            yield f"{entry.name}: Attributes lacks {name}"


def _names(docstring: Docstring | None) -> set[str]:
    entries = docstring.entries if docstring else {}
    return {*entries.get("Args", {}), *entries.get("Attributes", {})}


def _arguments(node: Function) -> set[str]:
    every = [*node.args.args[1:], *node.args.kwonlyargs, node.args.kwarg]
    return {one.arg for one in every if one is not None}


def _commented(node: ast.AnnAssign, lines: list[str]) -> bool:
    """Whether a field has a comment behind it or above it."""
    return "  # " in lines[node.lineno - 1] or lines[node.lineno - 2].strip().startswith("#")


def test_the_page_is_what_the_docstrings_say():
    written = api_page.PAGE.read_text(encoding="utf-8")
    assert written == api_page.page(), f"a docstring has changed: run `{COMMAND}`"
    assert f"`{COMMAND}`" in written.splitlines()[0]


@pytest.mark.parametrize("name", ENTRIES)
def test_everything_exported_is_documented(name):
    assert list(faults(ENTRIES[name])) == []


def test_every_link_of_the_contents_leads_to_one_heading():
    page = api_page.page()
    headings = [api_page.anchor(name) for name in re.findall(r"^#+ `(.+)`$", page, re.MULTILINE)]
    links = re.findall(r"\]\(#([^)]+)\)", page)
    assert len(links) > 40
    assert [link for link in links if headings.count(link) != 1] == []


def test_the_page_holds_all_that_is_exported_as_it_is_written():
    page = api_page.page()
    for module in api_page.MODULES:
        imported = __import__(module, fromlist=["__all__"])
        assert [name for name in imported.__all__ if f"\n### `{name}`\n" not in page] == []
    assert "    logits: Tensor,  # (B, C, H, W) any floating dtype\n" in page  # comments tell the shapes


MODULE = '''
from typing import NamedTuple

__all__ = ["LIMIT", "Box", "Pair", "area", "closed"]

LIMIT = 5  # type: ignore[misc]
"""The most."""


def area(
    width: int,  # pixels
    *others: int,
    **more: int,
) -> int:
    """Computes an area.

    Args:
        width: how wide,
            in pixels.
        others: what
            is left.
        more: named.

    Returns:
        The area.

    Raises:
        ValueError: too wide.
    """
    raise ValueError


def closed() -> None:
    """Closes it."""


class Pair(NamedTuple):
    """Two numbers."""

    first: int  # one
    # and another
    second: int


class Box:
    """A box.

    Args:
        side: its length.
    """

    def __init__(self, side: int):
        self.side = side

    def open(self) -> int:
        """Opens it.

        Returns:
            The side.
        """
        return self.side
'''


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of a module `boxes` that the page is made from."""
    monkeypatch.setattr(api_page, "ROOT", tmp_path)
    monkeypatch.setattr(api_page, "MODULES", {"boxes": []})
    api_page.source.cache_clear()
    yield tmp_path / "boxes.py"
    api_page.source.cache_clear()


def test_a_page_of_a_small_module(written):
    written.write_text(f'"""Boxes."""\n{MODULE}')
    page = api_page.page()
    assert [fault for entry in api_page.exported("boxes") for fault in faults(entry)] == []
    assert "## `boxes`\n\nBoxes.\n" in page
    assert "### `LIMIT`\n\n```python\nLIMIT = 5\n```\n\nThe most.\n" in page
    assert (
        "```python\ndef area(\n    width: int,  # pixels\n    *others: int,\n    **more: int,\n) -> int\n```\n\n"
        "Computes an area.\n\n"
        "**Args**\n\n- `width`: how wide, in pixels.\n- `others`: what is left.\n- `more`: named.\n\n"
        "**Returns**: The area.\n\n**Raises**\n\n- `ValueError`: too wide.\n"
    ) in page
    assert "class Pair(NamedTuple)\n    first: int  # one\n    # and another\n    second: int\n```" in page
    assert "class Box\n    def __init__(self, side: int)\n```" in page
    assert "#### `Box.open`\n\n```python\ndef open(self) -> int\n```\n\nOpens it.\n" in page


@pytest.mark.parametrize(
    ("there", "instead", "says"),
    [
        ("        others: what\n            is left.\n", "", "area: Args has ['width', 'more'], expected"),
        ("        more: named.\n", "        more: named.\n        depth: how deep.\n", "area: Args has"),
        ("    Returns:\n        The area.\n\n", "", "area: no Returns"),
        ('"""Closes it."""', '"""Closes it.\n\n    Returns:\n        Nothing.\n    """', "closed: Returns of nothing"),
        ("    Raises:\n        ValueError: too wide.\n", "", "area: no Raises"),
        ('    """Closes it."""\n', "    return None\n", "closed: no docstring"),
        ('"""The most."""', "", "LIMIT: no docstring"),
        ("    # and another\n", "\n", "Pair: Attributes lacks second"),
        ("        side: its length.\n", "        length: of a side.\n", "Box: Args lacks ['side']"),
        ("        Returns:\n            The side.\n", "", "Box.open: no Returns"),
        ("        self.side = side\n", "        self.side = side\n        raise ValueError\n", "Box: no Raises"),
    ],
)
def test_what_is_missing_is_found(written, there, instead, says):
    assert MODULE.count(there) == 1
    written.write_text(MODULE.replace(there, instead))
    (fault,) = (fault for entry in api_page.exported("boxes") for fault in faults(entry))
    assert fault.startswith(says)


def test_a_name_that_is_not_there_is_an_error(written):
    written.write_text(MODULE.replace('"closed"]', '"closed", "lid"]'))
    with pytest.raises(LookupError, match=r"boxes\.lid: not found"):
        api_page.exported("boxes")
