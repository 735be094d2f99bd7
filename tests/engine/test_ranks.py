"""Ranks in gloo worlds on this machine: they train as one process with the whole batch, share work and agree."""

import contextlib
import csv
import io
import json
import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

from mpamatch import cli, ranks
from mpamatch.engine import evaluation
from mpamatch.engine.build import build_training, open_data
from mpamatch.engine.loop import Trainer, train
from mpamatch.errors import InputError
from mpamatch.inference.checkpoint import load_segmenter
from tests.tiny import make_set, read_checkpoint, read_metrics, silent, tiny_config, tiny_flags
from tests.tools.ranks import run_ranks

pytestmark = pytest.mark.slow

WORLD = 2
EXACT: dict[str, Any] = {
    "data.batch": 4,
    "data.unlabelled_batch": 4,
    "model.norm": "group",
    "engine.precision": "64",
    "engine.steps": 8,
    "engine.save_every": 8,
    "engine.validate_every": 4,
}


def as_torchrun_does(rank: int, ranks: int = WORLD) -> None:
    """The environment of a rank; the ranks have met already, so there is no store of torchrun's."""
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("set") / "tissue").root


# The same numbers as one process


def _train_all(rank: int, root: Path, folder: Path, methods: list[str]) -> None:
    as_torchrun_does(rank)
    for method in methods:
        train(tiny_config(root, method, EXACT), folder / method, console=silent())


METHODS = ["mpamatch", "mean_teacher", "pccs", "lpd"]


