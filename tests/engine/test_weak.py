"""A run of lpd on disk: trains without masks, predicts, and evaluates with and without image-level labels."""

import json
import shutil

import pytest

from mpamatch.commands.evaluate import summary
from mpamatch.engine.evaluation import evaluate_run
from mpamatch.engine.loop import train
from mpamatch.errors import InputError
from mpamatch.inference.checkpoint import load_segmenter
from mpamatch.models.prototype_maps import PrototypeMaps
from tests.tiny import make_set, read_metrics, silent, tiny_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    prepared = make_set(tmp_path_factory.mktemp("set") / "tissue")
    for name in prepared.parts["train"]:  # whoever reads a training mask fails
        path = prepared.mask_path(name)
        assert path is not None
        path.unlink()
    (prepared.root / "splits" / "labelled-1-seed0.json").unlink()
    return prepared


@pytest.fixture(scope="module")
def run(prepared, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "run"
    train(tiny_config(prepared.root, "lpd", {"engine.steps": 3}), run, console=silent())
    return run


def test_it_trains_without_masks_and_says_how_it_went(run):
    lines = read_metrics(run)
    steps = [line for line in lines if "loss" in line]
    assert len(steps) == 3
    assert {"classification2", "classification3", "classification4", "diversity"} <= set(steps[0])
    assert {"prototypes/cosine_within", "prototypes/cosine_between"} <= set(steps[0])
    assert all(0 < line["diversity"] <= 1 for line in steps)
    assert "with_image_labels" not in lines[-1]["validation"]


def test_the_run_predicts(run, prepared):
    segmenter = load_segmenter(run, "cpu")
    assert isinstance(segmenter.model, PrototypeMaps)
    label = segmenter.predict(prepared.image_path(prepared.parts["test"][0]))
    assert label.shape == (48, 48)
    assert set(label.flatten().tolist()) <= {0, 1}


def test_both_numbers_are_told(run, prepared):
    scores = evaluate_run(run, None, "test", "cpu")
    told = scores["with_image_labels"]
    assert json.loads((run / "evaluation-test.json").read_text())["with_image_labels"] == told
    assert told["mdice"] != scores["mdice"]
    lines = summary(scores)
    assert f"image alone: mDice {100 * scores['mdice']:.2f}" in lines[-2]
    assert f"told the image's label: mDice {100 * told['mdice']:.2f}" in lines[-1]


def test_told_that_images_show_nothing_all_is_background(run, prepared, tmp_path):
    own = shutil.copytree(prepared.root, tmp_path / "own")
    present = json.loads((own / "present.json").read_text())
    (own / "present.json").write_text(json.dumps({name: [] for name in present}))
    told = evaluate_run(run, own, "test", "cpu")["with_image_labels"]
    assert told["dice"]["gland"] == 0
    assert told["iou"]["background"] > 0


def test_without_all_image_level_labels_there_is_one_number(run, prepared, tmp_path):
    own = shutil.copytree(prepared.root, tmp_path / "own")
    present = json.loads((own / "present.json").read_text())
    del present[prepared.parts["test"][0]]
    (own / "present.json").write_text(json.dumps(present))
    scores = evaluate_run(run, own, "test", "cpu")
    assert "with_image_labels" not in scores
    assert not any("told" in line for line in summary(scores))


def test_another_method_has_one_number(prepared, tmp_path):
    root = make_set(tmp_path / "set").root
    train(tiny_config(root, "supervised"), tmp_path / "run", console=silent())
    assert "with_image_labels" not in evaluate_run(tmp_path / "run", None, "test", "cpu")


def test_a_set_without_image_level_labels_is_refused(prepared, tmp_path):
    own = shutil.copytree(prepared.root, tmp_path / "own")
    (own / "present.json").unlink()
    with pytest.raises(InputError, match="no training image has an image-level label"):
        train(tiny_config(own, "lpd"), tmp_path / "run", console=silent())
    assert not (tmp_path / "run").exists()
