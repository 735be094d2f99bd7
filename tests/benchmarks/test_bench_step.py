"""The measurement of a training step: what is counted as inside encoder and decoder, and the comparison of losses."""

import copy
import json
import statistics
import sys

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from mpamatch.benchmarks import bench_step
from mpamatch.benchmarks.shares import inside_seconds, marked
from mpamatch.engine.config import load_config
from mpamatch.errors import InputError
from mpamatch.models.build import build_model
from tests.tiny import make_set, tiny_config, tiny_flags

pytestmark = pytest.mark.slow


class Model(nn.Module):
    def __init__(self, inside: int, outside: int):
        super().__init__()
        self.encoder, self.decoder = Repeat(inside), Repeat(inside)
        self.outside = Repeat(outside)


class Repeat(nn.Module):
    """A linear layer, so and so often: the backward pass takes about twice the forward."""

    def __init__(self, times: int):
        super().__init__()
        self.times, self.layer = times, nn.Linear(192, 192)

    def forward(self, x):
        for _ in range(self.times):
            x = self.layer(x)
        return x


class Method(nn.Module):
    def __init__(self, inside: int, outside: int):
        super().__init__()
        self.model = Model(inside, outside)

    def forward(self, x):
        model = self.model
        both = [model.decoder(model.encoder(x)) for _ in range(2)]  # two views share the weights
        return model.outside(both[0] + both[1]).sum()


def share_inside(method: Method) -> float:
    x = torch.randn(256, 192)
    method(x).backward()
    shares = []
    for _ in range(5):  # the median, as any one of them may be interrupted
        with marked(method), profile(activities=[ProfilerActivity.CPU]) as seen:
            with record_function("benchmark::forward"):
                loss = method(x)
            with record_function("benchmark::backward"):
                loss.backward()
        inside, whole = inside_seconds(seen.events())
        assert 0 < inside < whole
        shares.append(inside / whole)
    return statistics.median(shares)


SHARES = [(4, 1, 0.75, 1.0), (1, 12, 0.1, 0.45), (1, 4, 0.3, 0.7)]


@pytest.mark.parametrize(("inside", "outside", "low", "high"), SHARES)
def test_forward_and_backward_count_where_their_operations_ran(inside, outside, low, high):
    """Of 4·inside + outside layers, 4·inside lie inside: .94, .25 and .5."""
    assert low < share_inside(Method(inside, outside)) < high


def test_hooks_are_gone_afterwards():
    method = Method(1, 1)
    before = copy.copy(method.model.encoder._forward_hooks)
    with marked(method):
        assert len(method.model.encoder._forward_hooks) == len(before) + 1
    assert method.model.encoder._forward_hooks == before
    assert not method.model.decoder._forward_pre_hooks


def test_the_difference_is_the_largest_relative_one():
    assert bench_step.difference([1.0, 2.0, 4.04], [1.0, 2.0, 4.0]) == pytest.approx(0.01)


def test_steps_begin_at_the_full_weight_of_the_prototypes():
    demo = load_config("demo", None, [])
    assert bench_step.first_step(demo) == demo.method.start + demo.method.ramp > 0
    assert bench_step.first_step(load_config("demo", None, ["--method.name", "supervised"])) == 0


def settings(root, *more):
    """The words of a run of seconds; mpamatch at half of the pixels' confidence."""
    flags = tiny_flags(root, "mpamatch", {"method.threshold": 0.55, "model.norm": "group"})
    place = flags.index("--data.root")
    return ["--recipe", "demo", "--data", str(root), *flags[:place], *flags[place + 2 :], *more]


def test_every_variant_takes_the_same_losses(tmp_path, monkeypatch, warm_python, capsys):
    monkeypatch.setattr(sys, "executable", warm_python)
    make_set(tmp_path / "data")
    out = tmp_path / "steps.jsonl"
    words = settings(tmp_path / "data", "--steps", "2", "--variants", "straightforward,fused")
    assert bench_step.main([*words, "--out", str(out)]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["variant"] for line in lines] == ["straightforward", "fused"]
    for line in lines:
        assert line["difference"] <= bench_step.LOSS_TOLERANCE
        assert 0 < line["outside"] < 1
        assert 0 < line["p20"] <= line["median"] <= line["p80"]
        assert line["peak_bytes"] > 100 * 2**20
        assert "method.threshold=0.55" in line["settings"]
    assert set(lines[0]["operations"].values()) == {"eager"}
    assert "training step" in capsys.readouterr().out


class Answers:
    """Stands for the process of a variant; the losses of `fused` are 0.1 % too high."""

    def __init__(self, name, words):
        self.name, self.losses, self.seconds = name, [], []
        self.about = {"operations": {}, "device": "cpu"}

    def step(self, number, *, timed):
        self.losses.append(number * (1.001 if self.name == "fused" else 1.0))
        self.seconds += [0.5] if timed else []

    def end(self):
        return {"peak": None, "outside": None}


@pytest.mark.parametrize(("variants", "code"), [("eager,published", 0), ("eager,fused", 1)])
def test_a_loss_that_differs_is_told_by_the_exit_code(tmp_path, monkeypatch, variants, code):
    monkeypatch.setattr(bench_step, "Worker", Answers)
    assert bench_step.main(settings(tmp_path, "--steps", "3", "--variants", variants, "--method.start", "1")) == code


def test_a_compiled_variant_has_no_shares(tmp_path):
    make_set(tmp_path)
    config = tiny_config(tmp_path, "mpamatch", {"engine.compile": "default"})
    run = bench_step.Run(config, bench_step.VARIANTS["fused"])
    assert run.outside(0) is None


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--variants", "fsued"], "unknown variant 'fsued': did you mean 'fused'?"),
        (["--method.name", "unimatch", "--variants", "straightforward"], "ended with code 2"),
    ],
)
def test_what_cannot_be_compared(tmp_path, more, says, monkeypatch, warm_python):
    monkeypatch.setattr(sys, "executable", warm_python)
    make_set(tmp_path)
    words = settings(tmp_path, "--steps", "1")
    if "--method.name" in more:
        words = words[: words.index("--method.name")]
    with pytest.raises(InputError, match=says):
        bench_step.main([*words, *more])


def test_random_weights_stand_in_for_a_frozen_encoder(tmp_path):
    fields = {"model.tuning": "frozen", "model.encoder_weights": bench_step.RANDOM}
    config = tiny_config(tmp_path, "mpamatch", fields)
    with bench_step.random_weights(config) as flags:
        assert flags[0] == "--model.encoder_weights"
        named = tiny_config(tmp_path, "mpamatch", {**fields, "model.encoder_weights": flags[1]})
        network = build_model(named.model, 2)
        assert network.frozen
        with bench_step.random_weights(named) as more:
            assert more == []
