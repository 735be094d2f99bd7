"""What the commands of this folder share: how they end, and where their rows go."""

import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mpamatch.benchmarks import rows
from mpamatch.environment import show_all
from mpamatch.errors import InputError


def run_main(main: Callable[[], int]) -> None:
    """Ends the process with what `main` returns, or with one sentence and 2 for bad input."""
    show_all()
    try:
        sys.exit(main())
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def append_rows(path: Path, found: Iterable[Any]) -> None:
    """Adds rows (dataclasses) to a file of JSON lines, all or none."""
    rows.add(path, [asdict(row) for row in found])
