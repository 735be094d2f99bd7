"""What of a folder counts, in every place that lists one; and how names are shown, compared and shortened."""

import os
import shutil
from pathlib import Path

import pytest

from mpamatch import names
from mpamatch.cli import main
from mpamatch.data.kinds import kinds
from mpamatch.data.prepared import load_prepared
from mpamatch.errors import InputError
from mpamatch.inference.files import list_inputs
from tests.test_kinds import module_of_tests
from tests.tiny import SPLIT, make_set

CLUTTER = (".DS_Store", "Thumbs.db", "desktop.ini", "Icon\r")


def litter(root: Path) -> None:
    """Beside every file a ._ file of its name, in every folder what systems put there, and copies of it in theirs."""
    for path in [root, *root.rglob("*")]:
        if path.is_dir():
            for name in CLUTTER:
                (path / name).write_bytes(b"\0\5\26\7 no data")
        else:
            (path.parent / f"._{path.name}").write_bytes(b"\0\5\26\7 no data")
    for hidden in ("__MACOSX", ".ipynb_checkpoints", "@eaDir"):
        for folder in [root, *(path for path in root.iterdir() if path.is_dir() and not names.is_hidden(path.name))]:
            (folder / hidden).mkdir(exist_ok=True)
            for path in [path for path in folder.iterdir() if path.is_file() and not names.is_hidden(path.name)]:
                shutil.copy(path, folder / hidden / path.name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [one.name for one in kinds().values() if one.takes_source])
def test_hidden_files_change_no_prepared_set(kind, tmp_path, capsys):
    made = {}
    for name in ("clean", "littered"):
        root = tmp_path / name / "raw"
        root.mkdir(parents=True)
        words = module_of_tests(kinds()[kind]).prepare_words(root, tmp_path / name / "data")
        if name == "littered":
            litter(root)
        assert main(["prepare", *words]) == 0, capsys.readouterr().err
        made[name] = capsys.readouterr().out.replace(str(tmp_path / name), "").split("note: ")[1:]
    one, other = (load_prepared(tmp_path / name / "data") for name in made)
    assert (one.parts, one.groups, one.present) == (other.parts, other.groups, other.present)
    assert made["clean"] == made["littered"]


def test_hidden_files_are_no_part_of_a_prepared_set(tmp_path, capsys):
    prepared = make_set(tmp_path / "set")
    litter(prepared.root)
    assert prepared.splits() == (SPLIT,)
    assert main(["check", str(prepared.root)]) == 0
    assert "._" not in capsys.readouterr().out


def test_hidden_files_are_not_predicted(tmp_path):
    prepared = make_set(tmp_path / "set")
    before = list_inputs([prepared.root / "images"])
    litter(prepared.root)
    assert list_inputs([prepared.root / "images"]) == before
    assert before.remarks == ()


@pytest.mark.parametrize("name", [".DS_Store", "._a.png", ".hidden", *CLUTTER, "__MACOSX", "@eaDir", "THUMBS.DB"])
def test_hidden(name):
    assert names.is_hidden(name)


@pytest.mark.parametrize("name", ["a.png", "_a.png", "thumbs", "DS_Store", "MACOSX"])
def test_not_hidden(name):
    assert not names.is_hidden(name)


def test_visible_below_goes_into_folders_and_no_links(tmp_path):
    (tmp_path / "b" / "c").mkdir(parents=True)
    for path in ("a.png", "b/c/d.png", "b/.e.png"):
        (tmp_path / path).touch()
    (tmp_path / "b" / "up").symlink_to(tmp_path)
    found = [path.relative_to(tmp_path).as_posix() for path in names.visible_below(tmp_path)]
    assert found == ["a.png", "b", "b/c", "b/c/d.png", "b/up"]
    assert names.visible(tmp_path / "gone") == []


def test_readable_is_what_json_writes():
    assert names.readable(os.fsdecode(b"caf\xe9")) == "caf\\udce9"
    assert names.readable("café a") == "café a"
    assert names.readable("a\tb\x1b") == "a\\tb\\x1b"


def test_fitting_keeps_short_names_and_long_ones_apart():
    assert names.fitting("n" * 251, ".png") == "n" * 251
    one, other = (names.fitting("é" * 130 + end, ".png") for end in "ab")
    assert one != other
    assert all(255 - 2 < len(os.fsencode(f"{name}.png")) <= 255 for name in (one, other))
    assert one == names.fitting("é" * 130 + "a", ".png")


def test_listed_counts_the_rest():
    assert names.listed(["a", "b"]) == "a, b"
    assert names.listed(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"


def test_links_that_lead_nowhere_are_told(tmp_path):
    (tmp_path / "a").symlink_to("gone.png")
    with pytest.raises(InputError, match=r"a: links to gone\.png, which is not there: mend the link or remove it\."):
        names.check_link(tmp_path / "a")
    (tmp_path / "gone.png").touch()
    names.check_link(tmp_path / "a")


def test_in_utf8_leads_to_the_same_file(tmp_path):
    with names.in_utf8(tmp_path) as place:
        assert place == tmp_path
    try:
        folder = tmp_path / os.fsdecode(b"\xe9")
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    (folder / "a").write_text("here")
    for path in (folder, folder / "a"):
        with names.in_utf8(path) as place:
            assert str(place).isascii()
            assert place.samefile(path)
