"""What may be switched about a step: passes, the optimizer's kernel, layout, adapters, recomputing, one graph."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from mpamatch.batch import pieces
from mpamatch.engine.build import open_data
from mpamatch.engine.loop import Means, Trainer, resume, train
from mpamatch.errors import InputError
from mpamatch.images import read_image
from mpamatch.inference.checkpoint import load_segmenter
from mpamatch.models.adapters import MARK
from tests.methods.cases import assert_same_numbers, batch, gradients
from tests.tiny import assert_same_run, make_set, read_checkpoint, read_metrics, silent, tiny_config, train_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("set") / "tissue").root


GROUP = {"model.norm": "group"}


def trainer(root, method: str = "mpamatch", **fields: Any) -> Trainer:
    config = tiny_config(root, method, GROUP | {name.replace("__", "."): value for name, value in fields.items()})
    return Trainer(config, open_data(config), silent())


def losses_of(metrics: list[dict[str, Any]]) -> list[float]:
    return [line["loss"] for line in metrics if "loss" in line]


# Passes


@pytest.mark.parametrize("views", [0, 1, 2])
def test_pieces_put_together_are_the_batch(views):
    whole = batch(4, views=views)
    cut = list(pieces(whole, 2))
    for part in ("labelled", "unlabelled"):
        for index, column in enumerate(getattr(whole, part) or ()):
            if column is None:
                assert all(getattr(piece, part)[index] is None for piece in cut)
            else:
                assert torch.equal(torch.cat([getattr(piece, part)[index] for piece in cut]), column)
    assert [len(piece.labelled.image) for piece in cut] == [2, 2]


def test_passes_average_their_gradients(root, monkeypatch):
    """Two passes of two images each: the mean of the gradients that each half has alone."""
    ours = trainer(root, "supervised", data__batch=4, engine__accumulate=2)
    given = ours.feed[0]
    seen = []
    monkeypatch.setattr(ours.wrapped_optimizer, "step", lambda: seen.append(gradients(ours.method)))
    ours.method.train()
    means = Means()
    ours.step(given, 0, means)
    halves, losses = [], []
    for piece in pieces(given, 2):
        ours.method.zero_grad()
        loss = ours.method(piece, torch.tensor(0))["loss"]
        loss.backward()
        halves.append(gradients(ours.method))
        losses.append(float(loss.detach()))
    assert_same_numbers(seen[0], {name: (halves[0][name] + halves[1][name]) / 2 for name in halves[0]}, tolerance=1e-6)
    assert means.take()["loss"] == pytest.approx(sum(losses) / 2)


def test_seconds_are_those_of_a_step_whatever_its_passes():
    means = Means()
    for _ in range(4):
        means.add({"loss": torch.tensor(1.0)}, passes=2)
    means.began -= 10.0
    assert means.take()["seconds"] == pytest.approx(5.0, rel=0.01)


def test_a_batch_that_does_not_divide_into_passes(root):
    says = r"data.batch: 2 images do not divide into 3 passes \(engine.accumulate\) on 1 ranks; choose a multiple of 3."
    with pytest.raises(InputError, match=says):
        trainer(root, engine__accumulate=3)


# The optimizer's kernel and the layout change speed, not numbers


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize(
    "field", [{"engine.fused": False}, {"engine.channels_last": "true"}, {"engine.keep_memory": False}]
)
def test_speed_switches_leave_the_numbers(root, tmp_path, optimizer, field):
    # Adam's first steps have one size whatever the gradient, so rounding grows with the rate
    fields = GROUP | {"engine.steps": 3, "engine.optimizer": optimizer, "engine.learning_rate": 0.003}
    runs = []
    for name, more in (("plain", {}), ("switched", field)):
        train(tiny_config(root, "supervised", fields | more), tmp_path / name, console=silent())
        runs.append(read_metrics(tmp_path / name))
    assert losses_of(runs[1]) == pytest.approx(losses_of(runs[0]), rel=1e-4)


def test_the_layout_is_the_one_asked_for(root):
    for asked, channels_last in (("auto", False), ("true", True), ("false", False)):
        weight = trainer(root, "supervised", engine__channels_last=asked).method.model.decoder.first[0].weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last


def test_the_optimizer_is_fused_where_asked_for(root):
    for asked in (True, False):
        assert trainer(root, "supervised", engine__fused=asked).optimizer.defaults["fused"] is asked


# One graph


@pytest.fixture
def traced(monkeypatch):
    """The graph is traced and differentiated as ever, but its operations run one by one: no minutes of compiling."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


