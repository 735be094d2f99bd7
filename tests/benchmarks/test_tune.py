"""The search for tile sizes, with a timer that needs no GPU."""

import importlib
import inspect
import json
from concurrent.futures import Future
from dataclasses import replace
from functools import partial

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
    assert choice == Choice({"BLOCK_N": 128, "num_warps": 4, "num_stages": 2}, 1.0, seconds(start), len(space()), 0)


def test_without_time_the_start_is_kept():
    start = {"BLOCK_N": 64, "num_warps": 4, "num_stages": 1}
    choice = choose(start, space(), seconds, until=1.0, clock=lambda: 2.0)
    assert choice == Choice(start, seconds(start), seconds(start), 1, 0)


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
    assert choice == Choice(space()[0], None, None, len(space()), 0)
    target = targets("pseudo_label")[0]
    assert f"no setting of {len(space())} ran" in tune._line(target.kernel, target.case, choice)


def test_the_entries_of_a_search_make_a_whole_table(tmp_path):
    device = tiles.Device("A GPU", (9, 0), 100, 232448)
    setting = {"BLOCK_N": 64, "num_warps": 4, "num_stages": 2}
    entries = [target.entry(setting) for target in targets(None)]
    path = tiles.write(device, entries, KERNELS, origin="a test", folder=tmp_path)
    assert path == tmp_path / "a-gpu.json"


def test_what_is_not_compiled_yet_waits_and_what_its_code_condemns_is_never_timed():
    start, timed, looks = space()[0], [], []

    def timer(setting):
        timed.append(setting)
        return seconds(setting)

    def state(setting):
        if setting["num_stages"] == 1:
            return "spills 8 bytes a thread"
        return "" if setting["num_warps"] == 2 or looks else None

    choice = choose(
        start, space(), timer, until=1.0, state=state, clock=lambda: 0.0, wait=lambda: looks.append(len(timed))
    )
    assert looks == [4]  # the start and the three of two warps came first
    assert len(timed) == choice.tried == 10
    assert choice.dropped == 8
    assert choice.setting == {"BLOCK_N": 128, "num_warps": 4, "num_stages": 2}


def test_half_precision_at_the_goal_sizes_is_searched_first():
    order = tune.in_order(targets(None))
    assert [target.bits for target in order] == sorted(target.bits for target in order)
    first = order[: len(KERNELS)]
    assert {target.kernel for target in first} == set(KERNELS)
    assert {(target.case.d, target.case.c) for target in first} == {(256, 5), (0, 5)}
    assert len(set(order)) == len(order) == len(targets(None))


DEVICE = tiles.Device("A GPU of no table", (9, 0), 132, 232448)


@pytest.mark.parametrize("searched", [0, 1, 4, 12, 30, len(targets(None))])
def test_a_table_keeps_the_values_in_use_for_what_is_not_searched_yet(searched, tmp_path):
    before = list(tiles.entries_for(DEVICE))
    order = tune.in_order(targets(None))
    new = {target: {"BLOCK_N": number, "programs": 1} for number, target in enumerate(order[:searched])}
    chosen = {target: Choice(setting, 1.0, 1.0, 1, 0) for target, setting in new.items()}
    entries = tune.table(targets(None), chosen, before)
    tiles.write(DEVICE, entries, KERNELS, origin="a test", folder=tmp_path)  # it is whole
    for target in order:
        assert tune.in_use(target, entries) == new.get(target, tune.in_use(target, before)), target
    widest = {(target.kernel, target.bits) for target in new if not target.bounds}
    for entry in before:
        bits = entry.get("bits", 16)
        if (entry["kernel"], bits) not in widest and "D" not in entry:  # wider than all that is searched
            wide = replace(order[0], kernel=entry["kernel"], bits=bits, case=replace(order[0].case, d=9999, c=9999))
            maps = replace(wide, case=replace(wide.case, d=0))
            asked = maps if entry["kernel"].startswith(("segmentation", "pseudo")) else wide
            assert tune.in_use(asked, entries) == tune.in_use(asked, before)


class Finished:
    """Compiles nothing: every setting may be timed."""

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def ask(self, *_):
        future: Future[str] = Future()
        future.set_result("")
        return future


@pytest.fixture
def dry(monkeypatch, tmp_path):
    """A search whose calls take no time, and a clock that each of them moves by a second."""
    now = [0.0]

    def timer_of(kernel, case, device):
        def timer(setting):
            now[0] += 1.0
            return 1.0 / (1 + setting["num_warps"])

        return timer

    monkeypatch.setenv("MPAMATCH_PRETEND", "1")
    monkeypatch.setattr(tune, "mend_interpreter", lambda: None)
    monkeypatch.setattr(tune, "Compilers", Finished)
    monkeypatch.setattr(tune, "_timer", timer_of)
    monkeypatch.setattr(tune.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(tune, "choose", partial(choose, clock=lambda: now[0]))
    return tmp_path / "rows.jsonl"


def test_no_search_begins_after_the_deadline_and_the_table_is_written_after_each(dry, monkeypatch, capsys):
    written = []
    write = tune.Ground.write

    def counted(place, entries, origin):
        written.append(origin)
        return write(place, entries, origin)

    monkeypatch.setattr(tune.Ground, "write", counted)
    assert tune.tune(None, 20.0, dry) == 0
    lines = [json.loads(line) for line in dry.read_text().splitlines()]
    every = len(targets(None))
    assert 1 < len(lines) == len(written) < every
    assert f"{every - len(lines)} of {every} searches did not begin" in capsys.readouterr().out
    assert sum(line["tried"] for line in lines) <= 20 + len(lines)
    assert [line["tune"] for line in lines][: len(KERNELS)] == KERNELS[: len(lines)]
    copy = json.loads(dry.with_suffix(".tiles.json").read_text())
    assert copy == json.loads((dry.with_suffix(".tiles") / "pretended.json").read_text())
    assert f"{len(lines)} of them done" in copy["origin"]
    assert (copy["tuned"], lines[0]["pretend"]) == (False, True)


def test_without_time_nothing_is_searched_or_written(dry):
    assert tune.tune(None, 0.0, dry) == 0
    assert not dry.exists()


def test_a_kernel_that_does_not_run_keeps_no_other_from_its_search(dry, monkeypatch, capsys):
    def broken(kernel, case, device):
        raise RuntimeError("no such\ninstruction")

    monkeypatch.setattr(tune, "_timer", broken)
    assert tune.tune("pseudo_label", 20.0, dry) == 0
    lines = [json.loads(line) for line in dry.read_text().splitlines()]
    assert [line["seconds"] for line in lines] == [None] * 6
    assert "no such instruction" in capsys.readouterr().out
    monkeypatch.setattr(tune, "_timer", lambda *_: (_ for _ in ()).throw(RuntimeError("an illegal memory access")))
    with pytest.raises(RuntimeError, match="illegal"):
        tune.tune("pseudo_label", 20.0, dry)


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
