"""The kernels run by Triton's interpreter, on the CPU.

TRITON_INTERPRET must stand before Triton is first imported, and would spoil torch.compile in other tests: so the tests
in interpreter/ are files check_*.py, which pytest passes over, and all of them run in processes of their own.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "interpreter"
ROOT = FOLDER.parents[2]


@pytest.mark.slow
def test_interpreted() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.kernels.interpreter"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"\b\d+ passed", done.stdout)) == len(list(FOLDER.glob("check_*.py"))), done.stdout
