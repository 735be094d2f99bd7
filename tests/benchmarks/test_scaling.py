"""The prediction against numbers worked out by hand."""

import dataclasses

import pytest

from mpamatch.benchmarks.scaling import Plan, main, terms

# Ring: 2·3/4 · 2e9 B / 10e9 B/s = 0.3 s; hidden: 0.5 · 0.4 = 0.2 s; small: 10 · 1 ms = 0.01 s.
PLAN = Plan(
    step_seconds=0.4,
    labelled=4,
    unlabelled=12,
    bytes=2e9,
    ranks=4,
    bandwidth=10e9,
    feed=20,
    cores=8,
    patches=4800,
    calls=10,
    latency=1e-3,
)


def test_a_step_is_what_one_rank_computes_and_what_of_the_exchange_is_not_hidden():
    assert PLAN.exchange == pytest.approx(0.3)
    assert PLAN.hidden == pytest.approx(0.2)
    assert PLAN.small == pytest.approx(0.01)
    assert PLAN.computing == pytest.approx(0.51)
    assert PLAN.feeding == pytest.approx(16 / 160)
    assert (PLAN.step, PLAN.bound) == (PLAN.computing, "computing")
    assert PLAN.hours == pytest.approx(4800 / 48 * 0.51 / 3600)
    assert PLAN.efficiency == pytest.approx(0.4 / 0.51)


def test_an_exchange_that_fits_behind_the_backward_pass_costs_nothing():
    assert dataclasses.replace(PLAN, bytes=1e9).computing == pytest.approx(0.41)


def test_a_slow_feed_sets_the_pace():
    plan = dataclasses.replace(PLAN, feed=2)
    assert (plan.step, plan.bound) == (1.0, "feeding")
    assert plan.efficiency == pytest.approx(0.4)


def test_slow_storage_sets_the_pace_of_all_ranks_together():
    plan = dataclasses.replace(PLAN, image_bytes=1e6, storage=32e6)
    assert (plan.step, plan.bound) == (2.0, "reading")


def test_one_rank_exchanges_nothing():
    plan = dataclasses.replace(PLAN, ranks=1)
    assert (plan.exchange, plan.small, plan.step) == (0, 0, 0.4)
    assert plan.efficiency == 1


def test_every_term_is_printed_with_its_numbers(capsys):
    words = [f"--{name.replace('_', '-')}={value}" for name, value in dataclasses.asdict(PLAN).items()]
    assert main(words) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0].startswith("a prediction")
    assert lines[1:] == [" ".join(" ".join(term).split()) for term in terms(PLAN)]
    assert "exchange 2·(4 − 1)/4 · 2e+09 B / 1e+10 B/s 0.3 s" in lines
    assert "step max(computing, feeding, reading) = computing 0.51 s" in lines
    assert "unlabelled images 4 · 12 / 0.51 s 94 /s" in lines
    assert "4,800 patches 4800 / (4 · 12) · 0.51 s 0.01417 h" in lines


@pytest.mark.parametrize(("word", "value"), [("--ranks", "0"), ("--overlap", "1.5"), ("--bytes", "-1")])
def test_a_number_that_cannot_be_is_named(word, value, capsys):
    words = "--step-seconds 1 --labelled 1 --unlabelled 1 --bytes 1 --ranks 1 --bandwidth 1 --feed 1 --cores 1"
    assert main([*words.split(), "--patches", "1", word, value]) == 2
    said = capsys.readouterr().err
    assert word in said
    assert said.count("\n") == 1
