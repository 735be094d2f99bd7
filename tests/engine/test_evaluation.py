import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from mpamatch.cli import main
from mpamatch.data.cache import ImageCache
from mpamatch.data.prepared import load_prepared
from mpamatch.engine.evaluation import evaluate, evaluate_run
from mpamatch.engine.loop import train
from mpamatch.errors import InputError
from mpamatch.images import read_mask
from tests.tiny import make_set, silent, tiny_config


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("set") / "tissue")


@pytest.fixture(scope="module")
def run(prepared, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "run"
    train(tiny_config(prepared.root, "supervised"), run, console=silent())
    return run


class Knows:
    """A segmenter that gives labels it was told, one after the other."""

    tells_objects_apart = False

    def __init__(self, labels):
        self.labels = iter(labels)
        self.calls = []

    def probabilities(self, images):
        self.calls.append([image.shape for image in images])
        labels = [torch.from_numpy(next(self.labels).astype(np.int64)) for _ in images]
        return [functional.one_hot(label, 2).permute(2, 0, 1).float() for label in labels]


def truths(prepared, part):
    return [read_mask(prepared.mask_path(name)) for name in prepared.labelled(part)]


def test_the_truth_scores_one(prepared):
    scores = evaluate(Knows(truths(prepared, "test")), ImageCache(prepared, 0), "test", objects=True)
    assert (scores["part"], scores["images"]) == ("test", 4)
    assert scores["mdice"] == scores["miou"] == 1
    assert scores["objects"]["f1"] == scores["objects"]["dice"] == 1
    assert scores["objects"]["hausdorff"] == 0


def test_scores_are_those_of_the_pooled_pixels(prepared):
    """Predictions moved by five pixels, scored here from the sets of pixels themselves."""
    true = truths(prepared, "train")
    predicted = [np.roll(label, 5, axis=0) for label in true]
    segmenter = Knows(predicted)
    scores = evaluate(segmenter, ImageCache(prepared, 0), "train", objects=False)
    one, other = np.concatenate([label.ravel() for label in true]), np.concatenate([x.ravel() for x in predicted])
    for index, name in enumerate(prepared.class_names):
        both = ((one == index) & (other == index)).sum()
        sizes = (one == index).sum() + (other == index).sum()
        assert scores["dice"][name] == pytest.approx(2 * both / sizes, rel=1e-12)
        assert scores["iou"][name] == pytest.approx(both / (sizes - both), rel=1e-12)
    assert scores["mdice"] == pytest.approx(np.mean(list(scores["dice"].values())), rel=1e-12)
    assert scores["foreground_dice"] == scores["dice"]["gland"]
    assert "objects" not in scores
    assert [len(call) for call in segmenter.calls] == [8, 8]


def test_the_file_is_what_others_build_on(run, prepared):
    scores = evaluate_run(run, None, "test", "cpu")
    content = json.loads((run / "evaluation-test.json").read_text(), parse_constant=pytest.fail)
    assert content == {"run": str(run), "data": str(prepared.root), **scores}
    assert {"mdice", "miou", "dice", "iou", "foreground_dice", "foreground_iou", "per_image", "objects"} <= set(content)
    assert set(content["dice"]) == set(content["iou"]) == set(prepared.class_names)
    fractions = [content["mdice"], content["miou"], *content["dice"].values(), *content["iou"].values()]
    assert all(0 <= value <= 1 for value in fractions if value is not None)
    assert content["part"] == "test"


def test_another_data_set_and_part(run, prepared, tmp_path):
    own = shutil.copytree(prepared.root, tmp_path / "own")
    scores = evaluate_run(run, own, "validation", "cpu")
    assert json.loads((run / "evaluation-validation.json").read_text())["data"] == str(own)
    assert scores["images"] == 4


def test_the_validation_score_of_training_is_found_again(run):
    """The best checkpoint, loaded from its file, scores what the loop wrote down."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = max(line["validation"]["mdice"] for line in lines if "validation" in line)
    assert evaluate_run(run, None, "validation", "cpu")["mdice"] == best


def test_an_unknown_part_is_refused(run):
    with pytest.raises(InputError, match="unknown part 'tset': did you mean 'test'"):
        evaluate_run(run, None, "tset", "cpu")
    assert not (run / "evaluation-tset.json").exists()


def test_a_part_without_labels_is_refused(run, prepared, tmp_path):
    own = shutil.copytree(prepared.root, tmp_path / "own")
    for path in (own / "masks").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="the test part has no labelled image"):
        evaluate_run(run, own, "test", "cpu")


def test_validation_stands_in_where_no_test_image_is_labelled(run, prepared, tmp_path, capsys):
    own = shutil.copytree(prepared.root, tmp_path / "own")
    for name in prepared.parts["test"]:
        (own / "masks" / f"{Path(name).stem}.png").unlink()
    with pytest.raises(InputError, match=r"the test part has no labelled image; .*--part validation can be scored"):
        evaluate_run(run, own, "test", "cpu")
    copy = shutil.copytree(run, tmp_path / "run")
    for command in ("evaluate", "report"):
        assert main([command, str(copy), "--data", str(own), "--device", "cpu"]) == 0
        assert "note: no image of the test part is labelled, so the validation part" in capsys.readouterr().out
    assert (copy / "evaluation-validation.json").is_file()
    assert json.loads((copy / "summary.json").read_text())["runs"][0]["part"] == "validation"
    assert main(["evaluate", str(copy), "--data", str(own), "--part", "validation", "--device", "cpu"]) == 0
    assert "note:" not in capsys.readouterr().out


def test_other_classes_are_refused(run, prepared, tmp_path):
    own = shutil.copytree(prepared.root, tmp_path / "own")
    about = json.loads((own / "dataset.json").read_text())
    about["classes"][1]["name"] = "crypt"
    (own / "dataset.json").write_text(json.dumps(about))
    (own / "present.json").unlink()  # which names the class as it was
    assert load_prepared(own).class_names == ("background", "crypt")
    with pytest.raises(InputError, match=r"classes \(background, crypt\) are not those of the run"):
        evaluate_run(run, own, "test", "cpu")
