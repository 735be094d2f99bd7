"""What the tests of figures share."""

import pytest

from mpamatch.report import figures


@pytest.fixture
def kept_open(monkeypatch):
    """The figures that are drawn, still there to be looked at."""
    kept = []
    monkeypatch.setattr(figures.plt, "close", kept.append)
    yield kept
    monkeypatch.undo()
    for figure in kept:
        figures.plt.close(figure)
