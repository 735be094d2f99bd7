"""The suite: every competitor computes what the operation does, and a row says so where one does not or cannot."""

import sys
import types
from dataclasses import replace

import pytest
import torch

from mpamatch.benchmarks import bench_prototype_contrast, cases, suite
from mpamatch.benchmarks.all import BENCHMARKS
from mpamatch.benchmarks.backends import EAGER, using
from mpamatch.benchmarks.measure import Ceilings
from mpamatch.benchmarks.suite import Benchmark, Competitor, Settings, bind, difference
from mpamatch.ops import dispatch
from mpamatch.ops.operation import operations

pytestmark = pytest.mark.slow

CEILINGS = Ceilings(copy=1e10, matmul={"float32": 1e11})
SETTINGS = Settings("cpu", "small", ("float32",), compare=(), seconds=0.0)


def small(benchmark: Benchmark) -> cases.Case:
    """Forward and backward where there is a backward, of a few hundred pixels."""
    case = benchmark.cases("small", "cpu", "float32")[-1]
    return replace(case, n=2 * 9 * 11, shape=(2, 9, 11)) if case.shape[0] else replace(case, n=300)


COMPETITORS = [(benchmark, name) for benchmark in BENCHMARKS for name in benchmark.competitors]


@pytest.mark.parametrize(("benchmark_", "name"), COMPETITORS, ids=lambda value: getattr(value, "operation", value))
def test_a_competitor_computes_what_the_operation_does(benchmark_, name):
    competitor = benchmark_.competitors[name]
    if reason := competitor.missing("cpu"):
        pytest.skip(reason)
    case = small(benchmark_)
    given = benchmark_.inputs(case, "cpu")
    with using(EAGER):
        ours = bind(benchmark_, case, competitor.call)(suite._copy(benchmark_, given))
        meaning = competitor.meaning or benchmark_.call
        theirs = bind(benchmark_, case, meaning)(suite._copy(benchmark_, given))
    assert len(ours) > len(benchmark_.incoming)
    assert difference(ours, theirs, case.dtype) == ""


def reference_linear_cross_entropy(input, weight, target, *, reduction="mean", ignore_index=-100):
    """As the documentation of torch 2.13 and that of Liger 0.8 define theirs."""
    logits = torch.nn.functional.linear(input, weight)
    return torch.nn.functional.cross_entropy(logits, target, reduction=reduction, ignore_index=ignore_index)


def test_fused_linear_cross_entropies_are_called_as_they_ask(monkeypatch):
    """Neither is here, so stand-ins with their meaning and the names of their arguments take their place."""
    module = types.ModuleType("liger_kernel.transformers.functional")
    module.liger_fused_linear_cross_entropy = reference_linear_cross_entropy
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(torch.nn.functional, "linear_cross_entropy", reference_linear_cross_entropy, raising=False)
    benchmark = next(b for b in BENCHMARKS if b.operation == "prototype_contrast")
    case = small(benchmark)
    given = benchmark.inputs(case, "cpu")
    for name in ("linear_cross_entropy", "liger"):
        competitor = benchmark.competitors[name]
        assert competitor.meaning is not None
        with using(EAGER):
            ours = bind(benchmark, case, competitor.call)(given)
            theirs = bind(benchmark, case, competitor.meaning)(given)
        assert len(ours) == 3
        assert difference(ours, theirs, case.dtype) == ""


@pytest.mark.parametrize("benchmark_", BENCHMARKS, ids=lambda value: value.operation)
def test_every_operation_has_a_benchmark_with_ignored_pixels_and_no_zeros(benchmark_):
    given = benchmark_.inputs(small(benchmark_), "cpu")
    for name, value in given.items():
        if value.is_floating_point():
            assert bool((value != 0).all()), name
    if "label" in given:
        assert bool((given["label"] == 255).any())


def test_the_benchmarks_cover_the_operations():
    assert {name for benchmark in BENCHMARKS for name in benchmark.operation.split("+")} == set(operations())


def broken(**inputs):
    raise RuntimeError("no such\nthing")


def slightly_wrong(logits):
    from mpamatch import ops

    label, confidence = ops.pseudo_label(logits)
    return label, confidence * 1.01


