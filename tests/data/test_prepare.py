"""Kinds of raw data sets are found, not listed; an option is shown once and refused where it would do nothing."""

import importlib
import inspect
import io
import json
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mpamatch.cli import main
from mpamatch.commands import prepare
from mpamatch.data import sources
from mpamatch.data.kinds import REGROUP, Kind, Option, declared, every_option, kinds
from mpamatch.data.prepared import Class, Item, Prepared, RawSet, load_prepared, parts_of_groups
from mpamatch.errors import InputError
from tests.data.raw import arguments, image, mask

MODULES = sorted(path.stem for path in Path(sources.__path__[0]).glob("*.py"))
NEW = """
import no_such_library

KIND = Kind(name="new", help="dots", module=__name__, options=(REGROUP, Option("--dots", "how many", int)))
"""


@pytest.fixture
def new_module(tmp_path, monkeypatch):
    """Writes a_new_kind.py, a new module beside those of mpamatch.data.sources."""

    def write(source: str) -> str:
        (tmp_path / "a_new_kind.py").write_text(source)
        monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(tmp_path)])
        kinds.cache_clear()
        return "mpamatch.data.sources.a_new_kind"

    yield write
    kinds.cache_clear()


@pytest.mark.parametrize("module", MODULES)
def test_every_module_with_a_reader_is_a_kind(module):
    name = f"{sources.__name__}.{module}"
    imported = importlib.import_module(name)
    assert declared(name) == getattr(imported, "KIND", None), "what is read from the source is what the module has"
    if hasattr(imported, "raw_set"):
        kind = kinds()[imported.KIND.name]
        assert kind == imported.KIND, "two modules have kinds of one name"
        assert kind.reader is imported.raw_set


@pytest.mark.parametrize("kind", kinds())
def test_the_reader_has_a_keyword_for_every_option(kind):
    one = kinds()[kind]
    keywords = inspect.signature(one.reader).parameters
    assert list(keywords) == [*["source"] * one.takes_source, *(option.keyword for option in one.options)]
    assert all(keywords[option.keyword].default is not inspect.Parameter.empty for option in one.options)


def test_a_new_module_is_a_kind_without_being_imported(new_module):
    name = new_module(NEW)
    assert kinds()["new"] == Kind("new", "dots", name, (REGROUP, Option("--dots", "how many", int)))
    assert name not in sys.modules
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        _ = kinds()["new"].reader


def test_a_record_of_other_names_is_an_error_at_its_line(new_module):
    with pytest.raises(NameError, match="TASKS") as caught:
        declared(new_module('TASKS = ("a", "b")\n\nKIND = Kind("new", " or ".join(TASKS), __name__)\n'))
    assert caught.traceback[-1].path.name == "a_new_kind.py"
    assert caught.traceback[-1].lineno == 2  # counted from 0


