import json

import numpy as np
import pytest
from PIL import Image

from mpamatch.report import figures
from mpamatch.report.figures import draw_examples, draw_training

LINES = [
    {"step": 10, "loss": 2.0, "labelled": 1.0, "strong": 0.5, "seconds": 0.1, "confident": 0.25, "learning_rate": 0.1},
    {"step": 10, "validation": {"mdice": 0.5, "miou": 0.4}},
    {"step": 20, "loss": 1.0, "labelled": 0.5, "strong": 0.25, "seconds": 0.1, "confident": 0.75},
    {"step": 20, "validation": {"mdice": 0.75, "miou": 0.6}},
]
LOGGED = (("labelled", "strong", "feature"), ("confident",))  # a method's losses and shares; no line has a feature
HEALTH = {"prototypes/in_use": 0.9, "prototypes/cosine_within": 0.3, "prototypes/cosine_between": -0.2}


def written(run, lines):
    run.mkdir(exist_ok=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def curves(axis):
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axis.get_lines()}


def test_the_curves_are_those_of_the_run(tmp_path, kept_open):
    paths = draw_training(written(tmp_path, LINES), *LOGGED)
    assert paths == [tmp_path / "figures" / "training.png"]
    losses, agreement = kept_open[0].axes
    assert curves(losses) == {
        "loss": ([10, 20], [2.0, 1.0]),
        "labelled": ([10, 20], [1.0, 0.5]),
        "strong": ([10, 20], [0.5, 0.25]),
    }
    assert curves(agreement) == {
        "validation mDice": ([10, 20], [0.5, 0.75]),
        "share of confident pixels": ([10, 20], [0.25, 0.75]),
    }
    assert losses.get_yscale() == "log"
    assert agreement.get_ylim() == (0, 1)
    assert losses.get_xlabel() == agreement.get_xlabel() == "step"


def test_prototypes_are_drawn_where_there_are_some(tmp_path, kept_open):
    lines = [{**line, **HEALTH} if "loss" in line else line for line in LINES]
    paths = draw_training(written(tmp_path, lines), *LOGGED)
    assert [path.name for path in paths] == ["training.png", "prototypes.png"]
    (axis,) = kept_open[1].axes
    assert curves(axis) == {
        "share in use": ([10, 20], [0.9, 0.9]),
        "mean cosine, same class": ([10, 20], [0.3, 0.3]),
        "mean cosine, other classes": ([10, 20], [-0.2, -0.2]),
    }


def test_pictures_can_be_opened_and_leave_no_figure_behind(tmp_path):
    before = figures.plt.get_fignums()
    (path,) = draw_training(written(tmp_path, LINES), *LOGGED)
    with Image.open(path) as image:
        image.load()
        assert image.width > image.height > 200
    assert figures.plt.get_fignums() == before
    assert [found.name for found in (tmp_path / "figures").iterdir()] == ["training.png"]


@pytest.mark.parametrize("lines", [[line for line in LINES if "loss" in line], [LINES[1]], [{"step": 1, "loss": 1.0}]])
def test_a_run_without_validation_or_losses_yet_is_drawn(tmp_path, lines):
    (path,) = draw_training(written(tmp_path, lines), *LOGGED)
    assert path.is_file()


def test_a_run_without_metrics_has_no_figures(tmp_path):
    assert draw_training(tmp_path, *LOGGED) == []
    assert draw_training(written(tmp_path, []), *LOGGED) == []
    assert not (tmp_path / "figures").exists()


def test_examples_show_the_image_and_each_column(tmp_path, kept_open):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (20, 30, 3), dtype=np.uint8) for _ in range(2)]
    nothing, everything = np.zeros((20, 30), np.uint8), np.ones((20, 30), np.uint8)
    columns = {"truth": [nothing, everything], "predicted": [everything, nothing]}
    colours, names = [(0, 0, 0), (0, 200, 83), (9, 9, 9)], ["background", "gland", "stroma"]
    path = draw_examples(tmp_path / "figures" / "unseen.png", images, columns, colours, names)
    assert path == tmp_path / "figures" / "unseen.png"
    axes = np.array(kept_open[0].axes).reshape(2, 3)
    shown = [[np.asarray(axis.get_images()[0].get_array()) for axis in row] for row in axes]
    assert [axis.get_title() for axis in axes[0]] == ["image", "truth", "predicted"]
    assert [axis.get_title() for axis in axes[1]] == ["", "", ""]
    for row, plain in ((0, 1), (1, 2)):
        assert (shown[row][0] == images[row]).all()
        assert (shown[row][plain] == images[row]).all()  # class 0 leaves the image as it is
        assert (shown[row][3 - plain] != images[row]).any()
    (legend,) = kept_open[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["gland", "stroma"]
    assert path.is_file()
