"""The benchmark of feeds: variants, CPU time of workers, rows, the share of waiting in training."""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from mpamatch.benchmarks import bench_feed
from mpamatch.benchmarks.bench_feed import FeedRow, Sample, Variant, cpu_seconds, summarise, variants
from mpamatch.engine.config import load_config
from mpamatch.errors import InputError
from tests.tiny import SPLIT, make_set, tiny_config, tiny_flags

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="pins processes to cores, as Linux can"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("set") / "tissue").root


def of_tiny(root, variant: Variant):
    flags = [*tiny_flags(root, "unimatch"), "--data.split", SPLIT, *variant.flags()]
    return load_config("demo", None, flags)


def test_every_feed_is_compared_with_pil_on_as_many_cores_and_views():
    found = variants([1, 2], 1024)
    assert len(found) == len(set(found)) == 12
    natural = [variant for variant in found if variant.augment == "natural" and not variant.cache_mb]
    assert [(variant.feed, variant.cores) for variant in natural] == [
        (feed, cores) for cores in (1, 2) for feed in ("pil", "torchvision", "dali")
    ]
    for variant in found:
        config = load_config("ebhi-seg-gland", None, variant.flags())
        assert config.data.weak_colour == (0 if variant.augment == "natural" else 0.5)
        assert (config.data.crop, config.data.scale, config.data.cache_mb) == (112, 0.5, variant.cache_mb)
        assert config.data.workers == (0 if variant.cores == 1 and variant.feed != "dali" else variant.cores)


@pytest.mark.parametrize("feed", ["pil", "torchvision", "dali"])
def test_a_sample_counts_the_files_behind_its_batches(root, feed):
    if feed == "dali":
        pytest.importorskip("nvidia.dali")
    variant = Variant(feed, "natural", 1)
    taken = bench_feed.sample(of_tiny(root, variant), variant, 5)
    assert taken.images == 5 * (2 + 2)
    assert taken.seconds > 0
    assert taken.cpu_seconds > 0


def test_all_feeds_make_the_same_kind_of_batch(root):
    shapes = {}
    for feed in ("pil", "torchvision"):
        batch = next(bench_feed.batches(of_tiny(root, Variant(feed, "natural", 1)), feed, 1))
        views = batch.unlabelled[:6]  # UniMatch's loader has no noise for dropping features
        shapes[feed] = [(tuple(t.shape), t.dtype) for t in (*batch.labelled[:2], *views)]
        assert -3 < batch.unlabelled.strong2.mean() < 3
    assert shapes["pil"] == shapes["torchvision"]


def work(seconds: float, done) -> None:
    while time.process_time() < seconds:
        sum(range(1000))
    done.set()
    time.sleep(60)


def test_the_cpu_time_of_a_living_worker_counts():
    context = multiprocessing.get_context("fork")
    done = context.Event()
    before = cpu_seconds()
    process = context.Process(target=work, args=(0.4, done), daemon=True)
    process.start()
    done.wait(30)
    spent = cpu_seconds() - before
    process.kill()
    process.join()
    assert 0.35 < spent < 1.5


def test_rows_have_medians_and_the_ratio_to_pil(root):
    config = of_tiny(root, Variant("pil", "natural", 1))
    samples = {"pil": [(10, 2.0, 4.0), (10, 1.0, 2.0), (10, 4.0, 8.0)], "torchvision": [(10, 1.0, 1.0)]}
    found = [
        summarise(config, Variant(feed, "natural", 1), 5, [Sample(*one) for one in taken], 0.1)
        for feed, taken in samples.items()
    ]
    found.append(replace(found[1], augment="histology"))
    bench_feed.compare_with_pil(found)
    pil, torchvision, histology = found
    assert (pil.images_per_second, pil.cpu_seconds_per_image, pil.per_core, pil.rounds) == (5, 0.4, 2.5, 3)
    assert pil.images_per_second_low < 5 < pil.images_per_second_high
    assert (pil.over_pil, torchvision.over_pil, histology.over_pil) == (1, 4, None)
    assert all(len(bench_feed.cells(row)) == len(bench_feed.HEADER) for row in found)


