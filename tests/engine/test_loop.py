import io
import json
import math
import shutil
import time

import pytest
import torch
from rich.console import Console

from mpamatch.cli import main
from mpamatch.data.prepared import load_prepared
from mpamatch.engine.build import build_training, open_data, placed, settled
from mpamatch.engine.config import load_saved
from mpamatch.engine.evaluation import evaluate
from mpamatch.engine.loop import Means, Trainer, new_run, train
from mpamatch.errors import InputError
from mpamatch.methods import METHODS
from mpamatch.methods.fixmatch import FixMatch
from tests.tiny import bitwise_equal, make_set, read_checkpoint, read_metrics, silent, tiny_config, tiny_flags

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("set") / "tissue")


@pytest.fixture(scope="module")
def root(prepared):
    return prepared.root


FIELDS = {"engine.steps": 6, "engine.validate_every": 2, "engine.save_every": 4, "engine.learning_rate": 0.01}


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
    """A finished run and what training handed back."""
    run = tmp_path_factory.mktemp("runs") / "run"
    return run, train(tiny_config(root, "mpamatch", FIELDS), run, console=silent())


# The folder


def test_runs_are_numbered_by_themselves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(new_run(None, "demo")) == "runs/demo-001"
    (tmp_path / "runs" / "demo-003").mkdir()
    assert str(new_run(None, "demo")) == "runs/demo-002"
    assert str(new_run(None, "demo")) == "runs/demo-004"
    assert str(new_run(None, "glas")) == "runs/glas-001"


def test_an_explicit_run_that_exists_is_refused_before_anything_is_written(root, tmp_path):
    with pytest.raises(InputError, match=r"exists already.*--resume"):
        train(tiny_config(root), tmp_path, console=silent())
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_holds_what_it_should(finished, root):
    run, result = finished
    assert result.run == run
    assert load_saved(run / "config.yaml") == placed(
        settled(tiny_config(root, "mpamatch", FIELDS), "synthetic"), load_prepared(root)
    )
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["best.safetensors", "last.safetensors"]
    assert len(list(run.glob("events.out.tfevents.*"))) == 1
    assert not list(run.rglob(".*"))


# What it writes


