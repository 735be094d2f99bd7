"""A small study from the command line: its runs, how it goes on, its table and figure, and what it refuses."""

import csv
import io
import json
import subprocess
import time
from dataclasses import asdict, replace

import pytest
import torch
from PIL import Image
from rich.console import Console

from mpamatch.cli import main
from mpamatch.commands import study as command
from mpamatch.data.prepared import load_prepared
from mpamatch.data.splits import draw_split, read_budget
from mpamatch.engine.loop import train
from mpamatch.errors import InputError
from mpamatch.models.text_encoders.build import ENTRIES, Entry
from mpamatch.studies import plans, scores, worker
from mpamatch.studies import sweep as sweep_module
from mpamatch.studies.catalogue import COSINES
from mpamatch.studies.sweep import StudyRun, Sweep, do_run, do_runs, read_results
from tests.locks import held_by_another
from tests.models.test_prompt import LetterTower
from tests.tiny import (
    FIELDS,
    OF_METHODS,
    SPLIT,
    assert_same_run,
    make_set,
    read_checkpoint,
    silent,
    tiny_config,
    train_until,
)

pytestmark = pytest.mark.slow

FLAGS = [
    word
    for name, value in {**FIELDS, **OF_METHODS["mpamatch"]}.items()
    if name != "method.prototypes"
    for word in (f"--{name}", str(value))
]
KEYS = [("2", "mpamatch", f"prototypes-{k}") for k in (1, 3)]
FLAGS_OF_ALL = [word for name, value in FIELDS.items() for word in (f"--{name}", str(value))]
NAMES = [f"mpamatch-prototypes-{k}-2-seed{seed}" for seed in (0, 1) for k in (1, 3)]


