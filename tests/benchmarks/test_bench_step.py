"""The measurement of a training step: what is counted as inside encoder and decoder, and the comparison of losses."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from mpamatch.benchmarks import bench_step
from mpamatch.benchmarks.bench_step import inside_seconds, marked
from mpamatch.engine.config import load_config
from mpamatch.errors import InputError
from tests.tiny import make_set, tiny_config


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
    with marked(method), profile(activities=[ProfilerActivity.CPU]) as seen:
        with record_function("benchmark::forward"):
            loss = method(x)
        with record_function("benchmark::backward"):
            loss.backward()
    inside, whole = inside_seconds(seen.events())
    assert 0 < inside < whole
    return inside / whole


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


def test_both_backends_step_from_the_same_weights(tmp_path):
    make_set(tmp_path)
    found = bench_step.compare(tiny_config(tmp_path, "mpamatch"), steps=2)
    assert [row.backend for row in found] == ["eager", "fused"]
    for row in found:
        assert row.difference <= bench_step.LOSS_TOLERANCE
        assert 0 < row.outside < 1
        assert 0 < row.p20 <= row.median <= row.p80
        assert len(bench_step.cells(row)) == len(bench_step.HEADER)


def test_without_a_fused_operation_there_is_nothing_to_compare(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_step, "operations", lambda backend, device: {"pseudo_label": "eager"})
    with pytest.raises(InputError, match="no fused operation runs here"):
        bench_step.main(["--recipe", "demo", "--data", str(tmp_path)])


def test_the_command_measures_memory_in_processes_of_their_own(tmp_path, monkeypatch, capsys):
    make_set(tmp_path / "data")
    monkeypatch.setattr(bench_step, "load_config", lambda *_: tiny_config(tmp_path / "data", "mpamatch"))
    monkeypatch.setattr(bench_step, "operations", lambda backend, device: {"pseudo_label": "cpp"})
    asked = []
    monkeypatch.setattr(bench_step, "peak_resident", lambda arguments, backend: asked.append(backend) or 5_000_000)
    words = [
        "--recipe",
        "demo",
        "--data",
        str(tmp_path / "data"),
        "--steps",
        "1",
        "--out",
        str(tmp_path / "steps.jsonl"),
    ]
    assert bench_step.main(words) == 0
    assert asked == ["eager", "auto"]
    lines = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert [line["peak_resident_bytes"] for line in lines] == [5_000_000, 5_000_000]
    assert "training step" in capsys.readouterr().out


def test_the_peak_of_this_process_is_above_what_it_held(tmp_path):
    make_set(tmp_path)
    peak = bench_step.own_peak(tiny_config(tmp_path, "mpamatch"), "eager")
    assert peak is not None
    assert peak >= 100 * 2**20
