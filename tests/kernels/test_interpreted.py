"""The kernels run by Triton's interpreter, on the CPU.

TRITON_INTERPRET must stand before Triton is first imported, and would spoil torch.compile in other tests: so the tests
in interpreter/ are files check_*.py, which pytest passes over, and each runs in a process of its own.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "interpreter"
ROOT = FOLDER.parents[2]


@pytest.mark.parametrize("file", sorted(FOLDER.glob("check_*.py")), ids=lambda path: path.stem)
def test_interpreted(file: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-o", "python_files=check_*.py", "-p", "no:benchmark", str(file)],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b\d+ passed", done.stdout), done.stdout
