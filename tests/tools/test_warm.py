"""The warm python ends, speaks and dies as python does, and brings nothing of mpamatch along."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="the warm python needs Linux's pidfd")
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(warm_python: str) -> Run:
    def run(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run([warm_python, *words], capture_output=True, text=True, timeout=60, **options)

    return run


def test_words_streams_environment_and_folder_arrive(run: Run, tmp_path: Path) -> None:
    code = "import os, sys; print(sys.argv[1:], input(), os.environ['A'], os.getcwd()); print('x', file=sys.stderr)"
    done = run("-c", code, "a b", "c", input="given", env={"A": "ä"}, cwd=tmp_path)
    assert done.stdout == f"['a b', 'c'] given ä {tmp_path}\n"
    assert (done.stderr, done.returncode) == ("x\n", 0)


def test_a_module_runs_from_the_working_folder(run: Run, tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("import sys\nprint(__name__, sys.argv)")
    assert run("-m", "one", "2", cwd=tmp_path).stdout == f"__main__ ['{tmp_path}/one.py', '2']\n"


@pytest.mark.parametrize(
    ("code", "returncode", "said"),
    [
        ("import sys; sys.exit(3)", 3, ""),
        ("raise SystemExit('why')", 1, "why\n"),
        ("raise SystemExit", 0, ""),
        ("import os; os.kill(os.getpid(), 11)", -signal.SIGSEGV, ""),
        ("import atexit, sys; atexit.register(print, 'last', file=sys.stderr)", 0, "last\n"),
    ],
)
def test_it_ends_as_python_does(run: Run, code: str, returncode: int, said: str) -> None:
    done = run("-c", code)
    assert (done.returncode, done.stderr) == (returncode, said)


def test_an_error_is_told(run: Run) -> None:
    done = run("-c", "1 / 0")
    assert done.returncode == 1
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_whoever_kills_the_command_kills_the_process(warm_python: str) -> None:
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    command = subprocess.Popen([warm_python, "-c", code], stdout=subprocess.PIPE, text=True)
    assert command.stdout is not None
    process = int(command.stdout.readline())
    assert process != command.pid
    command.kill()
    assert command.communicate(timeout=30)[0] == ""  # the end of a stream that the process held open
    assert command.returncode == -signal.SIGKILL


def test_it_has_torch_and_nothing_of_ours(run: Run) -> None:
    done = run("-c", "import sys; print('torch' in sys.modules, [m for m in sys.modules if m.startswith('mpamatch')])")
    assert done.stdout == "True []\n"


def test_processes_run_beside_each_other(warm_python: str) -> None:
    """Two that wait for each other's file."""
    code = "import pathlib, sys, time\nmine, other = map(pathlib.Path, sys.argv[1:])\nmine.touch()\n"
    code += "while not other.exists():\n    time.sleep(0.01)"
    names = [str(Path(warm_python).parent / name) for name in "ab"]
    commands = [subprocess.Popen([warm_python, "-c", code, *order]) for order in (names, names[::-1])]
    assert [command.wait(timeout=60) for command in commands] == [0, 0]
