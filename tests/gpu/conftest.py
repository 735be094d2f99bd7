"""Tests that need a CUDA device; without one they are skipped, visibly.

A GPU machine may lack what the other tests use (hypothesis, rich): nothing here imports it, and pytest is run with
--confcutdir=tests/gpu there, so that tests/conftest.py stays out.
"""

from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and torch sees none"))