def test_the_command_runs_a_variant_in_a_process_of_its_own(root, tmp_path, monkeypatch, warm_python, capsys):
    monkeypatch.setattr(sys, "executable", warm_python)
    monkeypatch.setattr(bench_feed, "missing", lambda feed: "nvidia-dali is not installed" if feed == "dali" else "")
    monkeypatch.setattr(bench_feed, "variants", lambda *_: [Variant(feed, "natural", 1) for feed in ("pil", "dali")])
    words = ["--recipe", "demo", "--data", str(root), "--split", SPLIT, "--steps", "2", "--rounds", "1", "--cores", "1"]
    assert bench_feed.main([*words, "--out", str(tmp_path / "new" / "out.jsonl")]) == 0
    pil, dali = [FeedRow(**json.loads(line)) for line in (tmp_path / "new" / "out.jsonl").read_text().splitlines()]
    assert (pil.feed, pil.rounds, pil.over_pil, pil.note) == ("pil", 1, 1, "")
    assert pil.images_per_second > 0
    assert (dali.rounds, dali.images_per_second, dali.note) == (0, None, "nvidia-dali is not installed")
    assert "– nvidia-dali is not installed" in capsys.readouterr().out


def test_a_process_is_pinned_and_has_as_many_threads(root, monkeypatch):
    """The command is replaced by one that tells its cores as images and its threads as seconds."""
    whole = subprocess.run
    probe = (
        "import json, os; cores, threads = len(os.sched_getaffinity(0)), float(os.environ['OMP_NUM_THREADS'])\n"
        "print(json.dumps({'images': cores, 'seconds': threads, 'cpu_seconds': 0.5}))"
    )
    monkeypatch.setattr(subprocess, "run", lambda _, **options: whole([sys.executable, "-c", probe], **options))
    arguments = argparse.Namespace(recipe="demo", data=root, split=None, steps=3)
    assert bench_feed.in_own_process(arguments, Variant("pil", "natural", 1)) == Sample(1, 1.0, 0.5)


def test_a_feed_that_fails_is_one_sentence(root, monkeypatch):
    whole = subprocess.run
    failing = [sys.executable, "-c", "raise SystemExit(2)"]
    monkeypatch.setattr(subprocess, "run", lambda _, **options: whole(failing, **options))
    arguments = argparse.Namespace(recipe="demo", data=root, split=None, steps=3)
    with pytest.raises(InputError, match="the pil feed failed with exit code 2; see above"):
        bench_feed.in_own_process(arguments, Variant("pil", "natural", 1))


def test_waiting_is_told_of_a_real_run(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_feed, "TRAINED", (("torchvision", 0),))
    config = tiny_config(root, "unimatch", {"data.split": SPLIT, "engine.steps": 4})
    monkeypatch.setattr(bench_feed, "configured", lambda arguments, flags: replace(config, recipe="demo"))
    out = tmp_path / "out.jsonl"
    words = ["--recipe", "demo", "--data", str(root), "--training", "4", "--rounds", "1", "--out", str(out)]
    assert bench_feed.main(words) == 0
    row = json.loads(out.read_text())
    assert 0 < row["data_seconds"] < row["seconds"]
    assert row["waiting"] == pytest.approx(row["data_seconds"] / row["seconds"])
    assert "waiting for data in training" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cores", "0"], "--cores 0: expected numbers from 1 to"),
        (["--cores", "1,9999"], "--cores 1,9999: expected numbers from 1 to"),
        (["--cores", "two"], "--cores two: expected numbers from 1 to"),
        (["--training", "1"], "--training 1: expected at least 2"),
    ],
)
def test_bad_words_are_one_sentence(words, message, root):
    with pytest.raises(InputError, match=message):
        bench_feed.main(["--recipe", "demo", "--data", str(root), *words])
