"""The search for tile sizes, with a timer that needs no GPU."""

import importlib
import inspect
from dataclasses import replace

import pytest

from mpamatch.benchmarks import tune
from mpamatch.benchmarks.tune import Choice, choose, targets
from mpamatch.errors import InputError
from mpamatch.kernels import tiles

pytestmark = pytest.mark.slow

KERNELS = [kernel for kernels in tune.tiled(None).values() for kernel in kernels]


def space() -> list[dict[str, int]]:
    return [{"BLOCK_N": n, "num_warps": w, "num_stages": s} for n in (32, 64, 128) for w in (2, 4, 8) for s in (1, 2)]


def seconds(setting: dict[str, int]) -> float:
    """Quickest at BLOCK_N 128, 4 warps, 2 stages."""
    return abs(setting["BLOCK_N"] - 128) / 32 + abs(setting["num_warps"] - 4) + (2 - setting["num_stages"]) + 1.0


def test_with_time_for_all_the_quickest_is_found():
    start = space()[0]
    choice = choose(start, space(), seconds, until=1.0, clock=lambda: 0.0)
    assert choice == Choice({"BLOCK_N": 128, "num_warps": 4, "num_stages": 2}, 1.0, seconds(start), len(space()))


def test_without_time_the_start_is_kept():
    start = {"BLOCK_N": 64, "num_warps": 4, "num_stages": 1}
    choice = choose(start, space(), seconds, until=1.0, clock=lambda: 2.0)
    assert choice == Choice(start, seconds(start), seconds(start), 1)


def test_neighbours_of_the_best_come_first():
    seen = []

    def timer(setting):
        seen.append(setting)
        return seconds(setting)

    ticks = iter(range(100))
    choose(space()[0], space(), timer, until=8, clock=lambda: next(ticks))
    best = seen[0]
    for setting in seen[1:]:
        assert tune._steps_apart(setting, best) == 1
        best = min(best, setting, key=seconds)
    assert seconds(best) < seconds(space()[0])


def test_a_wrong_or_failing_setting_is_never_chosen():
    wrong = {"BLOCK_N": 128, "num_warps": 4, "num_stages": 2}
    choice = choose(space()[0], space(), lambda s: None if s == wrong else seconds(s), until=1.0, clock=lambda: 0.0)
    assert choice.setting != wrong
    assert choice.seconds == 2.0


def test_where_nothing_runs_the_start_stays_and_the_line_says_so():
    choice = choose(space()[0], space(), lambda setting: None, until=1.0, clock=lambda: 0.0)
    assert choice == Choice(space()[0], None, None, len(space()))
    target = targets("pseudo_label")[0]
    assert f"no setting of {len(space())} ran" in tune._line(target, choice)


def test_the_entries_of_a_search_make_a_whole_table(tmp_path):
    device = tiles.Device("A GPU", (9, 0), 100, 232448)
    setting = {"BLOCK_N": 64, "num_warps": 4, "num_stages": 2}
    entries = [{"kernel": t.kernel, **t.bounds, "setting": setting} for t in targets(None)]
    path = tiles.write(device, entries, KERNELS, origin="a test", folder=tmp_path)
    assert path == tmp_path / "a-gpu.json"


def test_a_search_for_one_operation_keeps_the_entries_of_the_others():
    entries = [{"kernel": kernel, "setting": {}} for kernel in KERNELS]
    kept = {entry["kernel"] for entry in tune._others(entries, "prototype_contrast")}
    assert kept == {kernel for kernel in KERNELS if not kernel.startswith("prototype_contrast.")}
    assert tune._others(entries, None) == []


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_argument_of_a_kernel_is_known(kernel):
    pytest.importorskip("triton")
    name, _, direction = kernel.partition(".")
    module = importlib.import_module(f"mpamatch.kernels.{name}")
    benchmark = tune.benchmark_of(name)
    case = replace(targets(name)[0].case, n=8, shape=(1, 2, 4))
    known = {key: key for key in benchmark.inputs(case, "cpu")} | dict.fromkeys(benchmark.constants, "constant")
    if direction != "forward":
        known |= {key: key for key in benchmark.results}
    found = tune.arguments(getattr(module, direction), known)
    expected = inspect.signature(getattr(module, direction)).parameters
    assert found == ["constant" if key in benchmark.constants else "need_" in key or key for key in expected]


def test_an_operation_without_tiles_is_refused_by_name():
    with pytest.raises(InputError, match="sinkhorn_assign"):
        tune.tiled("sinkhorn_assign")