def study(data, out, *more, name="prototypes"):
    words = ["study", name, "--recipe", "demo", "--data.root", data, "--out", out, "--jobs", "0", *FLAGS, *more]
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished study of two values over two seeds."""
    folder = tmp_path_factory.mktemp("study")
    make_set(folder / "data")
    more = ("--values", "1,3", "--seeds", "2", "--labelled", "2", "--test")
    assert study(folder / "data", folder / "out", *more) == 0
    return folder, more


def test_every_run_is_a_run_folder_of_its_own(done):
    folder, _ = done
    assert sorted(path.name for path in (folder / "out" / "runs").iterdir()) == sorted(NAMES)
    for name in NAMES:
        assert (folder / "out" / "runs" / name / "checkpoints" / "best.safetensors").is_file()
    run = folder / "out" / "runs" / NAMES[1]
    assert main(["evaluate", str(run), "--device", "cpu"]) == 0
    assert "prototypes: 3" in (run / "config.yaml").read_text()


def test_results_are_those_of_the_runs(done):
    folder, _ = done
    results = read_results(folder / "out")
    assert [result["name"] for result in results] == NAMES
    for result in results:
        run = folder / "out" / "runs" / result["name"]
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        best = max(line["validation"]["mdice"] for line in lines if "validation" in line)
        assert result["validation_mdice"] == best
        assert result["test"]["mdice"] == json.loads((run / "evaluation-test.json").read_text())["mdice"]


def test_seeds_draw_their_own_patients_the_same_for_every_value(done):
    folder, _ = done
    prepared = load_prepared(folder / "data")
    splits = {result["name"]: result["split"] for result in read_results(folder / "out")}
    assert [splits[name] for name in NAMES] == ["labelled-2-seed0"] * 2 + ["labelled-2-seed1"] * 2
    for seed in (0, 1):
        written = json.loads((folder / "data" / "splits" / f"labelled-2-seed{seed}.json").read_text())
        assert written["labelled"] == list(draw_split(prepared, read_budget("2"), seed).images)


def test_the_printed_tables_fit_a_terminal(done):
    rows = scores.table_rows(read_results(done[0] / "out"), {key: key for key in KEYS}, list(COSINES))
    written = Console(file=io.StringIO(), width=80)
    for table in command.tables(rows, COSINES):
        written.print(table)
    lines = written.file.getvalue().splitlines()
    assert "…" not in "".join(lines)
    first, second = (line for line in lines if line.startswith("point"))
    assert first.split()[-2:] == ["%", "s/step"]
    assert second.split() == ["point", "in", "use", "cosine", "within", "cosine", "between"]
    assert not any("mpamatch" in line for line in lines)  # the method of all rows
    both = command.tables([*rows, replace(rows[0], method="unimatch")], {})
    assert [[column.header for column in table.columns][:2] for table in both] == [["method", "point"]] * len(both)


def test_table_and_figure(done):
    folder, _ = done
    results = {result["name"]: 100 * result["test"]["mdice"] for result in read_results(folder / "out")}
    with (folder / "out" / "table.csv").open(newline="") as file:
        one, three = csv.DictReader(file)
    assert (one["point"], three["point"]) == ("prototypes-1", "prototypes-3")
    assert float(one["mean"]) == pytest.approx((results[NAMES[0]] + results[NAMES[2]]) / 2)
    change = (results[NAMES[1]] - results[NAMES[0]] + results[NAMES[3]] - results[NAMES[2]]) / 2
    assert float(three["difference"]) == pytest.approx(change)
    assert one["difference"] == ""
    text = (folder / "out" / "table.md").read_text()
    assert "Test mDice, mean ± sd over seeds; differences to method.prototypes 1." in text
    with Image.open(folder / "out" / "figure.png") as figure:
        figure.load()
        assert 1.2 < figure.width / figure.height < 1.5  # two panels above two


def test_finished_runs_are_not_done_again_and_more_seeds_join_them(done, monkeypatch):
    folder, more = done
    asked = []

    def never(sweep, run):
        asked.append(run.name)
        raise InputError("not now.")

    monkeypatch.setattr(sweep_module, "do_run", never)
    before = (folder / "out" / "table.csv").read_bytes()
    assert study(folder / "data", folder / "out", *more) == 0
    assert asked == []
    assert (folder / "out" / "table.csv").read_bytes() == before
    assert study(folder / "data", folder / "out", *more, "--seeds", "3") == 1
    assert asked == [name.replace("seed0", "seed2") for name in NAMES[:2]]


def test_other_settings_need_another_folder(done, capsys):
    folder, more = done
    assert study(folder / "data", folder / "out", *more, "--engine.learning_rate", "0.5") == 2
    assert "study.json: holds runs with flags" in capsys.readouterr().err


def test_the_prototypes_of_every_value_are_measured_and_drawn_over_an_image(done):
    folder, _ = done
    with (folder / "out" / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, k in zip(rows, (1, 3), strict=True):
        mine = [result for result in read_results(folder / "out") if f"prototypes-{k}-" in result["name"]]
        assert (row["prototypes/cosine_within"] == "") is (k == 1)  # no pair
        for name in ("in_use", "cosine_between", *(("cosine_within",) if k > 1 else ())):
            mean = sum(result["prototypes"][f"prototypes/{name}"] for result in mine) / 2
            assert float(row[f"prototypes/{name}"]) == pytest.approx(mean)
        assert float(row["miou"]) == pytest.approx(100 * sum(result["test"]["miou"] for result in mine) / 2)
    assert "cosine within | cosine between | s/step" in (folder / "out" / "table.md").read_text()
    with Image.open(folder / "out" / "assignments.png") as picture:
        picture.load()
        assert picture.width > 1.5 * picture.height


def test_the_validation_miou_is_that_of_the_best_checkpoint(done):
    folder, _ = done
    for result in read_results(folder / "out"):
        metrics = folder / "out" / "runs" / result["name"] / "metrics.jsonl"
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
        best = max((line["validation"] for line in lines if "validation" in line), key=lambda one: one["mdice"])
        assert result["validation_miou"] == best["miou"]


def test_without_terms_the_network_is_the_one_that_unimatch_trains(done, tmp_path):
    """With UniMatch's weights: the prototypes move no weight of it."""
    root = done[0] / "data"
    weights = {"method.weight_labelled": 0.5, "method.weight_unlabelled": 0.5, "data.split": SPLIT, "engine.steps": 3}
    unimatch = {name: value for name, value in weights.items() if "weight" not in name}
    for run, method, fields in (
        ("none", "mpamatch", weights | plans.TERMS["none"]),
        ("unimatch", "unimatch", unimatch),
    ):
        train(tiny_config(root, method, fields), tmp_path / run, console=silent())
    ours, theirs = (
        read_checkpoint(tmp_path / run / "checkpoints" / "last.safetensors")[0] for run in ("none", "unimatch")
    )
    network = [name for name in theirs if name.startswith("method/model.")]
    assert len(network) > 20
    for name in network:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5, msg=name)