def test_every_step_is_logged_with_its_loss_learning_rate_and_health(finished):
    run, _ = finished
    lines = [line for line in read_metrics(run) if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for line in lines:
        assert line["learning_rate"] == pytest.approx(0.01 * (1 - (line["step"] - 1) / 6) ** 0.9, rel=1e-12)
        assert 0 <= line["confident"] <= 1
        assert math.isfinite(line["image_contrast"])
        assert 0 <= line["prototypes/in_use"] <= 1
        assert -1.001 <= line["prototypes/cosine_between"] <= 1.001
    texts = (run / "metrics.jsonl").read_text().splitlines()
    clocks = [json.loads(text) for text in texts if "loss" in text]
    assert all(clock["seconds"] > clock["data_seconds"] > 0 for clock in clocks)


def test_the_time_spent_waiting_for_a_batch_is_that_and_no_more():
    def feed():
        for batch in "ab":
            time.sleep(0.05)
            yield batch

    means = Means()
    for _ in means.waiting(feed()):
        time.sleep(0.2)
        means.add({"loss": torch.zeros(())}, passes=1)
    values = means.take()
    assert 0.05 <= values["data_seconds"] < 0.2 < values["seconds"]
    means.add({"loss": torch.zeros(())}, passes=1)
    assert means.take()["data_seconds"] == 0


def test_lines_in_between_are_means(root, tmp_path):
    every = {"engine.steps": 4, "engine.validate_every": 4, "engine.save_every": 4}
    train(tiny_config(root, "supervised", every), tmp_path / "each", console=silent())
    train(tiny_config(root, "supervised", {**every, "engine.log_every": 2}), tmp_path / "pairs", console=silent())
    each = [line["loss"] for line in read_metrics(tmp_path / "each") if "loss" in line]
    pairs = [line["loss"] for line in read_metrics(tmp_path / "pairs") if "loss" in line]
    assert pairs == pytest.approx([(each[0] + each[1]) / 2, (each[2] + each[3]) / 2], rel=1e-6)


def test_validation_comes_when_it_is_due_and_the_best_is_kept(finished):
    run, result = finished
    lines = [line for line in read_metrics(run) if "validation" in line]
    assert [line["step"] for line in lines] == [2, 4, 6]
    scores = [line["validation"]["mdice"] for line in lines]
    assert result.best_mdice == max(scores)
    assert result.best_step == lines[scores.index(max(scores))]["step"]
    assert read_checkpoint(run / "checkpoints" / "last.safetensors")[1]["progress"] == {
        "step": 6,
        "best": result.best_mdice,
        "best_step": result.best_step,
    }


def test_best_are_the_weights_of_the_best_validation(root, tmp_path, monkeypatch):
    """Scores .3, .9, .9, .5 at steps 1 to 4: the first .9 is kept, not the newest weights."""
    given = iter([0.3, 0.9, 0.9, 0.5])
    scores = {"miou": 0.1}
    monkeypatch.setattr("mpamatch.engine.loop.evaluate", lambda *_, **__: {**scores, "mdice": next(given)})
    fields = {"engine.steps": 4, "engine.validate_every": 1}
    result = train(tiny_config(root, "supervised", fields), tmp_path / "four", console=silent())
    assert (result.best_mdice, result.best_step) == (0.9, 2)
    best, _ = read_checkpoint(tmp_path / "four" / "checkpoints" / "best.safetensors")
    last, _ = read_checkpoint(tmp_path / "four" / "checkpoints" / "last.safetensors")
    assert any(not bitwise_equal(value, last[f"method/model.{name}"]) for name, value in best.items())


def test_without_validation_labels_the_newest_weights_are_the_best(root, prepared, tmp_path):
    own = shutil.copytree(root, tmp_path / "set")
    for name in prepared.labelled("validation"):
        (own / "masks" / f"{name.removesuffix('.png')}.png").unlink()
    fields = {"engine.steps": 2, "engine.validate_every": 1}
    result = train(tiny_config(own, "supervised", fields), tmp_path / "run", console=silent())
    assert result.best_step == 2
    best, _ = read_checkpoint(tmp_path / "run" / "checkpoints" / "best.safetensors")
    last, _ = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.safetensors")
    assert all(bitwise_equal(value, last[f"method/model.{name}"]) for name, value in best.items())
    assert not [line for line in read_metrics(tmp_path / "run") if "validation" in line]


# What it does


@pytest.mark.parametrize("fields", [{"engine.optimizer": "sgd"}, {"engine.precision": "bf16"}])
def test_other_optimizer_and_precision_train(fields, root, tmp_path):
    train(tiny_config(root, "fixmatch", {**fields, "engine.steps": 1}), tmp_path / "run", console=silent())
    start = build_training(tiny_config(root, "fixmatch"), open_data(tiny_config(root))).state_dict()
    last, _ = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.safetensors")
    head = last["method/model.decoder.head.weight"]
    assert head.dtype == torch.float32
    assert head.isfinite().all()
    assert not torch.equal(head, start["model.decoder.head.weight"])


def test_methods_of_one_seed_start_from_the_same_network(root):
    models = {}
    for method in (name for name in METHODS if name != "lpd"):  # whose network is another
        config = tiny_config(root, method, {"engine.seed": 3})
        models[method] = build_training(config, open_data(config)).model.state_dict()
    for method, state in models.items():
        assert all(bitwise_equal(value, models["supervised"][name]) for name, value in state.items()), method
    other = build_training(tiny_config(root, "supervised", {"engine.seed": 4}), open_data(tiny_config(root)))
    assert not torch.equal(other.model.state_dict()["decoder.head.weight"], models["supervised"]["decoder.head.weight"])


def test_validation_leaves_every_module_in_the_mode_it_was_in(root):
    config = tiny_config(root, "mean_teacher")
    trainer = Trainer(config, open_data(config), silent())
    trainer.method.train()
    modes = {name: module.training for name, module in trainer.method.named_modules()}
    assert modes["model.decoder"]
    assert not modes["teacher.decoder"]
    scores = evaluate(trainer.segmenter, trainer.validation, "validation", objects=False)
    assert {name: module.training for name, module in trainer.method.named_modules()} == modes
    assert scores["images"] == 4
    assert trainer.segmenter.model is trainer.method.teacher


def test_validation_changes_no_weight_and_no_statistic(root):
    config = tiny_config(root, "supervised")
    trainer = Trainer(config, open_data(config), silent())
    trainer.method.train()
    before = {name: value.clone() for name, value in trainer.method.state_dict().items()}
    evaluate(trainer.segmenter, trainer.validation, "validation", objects=False)
    assert all(bitwise_equal(value, before[name]) for name, value in trainer.method.state_dict().items())


# A loss that is not finite


@pytest.fixture
def bad_third_step(monkeypatch):
    """The loss of the step counted as third is not a number; the labelled part of it is fine."""
    right = FixMatch.forward

    def forward(self, batch, step):
        parts = right(self, batch, step)
        return {**parts, "loss": parts["loss"] * torch.where(step == 2, math.nan, 1.0)}

    monkeypatch.setattr(FixMatch, "forward", forward)


def test_a_loss_that_is_not_finite_stops_with_the_step_the_parts_and_a_checkpoint_from_before(
    root, tmp_path, bad_third_step
):
    fields = {"engine.steps": 5, "engine.save_every": 1, "engine.validate_every": 1}
    with pytest.raises(InputError) as error:
        train(tiny_config(root, "fixmatch", fields), tmp_path / "run", console=silent())
    text = str(error.value)
    assert "\n" not in text
    assert "not finite by step 3" in text
    assert "loss nan" in text
    assert "labelled 0." in text or "labelled 1." in text
    assert str(tmp_path / "run" / "checkpoints") in text
    for name in ("last", "best"):
        tensors, _ = read_checkpoint(tmp_path / "run" / "checkpoints" / f"{name}.safetensors")
        assert all(value.isfinite().all() for value in tensors.values())
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last.safetensors")[1]["progress"]["step"] == 2
    assert [line["step"] for line in read_metrics(tmp_path / "run") if "loss" in line] == [1, 2]


def test_it_is_found_at_the_next_line_of_metrics_at_the_latest(root, tmp_path, bad_third_step):
    fields = {"engine.steps": 8, "engine.log_every": 4}
    with pytest.raises(InputError, match="not finite by step 4"):
        train(tiny_config(root, "fixmatch", fields), tmp_path / "run", console=silent())


# What cannot train is told before the folder is made


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"data.root": ""}, r"data\.root"),
        ({"data.split": "nope"}, "unknown split 'nope'"),
        ({"data.zoom": "[2, 1]"}, r"data\.zoom"),
        ({"data.augment": "histo"}, r"unknown data\.augment 'histo'"),
        ({"model.encoder": "small_hybird"}, "did you mean 'small_hybrid'"),
        ({"model.norm": "grup"}, "did you mean 'group'"),
        ({"model.tuning": "frozen"}, r"model\.tuning"),
        ({"model.decoder_width": 0}, r"model\.decoder_width"),
        ({"model.decoder_channels": "[8, 8, 0, 8]"}, r"model\.decoder_channels"),
        ({"model.decoder_channels": "[8, 8]"}, r"model\.decoder_channels"),
        ({"data.workers": -1}, r"data\.workers"),
        ({"method.momentum": 2}, r"momentum"),
    ],
)
def test_a_configuration_that_cannot_train_leaves_no_folder(fields, says, root, tmp_path):
    with pytest.raises(InputError, match=says) as error:
        train(tiny_config(root, "mpamatch", fields), tmp_path / "run", console=silent())
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("method", "told"), [("fixmatch", True), ("unimatch", True), ("mean_teacher", False)])
def test_that_cutmix_is_off_is_told_of_methods_that_mix(method, told, root, tmp_path):
    said = io.StringIO()
    config = tiny_config(root, method, {"engine.steps": 1, "data.unlabelled_batch": 1})
    train(config, tmp_path / "run", console=Console(file=said, width=500))
    assert ("CutMix is off" in said.getvalue()) is told


def test_one_value_of_a_channel_is_too_few_for_a_batch_norm(root, tmp_path, capsys):
    fields = {"data.batch": 1, "data.crop": 16, "model.norm": "batch"}
    flags = tiny_flags(root, "supervised", fields)
    assert main(["train", "--recipe", "demo", "--run", str(tmp_path / "run"), *flags]) == 2
    said = capsys.readouterr().err
    assert said.startswith("mpamatch: model.norm: batch norm has one value of each channel")
    assert said.endswith("take a larger data.batch or data.crop, or --model.norm group.\n")
