import pytest

from mpamatch.report import figures
from mpamatch.report.study import Curve, draw_study

CURVES = [
    Curve("supervised", {"5%": {0: 70.0, 1: 80.0}, "100%": {0: 90.0, 1: 92.0}}, {}),
    Curve("mpamatch", {"5%": {0: 72.0, 1: 81.0}}, {"5%": (1.5, -4.9, 7.9)}),
]


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """The two panels, and the file."""
    kept = []
    monkeypatch.setattr(figures.plt, "close", kept.append)
    about = {"title": "How many?", "axis": "labelled patients", "part": "test", "reference": "supervised"}
    path = draw_study(tmp_path / "figure.png", CURVES, ["5%", "100%"], **about)
    yield (*kept[0].axes, path)
    monkeypatch.undo()
    figures.plt.close(kept[0])


def test_seeds_and_means_stand_at_their_values(drawn):
    left, _, path = drawn
    assert path.is_file()
    assert [label.get_text() for label in left.get_xticklabels()] == ["5%", "100%"]
    assert left.get_xlabel() == "labelled patients"
    assert left.get_ylabel() == "test mDice, %"
    lines = [[list(line.get_ydata()), line.get_linewidth()] for line in left.get_lines()]
    assert lines == [[[70, 90], 0.8], [[80, 92], 0.8], [[75, 91], 2], [[72], 0.8], [[81], 0.8], [[76.5], 2]]
    places = [list(line.get_xdata()) for line in left.get_lines()]
    assert places[2] == pytest.approx([-0.09, 0.91])
    assert places[5] == pytest.approx([0.09])
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["supervised", "mpamatch"]


def test_differences_stand_with_their_intervals(drawn):
    _, right, _ = drawn
    (bar,) = right.containers
    point, _, (interval,) = bar.lines
    assert (list(point.get_xdata()), list(point.get_ydata())) == (pytest.approx([0.09]), [1.5])
    ((low, high),) = interval.get_segments()
    assert (low[1], high[1]) == (pytest.approx(-4.9), pytest.approx(7.9))
    assert "supervised" in right.get_title()