TEXT = ("--method.text_encoder", "tiny")


@pytest.fixture
def tiny_text(monkeypatch):
    """A text encoder that needs no weights."""
    entry = Entry(lambda *_: LetterTower(400), "none", lambda: "", takes_weights=False)
    monkeypatch.setitem(ENTRIES, "tiny", entry)


def test_a_grid_of_two_fields_is_drawn_as_a_heat_map(done, tiny_text, tmp_path, capsys):
    more = ("--labelled", "2", "--seeds", "2", "--values", "0.5,0.95", "--across", "0,1", *TEXT)
    assert study(done[0] / "data", tmp_path / "out", *more, name="threshold-tokens") == 0
    assert (
        "differences to method.threshold 0.95 with method.context_tokens 1"
        in (tmp_path / "out" / "table.md").read_text()
    )
    with (tmp_path / "out" / "table.csv").open(newline="") as file:
        rows = {row["point"]: row for row in csv.DictReader(file)}
    assert list(rows) == [f"threshold-{t}-context_tokens-{n}" for t in (0.5, 0.95) for n in (0, 1)]
    assert rows["threshold-0.95-context_tokens-1"]["difference"] == ""
    results = {(one["trial"], one["seed"]): 100 * one["validation_mdice"] for one in read_results(tmp_path / "out")}
    change = [
        results["threshold-0.5-context_tokens-0", s] - results["threshold-0.95-context_tokens-1", s] for s in (0, 1)
    ]
    assert float(rows["threshold-0.5-context_tokens-0"]["difference"]) == pytest.approx(sum(change) / 2)
    assert (tmp_path / "out" / "figure.png").is_file()
    assert not (tmp_path / "out" / "assignments.png").exists()


@pytest.mark.parametrize(
    ("name", "values", "points"),
    [
        ("terms", None, ["terms-none", "terms-image", "terms-text", "terms-both"]),
        ("prompts", "pathology-similar,generic-distinct,none", None),
        ("prompt-noise", "0,1", None),
        ("text-encoders", "tiny,none", ["text_encoder-tiny", "text_encoder-none"]),
    ],
)
def test_the_studies_of_text_run_at_toy_size(name, values, points, done, tiny_text, tmp_path, capsys):
    more = ["--labelled", "2", "--seeds", "1", *([] if name == "text-encoders" else TEXT)]
    more += ["--values", values] if values else []
    assert study(done[0] / "data", tmp_path / "out", *more, name=name) == 0
    results = {result["trial"]: result for result in read_results(tmp_path / "out")}
    if points:
        assert list(results) == points
    with_text = [trial for trial, one in results.items() if "prototypes/text_cosine" in one["prototypes"]]
    without = {"terms-none", "terms-image", "prompts-none", "text_encoder-none"}
    assert with_text == [trial for trial in results if trial not in without]
    table = (tmp_path / "out" / "table.md").read_text()
    assert "cosine of texts" in table
    assert "left out: conch" not in capsys.readouterr().out  # --values said what to take


