"""A user without an entry in the system's list of users, as containers, HTCondor and OpenShift run processes."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mpamatch import environment
from tests.tiny import make_set, tiny_flags

NOBODY = 12345
pytestmark = pytest.mark.slow
# Nobody's number has no entry, whoever runs this.
SCRIPT = (
    "import pwd, sys\n"
    "def missing(number): raise KeyError(f'getpwuid(): uid not found: {number}')\n"
    "pwd.getpwuid = missing\n"
    "from mpamatch.cli import main\n"
    "sys.exit(main(sys.argv[1:]))\n"
)


def nameless() -> dict[str, str]:
    """The environment without a word about the user."""
    return {
        key: value for key, value in os.environ.items() if key not in {"HOME", "LOGNAME", "USER", "LNAME", "USERNAME"}
    }


def story(folder: Path, begin: list[str]) -> None:
    """info, prepare, train and predict in `folder`, each by a process that `begin` begins."""
    data, run = folder / "data", folder / "run"
    for words in (
        ["info", "--json"],
        ["prepare", "synthetic", data, "--images", 12, "--size", 48],
        ["train", "--recipe", "demo", "--run", run, *tiny_flags(folder / "set", "supervised", {"data.workers": 1})],
        ["predict", run, folder / "set" / "images", "--out", folder / "out", "--device", "cpu"],
    ):
        done = subprocess.run(
            [*begin, *map(str, words)],
            capture_output=True,
            text=True,
            cwd=folder,
            env=nameless() | {"TMPDIR": str(folder)},
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    assert (folder / "out" / "areas.csv").is_file()
    assert not (folder / "~").exists()


def test_every_step_without_an_entry_and_a_home(tmp_path):
    make_set(tmp_path / "set")
    story(tmp_path, [sys.executable, "-c", SCRIPT])


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root becomes another user")
def test_every_step_as_a_number(tmp_path):
    if not shutil.which("setpriv"):
        pytest.skip("setpriv is not here")
    make_set(tmp_path / "set")
    for path in (tmp_path, *tmp_path.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    # It may read all, since python may lie where only root looks, and write what is its own.
    reads = "+dac_read_search"
    who = ["setpriv", f"--reuid={NOBODY}", "--clear-groups", f"--inh-caps={reads}", f"--ambient-caps={reads}"]
    if subprocess.run([*who, sys.executable, "-c", "import torch"], capture_output=True, env=nameless()).returncode:
        pytest.skip("another user cannot import torch here")
    story(tmp_path, [*who, sys.executable, "-m", "mpamatch"])


def test_a_home_that_others_can_write_to_is_not_taken(tmp_path):
    mine = environment._own_folder(tmp_path / "mine")
    assert mine == tmp_path / "mine"
    assert stat.S_IMODE(mine.stat().st_mode) == 0o700
    assert environment._own_folder(tmp_path / "mine") == mine
    mine.chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("mine", "link"):
        other = environment._own_folder(tmp_path / name)
        assert other.parent != tmp_path
        assert stat.S_IMODE(other.stat().st_mode) == 0o700
        other.rmdir()
