"""Files and folders written whole or not at all: what a kill leaves is removed, what is being written is not."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mpamatch import files
from mpamatch.errors import InputError
from mpamatch.files import UNFINISHED, clear_unfinished, is_unfinished, making, replacing, write_json

# Begins to write, says so, and waits to be killed.
WRITES = """
import sys, time
from pathlib import Path
from mpamatch.files import making, replacing
file, folder = Path("a.txt"), Path("a")
with replacing(file) as one, making(folder) as other:
    one.write_text("half")
    (other / "half.txt").write_text("half")
    print(flush=True)
    time.sleep(60)
"""


def unfinished(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if is_unfinished(path)]


@pytest.fixture
def writing(tmp_path):
    """A process that is writing a file and a folder."""
    command = [sys.executable, "-c", WRITES]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"\n"
            yield process
        finally:
            process.kill()


def test_what_a_killed_process_left_goes_and_what_a_living_one_writes_stays(writing, tmp_path):
    assert len(unfinished(tmp_path)) == 2
    write_json(tmp_path / "b.json", {})
    with making(tmp_path / "c"):
        pass
    assert len(unfinished(tmp_path)) == 2
    writing.kill()
    writing.wait()
    with making(tmp_path / "d"):
        assert len(unfinished(tmp_path)) == 1  # its own
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.json", "c", "d"]


def test_the_first_write_into_a_folder_clears_it(tmp_path):
    for name in "ab":
        (tmp_path / f".{name}.x1{UNFINISHED}").write_text("half")
    (tmp_path / ".notes").write_text("mine")
    write_json(tmp_path / "a.json", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [".notes", "a.json"]


def test_this_process_keeps_what_it_writes(tmp_path):
    with replacing(tmp_path / "a.txt") as one, making(tmp_path / "b") as other:
        clear_unfinished(tmp_path)
        assert one.exists()
        assert other.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b"]


def test_nothing_is_removed_where_there_are_no_locks(tmp_path, monkeypatch):
    def none(handle, how):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", none)
    (tmp_path / f".a.x1{UNFINISHED}").write_text("perhaps of another machine")
    write_json(tmp_path / "a.json", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".a.x1{UNFINISHED}", "a.json"]


def test_a_file_that_was_taken_for_left_behind_before_it_was_locked_is_made_again(tmp_path, monkeypatch):
    made, lock = [], fcntl.flock

    def taken(handle, how):
        if len(made) < 2:
            made.append(unfinished(tmp_path)[0])
            made[-1].rmdir() if made[-1].is_dir() else made[-1].unlink()
        lock(handle, how)

    monkeypatch.setattr(files.fcntl, "flock", taken)
    write_json(tmp_path / "a.json", 1)
    made.clear()
    with making(tmp_path / "b") as folder:
        (folder / "c").touch()
    assert len(made) == 2
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.json", "b", "c"]


@pytest.mark.parametrize("letter", ["a", "ä", "界"])
def test_the_longest_name_leaves_room(tmp_path, letter):
    name = letter * (251 // len(os.fsencode(letter)))
    write_json(tmp_path / f"{name}.txt", {})
    assert [path.stem for path in tmp_path.iterdir()] == [name]


def test_a_folder_that_was_filled_meanwhile_is_kept(tmp_path):
    place = tmp_path / "a"
    with pytest.raises(InputError, match=r"a: another command made it meanwhile"):
        with making(place):
            (place / "b").mkdir(parents=True)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b"]