def test_help_shows_every_option_once_with_the_kinds_that_take_it(new_module, capsys):
    new_module(NEW.replace("how many", "100 % of them"))
    helps = {option.flag: option.help for option in every_option()}
    assert len(helps) == len(every_option())
    regrouped = [kind.name for kind in kinds().values() if REGROUP in kind.options]
    assert set(regrouped) >= {"acdc", "folder", "glas", "kpi", "new"}
    assert helps["--regroup"] == f"{', '.join(regrouped)}: split by patient, whatever parts it comes in"
    assert {"busi: lesion or classes", "glas: gland or grade"} <= set(helps["--task"].split("; "))
    with pytest.raises(SystemExit):
        main(["prepare", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for flag, text in helps.items():
        assert len(re.findall(rf"{flag}\b", shown)) == 1
        assert text in shown
    assert "new: dots" in shown
    assert "new: 100 % of them" in shown


def test_a_kind_of_ones_own_joins(tmp_path, capsys, monkeypatch):
    """One that makes its images, with an option of its own and a recipe."""

    def raw_set(dots: int = 5) -> RawSet:
        label = np.eye(16, dtype=np.uint8)
        items = [Item(f"dot-{i}", f"dot-{i}", None, np.full((16, 16, 3), i, np.uint8), label) for i in range(dots)]
        classes = (Class("background", (0, 0, 0)), Class("dot", (255, 0, 0)))
        return RawSet("dots-red", classes, items, dots, None, "made here", "none needed")

    monkeypatch.setitem(sys.modules, "dots", SimpleNamespace(raw_set=raw_set))
    option = Option("--dots", "how many (5)", int)
    own = Kind("dots", "dots; takes no SOURCE", "dots", (option,), {"dots-red": "glas"}, takes_source=False)
    monkeypatch.setitem(kinds(), "dots", own)
    assert main(["prepare", "dots", str(tmp_path / "set"), "--dots", "7"]) == 0
    assert f"--recipe glas --data.root {tmp_path / 'set'}" in capsys.readouterr().out
    assert len(load_prepared(tmp_path / "set").groups) == 7
    assert main(["prepare", "dots", str(tmp_path / "other"), "--seed", "7"]) == 2
    assert "not of dots: leave it out." in capsys.readouterr().err
    assert main(["prepare", "dots", str(tmp_path / "set"), str(tmp_path / "other")]) == 2
    assert "prepare dots: makes its own images and takes one folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"kind": "galas"}, "did you mean 'glas'"),
        ({"kind": "folder", "task": "gland"}, "--task: is an option of .*busi, .*ebhi-seg, .*glas.*, not of folder"),
        ({"kind": "glas", "mask_values": "0:a,1:b"}, "--mask-values: is an option of .*folder.*, not of glas"),
        ({"kind": "ebhi-seg", "images": 3}, "--images: is an option of .*synthetic"),
        ({"kind": "folder", "source": None}, "name the source folder"),
        ({"kind": "folder", "instances": True, "microns_per_pixel": -1.0}, "--microns-per-pixel -1"),
    ],
)
def test_prepare_refuses(tmp_path, given, named):
    image(tmp_path / "images" / "a.png")
    mask(tmp_path / "masks" / "a.png", [0, 255])
    with pytest.raises(InputError, match=named):
        prepare.run(arguments(**({"source": tmp_path, "dest": tmp_path / "out"} | given)))
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take names in UTF-8 alone")
def test_names_are_bytes(tmp_path):
    """A folder and an image whose names are no UTF-8 are prepared, checked and split."""
    source = tmp_path / os.fsdecode(b"set\xff[1]")
    for i, name in enumerate((b"a.png", b"b.png", b"c\xfe.png", b"d.png", b"e.png")):
        image(source / "images" / os.fsdecode(name), i)
        mask(source / "masks" / os.fsdecode(name), [0, 1])
    data = tmp_path / os.fsdecode(b"out\xff")
    assert main(["prepare", "folder", str(source), str(data)]) == 0
    prepared = load_prepared(data)
    assert prepared.name == source.name
    assert prepared.groups[os.fsdecode(b"c\xfe.png")] == os.fsdecode(b"c\xfe")
    assert b"\\udcfe" in (data / "parts.json").read_bytes()
    assert main(["check", str(data)]) == 0
    assert main(["split", str(data), "--labelled", "1"]) == 0


def test_a_terminal_without_our_letters_is_written_to(tmp_path, monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    assert main(["prepare", "synthetic", str(tmp_path / "sét"), "--images", "12", "--size", "48"]) == 0
    sys.stdout.flush()
    assert b"s\\xe9t" in shown.getvalue()


# Parts that are kept


def patients(root: Path, names: str, masked: str) -> Path:
    """A folder with two images of each patient; those of `masked` have masks."""
    for name in names:
        for number in range(2):
            image(root / "images" / f"{name}-{number}.png", seed=10 * ord(name) + number)
            if name in masked:
                mask(root / "masks" / f"{name}-{number}.png", [0, 1])
    return root


def prepared_folder(source: Path, out: Path, *words: str) -> Prepared:
    assert main(["prepare", "folder", str(source), str(out), "--group-regex", "^(.)", *words]) == 0
    return load_prepared(out)


def test_a_set_that_grows_keeps_its_parts_and_learns_from_what_is_new(tmp_path):
    first = prepared_folder(patients(tmp_path / "a", "abcdefg", "abcde"), tmp_path / "first")
    grown = patients(tmp_path / "b", "abcdefghij", "abcdefghi")
    drawn, kept = (
        prepared_folder(grown, tmp_path / name, *words)
        for name, words in (("drawn", ()), ("kept", ("--parts-of", str(tmp_path / "first"))))
    )
    before = parts_of_groups(first)
    assert {before[name] for name in "abcde"} == {"train", "validation", "test"}
    assert parts_of_groups(kept) == before | dict.fromkeys("hij", "train")
    assert any(parts_of_groups(drawn)[name] != before[name] for name in "abcde"), "else nothing is shown here"


def test_parts_that_cannot_be_kept_are_refused(tmp_path, capsys):
    first = prepared_folder(patients(tmp_path / "a", "abc", "abc"), tmp_path / "first")
    listing = json.loads((first.root / "parts.json").read_text())
    listing["groups"] = dict.fromkeys(listing["groups"], "a")
    (first.root / "parts.json").write_text(json.dumps(listing))
    words = ["prepare", "folder", str(tmp_path / "a"), str(tmp_path / "out"), "--parts-of"]
    assert main([*words, str(first.root)]) == 2
    assert "the group 'a' is in train and validation: its parts cannot be kept" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "gone")]) == 2
    assert "gone" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