def test_rows_say_what_failed_differs_or_is_missing():
    benchmark = replace(
        next(b for b in BENCHMARKS if b.operation == "pseudo_label"),
        competitors={
            "broken": Competitor(broken),
            "wrong": Competitor(slightly_wrong),
            "absent": Competitor(broken, suite.needs("a_package_that_is_not_there")),
            "gpu": Competitor(broken, suite.needs("torch", cuda=True)),
        },
    )
    settings = replace(SETTINGS, compare=("broken", "wrong", "absent", "gpu"))
    rows = list(suite.run_case(benchmark, small(benchmark), settings, CEILINGS, "fresh"))
    notes = {row.backend: row.note for row in rows}
    assert notes["broken"] == "cannot run: no such thing"
    assert notes["absent"] == "a_package_that_is_not_there is not installed"
    assert notes["gpu"] == "runs on a GPU only"
    assert notes["wrong"].startswith("values differ: result 1 by 1.0e-02")
    timed = {row.backend for row in rows if row.median}
    assert timed == {EAGER, "wrong"} | ({"cpp"} if dispatch.available("pseudo_label", "cpu")["cpp"] is None else set())


def test_a_row_holds_every_figure():
    benchmark = next(b for b in BENCHMARKS if b.operation == "prototype_contrast")
    case = small(benchmark)
    rows = [row for row in suite.run_case(benchmark, case, SETTINGS, CEILINGS, "fresh") if row.backend == EAGER]
    assert {row.allocation for row in rows} == {"fresh"}
    for row in rows:
        assert row.median is not None
        assert row.p20 is not None
        assert row.p80 is not None
        assert row.p20 <= row.median <= row.p80
        assert row.rounds >= 5
        assert row.bytes == case.bytes
        assert row.roofline == pytest.approx(max(case.bytes / 1e10, case.flops / 1e11) / row.median)
        assert row.peak_extra_bytes is not None


def test_state_is_not_shared_between_variants():
    benchmark = next(b for b in BENCHMARKS if b.operation == "prototype_update_")
    given = benchmark.inputs(small(benchmark), "cpu")
    before = given["prototypes"].clone()
    with using(EAGER):
        bind(benchmark, small(benchmark), benchmark.call)(suite._copy(benchmark, given))
    assert torch.equal(given["prototypes"], before)


def test_indices_may_differ_in_a_few_places_only():
    one = torch.zeros(10_000, dtype=torch.int32)
    few, many = one.clone(), one.clone()
    few[:5], many[:50] = 1, 1
    assert difference([few], [one], "float32") == ""
    assert difference([many], [one], "float32") == "values differ: 0.50% of result 0"


def test_nan_is_a_difference():
    assert "values differ" in difference([torch.tensor([float("nan")])], [torch.ones(1)], "float32")


@pytest.mark.parametrize("benchmark_", BENCHMARKS, ids=lambda value: value.operation)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_case_has_bytes_and_flops(benchmark_, device):
    for sizes in cases.SIZES:
        for case in benchmark_.cases(sizes, device, "bfloat16"):
            assert case.bytes > 0
            assert case.flops > 0
            assert case.n == case.shape[0] * case.shape[1] * case.shape[2] or case.d


def test_the_floors_of_the_contrast_are_six_bytes_a_channel_in_half_precision():
    case = next(c for c in bench_prototype_contrast.BENCHMARK.cases("full", "cuda", "bfloat16") if c.d == 256)
    assert case.bytes == pytest.approx(6 * case.n * case.d, rel=0.02)


def test_every_operation_comes_before_a_second_case_of_any():
    settings = Settings("cuda", "rest", ("bfloat16", "float32"))
    order = list(suite.in_turns(BENCHMARKS, settings))
    of_dtype = [benchmark.operation for benchmark, case in order if case.dtype == "bfloat16"]
    kinds = set(of_dtype)
    assert len(set(of_dtype[: len(kinds)])) == len(kinds)
    assert [case.dtype for _, case in order] == sorted(case.dtype for _, case in order)


@pytest.mark.parametrize("benchmark_", BENCHMARKS, ids=lambda value: value.operation)
def test_goal_and_rest_make_the_whole(benchmark_):
    goal = benchmark_.cases("goal", "cuda", "bfloat16")
    assert {(case.n, case.d, case.c) for case in goal} in ({(65_536, 256, 5)}, {(8 * 65_536, 0, 5)})
    rest = benchmark_.cases("rest", "cuda", "bfloat16")
    full = benchmark_.cases("full", "cuda", "bfloat16")
    assert [case for case in full if case not in goal] == rest
    assert benchmark_.cases("rest", "cuda", "float32") == benchmark_.cases("full", "cuda", "float32")
