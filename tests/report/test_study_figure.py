import pytest

from mpamatch.report import figures
from mpamatch.report.study import Curve, Grid, draw_grid, draw_study

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


def test_what_prototypes_measured_stands_in_a_row_of_its_own(kept_open, tmp_path):
    measures = {"cosine within": {"1": 0.0, "3": 0.5}, "cosine between": {"3": 0.25}}
    curve = Curve("mpamatch", {"1": {0: 70.0}, "3": {0: 80.0}}, {}, {"1": 60.0, "3": 65.0}, measures)
    about = {"title": "How many?", "axis": "K", "part": "test", "reference": "K 1"}
    draw_study(tmp_path / "figure.png", [curve], ["1", "3"], **about)
    _, _, ious, cosines = kept_open[0].axes
    assert [list(line.get_ydata()) for line in ious.get_lines()] == [[60.0, 65.0]]
    assert ious.get_ylabel() == "test mIoU, %"
    found = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in cosines.get_lines()}
    assert found == {"cosine within": ([0, 1], [0.0, 0.5]), "cosine between": ([1], [0.25])}


def test_a_grid_shows_its_numbers_in_the_cells(kept_open, tmp_path):
    scores = {("0.9", "1"): {0: 70.0, 1: 72.0}, ("0.95", "1"): {0: 80.0, 1: 80.0}, ("0.9", "2"): {0: 75.0}}
    grid = Grid("mpamatch", scores, {("0.9", "1"): (-9.0, -21.7, 3.7)})
    about = {"title": "Which?", "axes": ("τ", "tokens"), "part": "test", "reference": "τ .95"}
    path = draw_grid(tmp_path / "figure.png", [grid], ["0.9", "0.95"], ["1", "2"], **about)
    assert path.is_file()
    left, right = kept_open[0].axes[:2]
    said = {tuple(text.get_position()): text.get_text() for text in left.texts}
    assert said == {(0, 0): "71.00\n± 1.41", (1, 0): "80.00\n± 0.00", (0, 1): "75.00", (1, 1): ""}
    changes = {tuple(text.get_position()): text.get_text() for text in right.texts}
    assert changes == {(0, 0): "-9.00\n± 12.70", (1, 0): "–", (0, 1): "–", (1, 1): ""}
    assert left.images[0].get_array().filled(-1).tolist() == [[71.0, 80.0], [75.0, -1]]
    assert (left.get_xlabel(), left.get_ylabel()) == ("τ", "tokens")
    assert [label.get_text() for label in left.get_yticklabels()] == ["1", "2"]
    low, high = right.images[0].get_clim()
    assert low == -high == -9.0  # no change is white