def test_a_study_of_text_encoders_says_which_it_leaves_out(done, tiny_text, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plans, "text_encoders", lambda: {"tiny": "", "conch": "its file is on request"})
    assert study(done[0] / "data", tmp_path / "out", "--labelled", "2", "--seeds", "1", name="text-encoders") == 0
    said = capsys.readouterr().out
    assert "left out: conch: its file is on request" in said
    assert "--values NAME=FILE gives an encoder its weights" in said
    assert [one["trial"] for one in read_results(tmp_path / "out")] == ["text_encoder-tiny", "text_encoder-none"]


@pytest.fixture
def run():
    return StudyRun("fixmatch", "2", 0, "labelled-2-seed0", flags=(*FLAGS_OF_ALL, "--engine.steps", "4"))


def test_a_stopped_run_goes_on_to_the_same_numbers(done, run, tmp_path):
    folder, _ = done
    sweep = Sweep(str(tmp_path), str(folder / "data"), "demo")
    flags = (*run.flags, "--engine.save_every", "1")
    run = StudyRun(run.method, run.labelled, run.seed, run.split, flags=flags)
    config = sweep.configuration(run)
    whole = train(config, tmp_path / "whole", console=silent()).run
    train_until(2, config, sweep.run_folder(run))
    result = do_run(sweep, run)
    assert_same_run(whole, sweep.run_folder(run))
    assert result["validation_mdice"] > 0


def test_a_run_that_was_killed_before_it_began_is_begun(done, run, tmp_path):
    sweep = Sweep(str(tmp_path), str(done[0] / "data"), "demo")
    (sweep.run_folder(run) / "checkpoints").mkdir(parents=True)
    assert do_run(sweep, run)["name"] == run.name
    assert (sweep.run_folder(run) / "checkpoints" / "best.safetensors").is_file()


def test_a_failed_run_does_not_stop_the_others(done, run, tmp_path):
    bad = StudyRun("mpamatch", "2", 0, run.split, "bad", (*run.flags, "--method.prototypes", "0"))
    said = []
    sweep = Sweep(str(tmp_path), str(done[0] / "data"), "demo")
    assert do_runs(sweep, [bad, run], jobs=0, say=said.append) == [bad.name]
    assert said[0] == (f"{bad.name}: failed: method.prototypes: expected at least 1, got 0.")
    assert [result["name"] for result in read_results(tmp_path)] == [run.name]


def test_a_run_in_a_process_of_its_own_gives_the_same_result(done, run, tmp_path):
    data, said = str(done[0] / "data"), []
    bad = StudyRun("mpamatch", "2", 0, run.split, "bad", (*run.flags, "--method.prototypes", "0"))
    own = Sweep(str(tmp_path / "own"), data, "demo")
    assert do_runs(own, [run, bad], jobs=2, say=said.append) == [bad.name]
    assert any("failed: method.prototypes: expected at least 1" in line for line in said)
    (found,) = read_results(tmp_path / "own")
    here = do_run(Sweep(str(tmp_path / "here"), data, "demo"), run)
    assert found.keys() == here.keys()
    assert found["name"] == here["name"]
    assert found["validation_mdice"] == pytest.approx(here["validation_mdice"], abs=1e-3)  # threads differ


def test_two_processes_never_train_one_run(done, run, tmp_path):
    sweep = Sweep(str(tmp_path), str(done[0] / "data"), "demo")
    lock = tmp_path / "runs" / f".{run.name}.lock"
    with held_by_another(lock), pytest.raises(InputError, match="another process is training this run"):
        do_run(sweep, run)
    assert not sweep.run_folder(run).exists()
    do_run(sweep, run)
    assert list((tmp_path / "runs").iterdir()) == [sweep.run_folder(run)]


