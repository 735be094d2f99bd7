"""`mpamatch bench`: choices, the files that it writes, and what it refuses."""

import argparse
from functools import partial

import pytest
import torch

from mpamatch.benchmarks import measure, rows
from mpamatch.benchmarks.measure import Ceilings
from mpamatch.commands import bench
from mpamatch.errors import InputError

pytestmark = pytest.mark.slow


def arguments(**given: object) -> argparse.Namespace:
    names = ("op", "device", "compare", "dtype", "out")
    known = dict.fromkeys(names) | {"sizes": "small", "tune": False, "seconds": 600.0}
    return argparse.Namespace(**known | given)


def test_a_run_measures_prints_writes_and_draws(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "Settings", partial(bench.Settings, seconds=0.0))  # no more than the least rounds
    monkeypatch.setattr(measure, "POOL", 2**20)
    monkeypatch.setattr(measure, "measure_ceilings", lambda *_: Ceilings(copy=1e10, matmul={"float32": 1e11}))
    out = tmp_path / "results.jsonl"
    assert bench.run(arguments(op="pseudo_label", device="cpu", compare="softmax", out=str(out))) == 0
    found = rows.read(out)
    assert {row.backend for row in found if row.median} >= {"eager", "softmax"}
    assert {row.operation for row in found} == {"pseudo_label"}
    assert out.with_suffix(".png").is_file()
    printed = capsys.readouterr().out
    assert "measurements" in printed
    assert "wrote" in printed


def test_an_operation_brings_its_combinations():
    names = [benchmark.operation for benchmark in bench.choose("prototype_update_")]
    assert names == ["prototype_update_", "sinkhorn_assign+prototype_update_"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"op": "prototype_contrasts"}, "unknown operation 'prototype_contrasts': did you mean 'prototype_contrast'?"),
        ({"compare": "eager,compiled"}, "unknown competitor 'compiled': did you mean 'compile'?"),
        ({"dtype": "float31"}, "unknown dtype 'float31': did you mean 'float32'?"),
    ],
)
def test_a_wrong_word_is_one_sentence_with_the_nearest_right_one(given, message):
    with pytest.raises(InputError) as raised:
        bench.run(arguments(device="cpu", **given))
    assert str(raised.value) == message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("given", [{"tune": True}, {"tune": True, "device": "cuda"}, {"device": "cuda"}])
def test_without_a_gpu_one_sentence_says_so(given):
    with pytest.raises(InputError, match="torch sees n"):
        bench.run(arguments(**given))


def test_a_competitor_of_another_operation_is_no_mistake_where_all_are_measured():
    assert bench._compare("eager,cdist", bench.choose(None)) == ("eager", "cdist")
    with pytest.raises(InputError, match="unknown competitor 'cdist'"):
        bench._compare("cdist", bench.choose("pseudo_label"))