def test_a_compiled_run_is_the_eager_run(root, tmp_path, traced):
    """In float64: in float32 rounding moves a pixel over the threshold within four steps, and the loss with it."""
    fields = GROUP | {"engine.steps": 4, "engine.learning_rate": 0.01, "method.threshold": 0.55}
    fields |= {"engine.precision": "64"}
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for name, more in (("eager", {}), ("graph", {"engine.compile": "default"})):
        train(tiny_config(root, "mpamatch", fields | more), tmp_path / name, console=silent())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before + 1
    eager, compiled = (losses_of(read_metrics(tmp_path / name)) for name in ("eager", "graph"))
    assert compiled == pytest.approx(eager, rel=1e-9)


def test_recomputing_fits_into_the_graph(root, traced):
    losses = []
    for compiled in ("none", "default"):
        ours = trainer(root, "mpamatch", engine__compile=compiled, model__checkpointing=True)
        ours.method.train()
        means = Means()
        ours.step(ours.feed[0], 0, means)
        losses.append(means.take()["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_recomputed_batch_norm_is_no_graph(root):
    with pytest.raises(InputError, match=r"engine\.compile: with model.checkpointing it needs --model.norm group"):
        trainer(root, model__norm="batch", model__checkpointing=True, engine__compile="default")


# Adapters from training to prediction


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    torch.manual_seed(2)
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True).state_dict(), path)
    encoder = {"model.encoder": "vit_tiny_patch16_224", "model.encoder_weights": path, "model.tuning": "lora"}
    return GROUP | encoder | {"engine.steps": 4, "engine.save_every": 2, "engine.validate_every": 2}


def test_checkpoints_hold_adapters_but_not_the_encoder(root, tmp_path, lora):
    config = tiny_config(root, "mpamatch", lora)
    train(config, tmp_path / "run", console=silent())
    for name in ("last", "best"):
        tensors, about = read_checkpoint(tmp_path / "run" / "checkpoints" / f"{name}.safetensors")
        of_encoder = [key for key in tensors if "encoder." in key and not key.startswith("optimizer/")]
        assert of_encoder
        assert all(MARK in key for key in of_encoder)
        assert about["frozen"]["encoder"]["sha256"]


def test_a_run_with_adapters_resumes_to_the_same(root, tmp_path, lora):
    config = tiny_config(root, "mpamatch", lora)
    train(config, tmp_path / "whole", console=silent())
    train_until(3, config, tmp_path / "stopped")
    resume(tmp_path / "stopped", console=silent())
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_a_trained_model_with_adapters_predicts_what_it_was_validated_with(root, tmp_path, lora):
    config = tiny_config(root, "supervised", lora | {"engine.learning_rate": 0.01})
    train(config, tmp_path / "run", console=silent())
    segmenter = load_segmenter(tmp_path / "run", "cpu")
    model = Trainer(config, open_data(config), silent()).method.model.eval()
    tensors, _ = read_checkpoint(tmp_path / "run" / "checkpoints" / "best.safetensors")
    model.load_state_dict({**model.state_dict(), **tensors})
    image = read_image(sorted((root / "images").iterdir())[0])
    merged = segmenter.probabilities(image)
    segmenter.model = model
    np.testing.assert_allclose(merged.numpy(), segmenter.probabilities(image).numpy(), atol=1e-5)