@pytest.mark.parametrize(
    ("name", "more", "says"),
    [
        ("prototype", [], "unknown study 'prototype': did you mean 'prototypes'?"),
        ("prototypes", ["--seeds", "0"], "--seeds: expected at least 1, got 0."),
        ("prototypes", ["--jobs", "-1"], "--jobs: expected at least 0"),
        ("prototypes", ["--values", "1,,3"], "--values '1,,3': expected words with commas"),
        ("prototypes", ["--methods", "mpamach"], "unknown method.name 'mpamach': did you mean 'mpamatch'?"),
        ("prototypes", ["--labelled", "90"], "--labelled 90: must be from 1 to"),
        ("prototypes", ["--labelled", "2", "--data.split", "labelled-1-seed0"], "--labelled: draws a split per seed"),
        ("prototypes", ["--across", "1"], "--across: study prototypes varies one thing"),
        ("text-encoders", ["--values", "conch"], "method.text_weights: CONCH is chosen, and its checkpoint is given"),
        ("terms", ["--image_prototypes", "false"], "study terms: sets method.image_prototypes itself"),
        ("labels", ["--labelled", "2"], "--labelled: study labels draws its own splits"),
        ("labels", ["--values", "0%"], "--labelled 0%: must be above 0"),
        ("labels", ["--values", "2,90 images"], "--labelled 90 images: must be from 1 to"),
        ("labels", ["--values", "2 imgs"], "or of images (8 images, 10% images)."),
        ("seeds", ["--values", "2"], "--values: study seeds compares methods"),
        ("seeds", ["--method.threshhold", "2"], "did you mean 'method.threshold'?"),
        ("prototypes", ["--engine.step", "3"], "did you mean 'engine.steps'?"),
        ("prototypes", ["--data.root", "nowhere"], "nowhere: no such folder."),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(name, more, says, done, tmp_path, capsys):
    before = sorted(done[0].rglob("*"))
    assert study(done[0] / "data", tmp_path / "out", *more, name=name) == 2
    assert says in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
    assert sorted(done[0].rglob("*")) == before


def test_a_study_needs_settings(capsys):
    assert main(["study", "prototypes"]) == 2
    assert "study: name the settings with --recipe NAME or --config FILE" in capsys.readouterr().err


def test_a_set_without_validation_labels_asks_for_the_test_part(tmp_path, capsys):
    prepared = make_set(tmp_path / "data")
    for name in prepared.labelled("validation"):
        prepared.mask_path(name).unlink()
    assert study(prepared.root, tmp_path / "out") == 2
    assert "its validation part has no labelled image to score; add --test." in capsys.readouterr().err


def test_a_worker_ends_with_its_study(done, run, warm_python, tmp_path):
    """Else a study that was killed could not go on: its runs would still be trained."""
    sweep = Sweep(str(tmp_path), str(done[0] / "data"), "demo")
    long = replace(run, flags=(*run.flags, "--engine.steps", "100000"))
    asked = json.dumps({"sweep": asdict(sweep), "run": asdict(long)})
    metrics, deadline = sweep.run_folder(run) / "metrics.jsonl", time.monotonic() + 60
    with subprocess.Popen([warm_python, "-m", "mpamatch.studies.worker"], stdin=subprocess.PIPE, text=True) as process:
        process.stdin.write(asked + "\n")
        process.stdin.flush()
        while not metrics.is_file():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.stdin.close()
        assert process.wait(timeout=30) == 1


def test_a_worker_says_what_is_wrong_in_one_sentence(tmp_path, capsys):
    asked = {
        "sweep": {"out": str(tmp_path), "data": "nowhere", "recipe": "demo"},
        "run": {"method": "fixmach", "labelled": "2", "seed": 0, "split": "x", "flags": []},
    }
    assert worker.main(json.dumps(asked)) == 2
    assert capsys.readouterr().err == "unknown method.name 'fixmach': did you mean 'fixmatch'?\n"