@pytest.fixture(scope="module")
def by_two(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("by-two")
    run_ranks(_train_all, WORLD, root, folder, METHODS, timeout=120)
    return folder


@pytest.fixture(scope="module")
def by_one(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("by-one")
    for method in METHODS:
        train(tiny_config(root, method, EXACT), folder / method, console=silent())
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_with_half_the_batch_each_train_as_one_process(method, by_two, by_one):
    """Eight steps of the real loop on the real feed in float64: weights, optimizer, teacher and prototypes to 1e-9."""
    one, about = read_checkpoint(by_one / method / "checkpoints" / "last.safetensors")
    two, about_two = read_checkpoint(by_two / method / "checkpoints" / "last.safetensors")
    assert about == about_two
    assert about["progress"]["step"] == 8
    assert one.keys() == two.keys()
    assert {value.dtype for name, value in one.items() if name.startswith("method/model.decoder.")} == {torch.float64}
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")
    if method in ("mpamatch", "pccs"):
        assert int(one["method/bank.updates"].sum()) > 20
    if method in ("mean_teacher", "pccs"):
        assert "method/teacher.decoder.head.weight" in one


def test_metrics_of_two_ranks_are_those_of_one_process(by_two, by_one):
    one, two = read_metrics(by_one / "mpamatch"), read_metrics(by_two / "mpamatch")
    assert len(one) == len(two) == 10
    for line, other in zip(one, two, strict=True):
        if "validation" in line:
            assert line == other
        else:
            assert line == pytest.approx(other, rel=1e-5)  # Fabric hands losses on as float32


def test_a_run_in_float64_predicts_in_float64(by_one, root):
    segmenter = load_segmenter(by_one / "mpamatch")
    assert {parameter.dtype for parameter in segmenter.model.parameters()} == {torch.float64}
    image = sorted((root / "images").iterdir())[0]
    assert segmenter.predict(image).shape == (48, 48)


# One world of three ranks, which costs seconds to start, for all that ranks do together


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "run"
    train(tiny_config(root, "supervised", {"model.norm": "group"}), run, console=silent())
    return run


@pytest.fixture(scope="module")
def images(root):
    return sorted((root / "images").iterdir())


@pytest.fixture(scope="module")
def cut(images, tmp_path_factory):
    """A folder of four images, the second of them cut short."""
    folder = tmp_path_factory.mktemp("cut")
    for image in images[:4]:
        (folder / image.name).write_bytes(image.read_bytes()[: 100 if image == images[1] else None])
    return folder


def commands(run: Path, images: list[Path], cut: Path, out: Path) -> dict[str, list[str]]:
    """16 training images are two chunks of eight and four test images one; two images are one fewer than ranks."""
    inputs = {"five": images[:5], "two": images[5:7], "cut": [cut]}
    return {
        **{part: ["evaluate", str(run), "--part", part, "--device", "cpu"] for part in ("train", "test")},
        **{
            name: ["predict", str(run), *map(str, given), "--out", str(out / name), "--device", "cpu"]
            for name, given in inputs.items()
        },
    }


def said_by(words: list[str]) -> str:
    """What a command prints, with the sentence that stopped it."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            cli._run(words)
        except InputError as error:
            print(f"stopped: {error}")
    return out.getvalue()


def _three(rank: int, root: Path, asked: dict[str, list[str]], undivided: list[str]) -> dict[str, Any]:
    as_torchrun_does(rank, 3)
    with mock.patch.object(evaluation, "_of_chunk", wraps=evaluation._of_chunk) as scored:
        said = {name: said_by(words) for name, words in asked.items()}
    images = [len(call.args[2]) for call in scored.call_args_list]
    return {
        "said": {**said, "undivided": said_by(undivided)},
        "scored": images,
        "together": _together(rank),
        "norms": _norms(root),
    }


@pytest.fixture(scope="module")
def three(root, run, images, cut, tmp_path_factory):
    """What one process did, and what three ranks did: their files, and what each of them says."""
    folder = tmp_path_factory.mktemp("predicted")
    files = {part: run / f"evaluation-{part}.json" for part in ("train", "test")}
    said = {name: said_by(words) for name, words in commands(run, images, cut, folder / "one").items()}
    alone = {part: file.read_bytes() for part, file in files.items()}
    for file in files.values():
        file.unlink()
    undivided = ["train", "--recipe", "demo", "--run", str(folder / "run"), *tiny_flags(root, "fixmatch")]
    by_rank = run_ranks(_three, 3, root, commands(run, images, cut, folder / "three"), undivided, timeout=180)
    return {
        "one": {"said": said, "evaluations": alone, "folder": folder / "one"},
        "three": {
            "by_rank": by_rank,
            "evaluations": {part: file.read_bytes() for part, file in files.items()},
            "folder": folder / "three",
        },
        "untrained": folder / "run",
    }


def test_evaluation_on_three_ranks_writes_the_file_of_one_process(three):
    assert three["three"]["evaluations"] == three["one"]["evaluations"]
    assert json.loads(three["one"]["evaluations"]["train"])["objects"]["hausdorff"] > 0
    assert [found["scored"] for found in three["three"]["by_rank"]] == [[8, 4], [8], []]
    first, *others = (found["said"] for found in three["three"]["by_rank"])
    for part in ("train", "test"):
        assert first[part] == three["one"]["said"][part]
        assert [said[part] for said in others] == ["", ""]


@pytest.mark.parametrize(("name", "files"), [("five", 12), ("two", 6)])
def test_prediction_on_three_ranks_writes_the_files_of_one_process(name, files, three):
    found = contents(three["three"]["folder"] / name)
    assert found == contents(three["one"]["folder"] / name)
    assert len(found) == files
    first, *others = (found["said"] for found in three["three"]["by_rank"])
    assert f"{(files - 1) // 2} images" in first[name]
    assert [said[name] for said in others] == ["", ""]


def test_an_unreadable_image_stops_all_ranks_and_the_others_finish_theirs(three, images):
    for found in three["three"]["by_rank"]:
        assert found["said"]["cut"].startswith("stopped: ")
        assert images[1].name in found["said"]["cut"]
        assert found["said"]["cut"].count("\n") == 1
    with (three["three"]["folder"] / "cut" / "areas.csv").open(encoding="utf-8") as stream:
        assert [row["name"] for row in csv.DictReader(stream)] == [images[at].stem for at in (0, 2, 3)]


def test_a_batch_that_does_not_divide_by_the_ranks_is_refused_before_anything_is_written(three):
    for found in three["three"]["by_rank"]:
        wanted = "stopped: data.batch: 2 images do not divide over 3 ranks; choose a multiple of 3.\n"
        assert found["said"]["undivided"] == wanted
    assert not three["untrained"].exists()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _together(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "who": (ranks.rank(), ranks.size(), ranks.started()),
        "gather": ranks.gather({"rank": rank}),
        "first": ranks.from_first(lambda: f"made by {rank}"),
        "mine": list(ranks.mine("abcd")),
        "none": list(ranks.mine([])),
    }
    try:
        ranks.from_first(_refuse)
    except InputError as error:
        found["error"] = str(error)
    return found


def _refuse() -> None:
    raise InputError("rank 0 found it bad.")


def test_ranks_gather_share_and_agree(three):
    for rank, met in enumerate(three["three"]["by_rank"]):
        found = met["together"]
        assert found["who"] == (rank, 3, 3)
        assert found["gather"] == [{"rank": 0}, {"rank": 1}, {"rank": 2}]
        assert found["first"] == "made by 0"
        assert found["error"] == "rank 0 found it bad."
        assert found["mine"] == [["a", "d"], ["b"], ["c"]][rank]
        assert found["none"] == []


def test_one_process_is_the_only_rank(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "7")  # of somebody else: torchrun names itself too
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert (ranks.rank(), ranks.size(), ranks.started()) == (0, 1, 1)
    assert ranks.gather("a") == ["a"]
    assert ranks.from_first(lambda: "b") == "b"
    assert list(ranks.mine("abc")) == ["a", "b", "c"]
    assert ranks.board() is None


# Batch norm


def _norms(root: Path) -> str:
    config = tiny_config(root, "mean_teacher", {"data.batch": 3, "data.unlabelled_batch": 3})
    method = build_training(config, open_data(config))
    names, modes = list(method.state_dict()), [part.training for part in method.modules()]
    ranks.synchronise_norms(method, torch.device("cuda"))  # only replaces modules
    kinds = {type(part) for part in method.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)}
    assert kinds == {nn.SyncBatchNorm}
    assert list(method.state_dict()) == names
    assert [part.training for part in method.modules()] == modes
    try:
        Trainer(config, open_data(config), silent())
    except InputError as error:
        return str(error)
    return ""


def test_batch_norm_is_over_all_ranks_and_refused_on_cpu_ranks(three):
    for found in three["three"]["by_rank"]:
        assert found["norms"].startswith("model.norm: batch norm over several ranks needs GPUs")
        assert found["norms"].endswith("take --model.norm group.")


def test_one_process_keeps_its_batch_norm(root):
    trainer = Trainer(tiny_config(root), open_data(tiny_config(root)), silent())
    assert any(type(part) is nn.BatchNorm2d for part in trainer.method.modules())


# What torchrun may get wrong


@pytest.mark.parametrize(
    ("everywhere", "here", "device", "says"),
    [(4, 4, "auto", "started 4 ranks on a machine where torch sees 2 GPUs"), (3, 2, "cpu", "3 ranks in all and 2")],
)
def test_ranks_that_cannot_join_are_told_why(everywhere, here, device, says, monkeypatch):
    for name, value in (("RUN_ID", "test"), ("USE_AGENT_STORE", "False")):
        monkeypatch.setenv(f"TORCHELASTIC_{name}", value)
    for name, value in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", everywhere), ("LOCAL_WORLD_SIZE", here)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match=says) as error:
        ranks.join(device)
    assert "\n" not in str(error.value)
