"""Runs every check_*.py, each in a process forked once all that they import is there; prints what they say.

TRITON_INTERPRET=1 python -m tests.kernels.interpreter
"""

import os
import sys
import tempfile
from pathlib import Path

import pytest

from tests.kernels.interpreter import compare  # noqa: F401  torch and Triton
from tests.ops import strategies  # noqa: F401  hypothesis

OPTIONS = ["-o", "python_files=check_*.py", "-p", "no:benchmark", "-p", "no:xdist"]


def main() -> int:
    """0 if all passed."""
    files = sorted(Path(__file__).parent.glob("check_*.py"))
    with tempfile.TemporaryDirectory() as name:
        outputs = [Path(name) / file.stem for file in files]
        children = [_start(file, output) for file, output in zip(files, outputs, strict=True)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(*(output.read_text(encoding="utf-8") for output in outputs), sep="\n")
    return int(any(codes))


def _start(file: Path, output: Path) -> int:
    """The process that runs the checks of a file; what it says goes into `output`."""
    child = os.fork()
    if child:
        return child
    stream = os.open(output, os.O_WRONLY | os.O_CREAT)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    code = pytest.main([*OPTIONS, str(file)])
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
