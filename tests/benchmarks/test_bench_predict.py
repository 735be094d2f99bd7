"""The benchmark of prediction: the loop it compares with, differences found, rows, and variants that cannot run."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mpamatch.benchmarks import bench_predict, rows
from mpamatch.benchmarks.bench_predict import MODELS, OURS, PLAIN, Model, Ours, differences, tissue
from mpamatch.engine.config import load_config
from mpamatch.errors import InputError
from mpamatch.models.transunet import TransUNetConfig
from tests.tiny import make_set

pytestmark = pytest.mark.slow

TINY = Model(
    TransUNetConfig(encoder="small_conv", decoder_width=16, decoder_channels=[16, 8, 8, 8], norm="group"),
    window=32, scale=0.5, windows=3, images=5,
)  # fmt: skip


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(bench_predict, "MODELS", {"small": TINY})


@pytest.fixture(scope="module")
def ways():
    return bench_predict.ways(TINY, "cpu")


def test_windows_are_the_recipes_and_the_other_model_is_uni():
    recipe = load_config("ebhi-seg-gland", None, [])
    small = MODELS["small"]
    assert (small.window, small.scale) == (recipe.data.crop, recipe.data.scale)
    assert small.config.encoder == "small_hybrid"  # the one that docs/PERFORMANCE.md has figures of
    assert MODELS["uni"].config == TransUNetConfig(encoder="uni")


@pytest.mark.parametrize("side", [64, 150, 171])
def test_the_plain_loop_and_ours_agree(ways, side):
    image = tissue(side, 1)
    plain, ours = (ways[name].probabilities(image) for name in (PLAIN, OURS))
    assert plain.shape == ours.shape == (2, side, side)
    assert float(plain.std()) > 0.02  # a constant would agree with anything
    assert differences(ours, plain, "32")[2] == ""


def test_labels_of_both_ways_agree(ways):
    images = [tissue(64, number) for number in range(9)]
    for plain, ours in zip(ways[PLAIN].labels(images), ways[OURS].labels(images), strict=True):
        assert plain.dtype == ours.dtype == np.uint8
        assert (plain != ours).mean() < 1e-3


def test_both_ways_write_the_same_masks(ways, tmp_path):
    files = []
    for number in range(3):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(tissue(64 + 20 * number, number)).save(files[-1])
    for name in (PLAIN, OURS):
        ways[name].write(files, tmp_path / name)
    for folder in ("masks", "overlays"):
        for file in files:
            one, other = (np.asarray(Image.open(tmp_path / name / folder / file.name)) for name in (PLAIN, OURS))
            assert (one != other).mean() < 1e-3


def test_an_image_smaller_than_the_window_is_refused(ways):
    with pytest.raises(InputError, match="smaller than the window of 32"):
        ways[PLAIN].probabilities(tissue(48, 0))


def spread(*values: float) -> torch.Tensor:  # (2, 1, n), the first class's probabilities given
    first = torch.tensor([values])
    return torch.stack([first, 1 - first])


def test_differences_are_found_and_ties_are_none():
    plain = spread(0.9, 0.50001, 0.2)
    assert differences(plain, plain, "32") == (0.0, 0.0, "")
    tie = differences(spread(0.9, 0.49999, 0.2), plain, "32")
    assert (round(tie[0], 6), round(tie[1], 3), tie[2]) == (2e-5, 0.333, "")
    assert "a probability by 1.0e-03" in differences(spread(0.901, 0.50001, 0.2), plain, "32")[2]
    assert differences(spread(0.901, 0.50001, 0.2), plain, "bf16")[2] == ""
    assert "shape" in differences(plain[:, :, :2], plain, "32")[2]
    assert "a probability by nan" in differences(plain * torch.nan, plain, "32")[2]


def command(tmp_path, *words: str) -> list[str]:
    return ["--model", "small", "--device", "cpu", "--seconds", "0", "--out", str(tmp_path / "out.jsonl"), *words]


def test_the_command_measures_each_work_and_writes_its_rows_once(tiny, tmp_path, capsys):
    make_set(tmp_path / "data")  # 48² pixels: too small for this window at this scale
    with_files = replace(TINY, scale=0.7)
    bench_predict.MODELS["small"] = with_files
    words = command(tmp_path, "--variants", OURS, "--data", str(tmp_path / "data"))
    for _ in range(2):
        assert bench_predict.main(words) == 0
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["predict"], row["variant"], row["count"]) for row in found] == [
        *(("tiles", variant, 9) for variant in (PLAIN, OURS, "model")),
        *((work, variant, 5) for work in ("images", "files") for variant in (PLAIN, OURS)),
    ]
    for row in found:
        assert row["rounds"] >= 3
        assert 0 < row["p20"] <= row["median"] <= row["p80"]
        assert row["rate"] == pytest.approx(row["count"] / row["median"])
        assert row["note"] == ""
    assert all(row["over_plain"] == 1 for row in found if row["variant"] == PLAIN)
    assert all(row["difference"] <= 1e-4 for row in found if row["variant"] == OURS)
    assert rows.read(tmp_path / "out.jsonl") == []  # none is a row of an operation, and none is in their way
    printed = capsys.readouterr().out
    assert "small files: measured" in printed
    assert "over plain" in printed


def test_images_smaller_than_the_window_are_no_files_to_predict(tiny, tmp_path):
    make_set(tmp_path / "data")
    assert bench_predict.main(command(tmp_path, "--variants", OURS, "--data", str(tmp_path / "data"))) == 0
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert {row["predict"] for row in found} == {"tiles", "images"}


class Slightly(Ours):
    """Another result at one pixel."""

    def probabilities(self, image):
        result = super().probabilities(image)
        result[0, 7, 9] += 2e-4
        return result


class Broken(Ours):
    def probabilities(self, image):
        raise RuntimeError("no such\nthing")


@pytest.mark.parametrize(
    ("way", "code", "note"),
    [(Slightly, 1, "values differ: a probability by 2.0e-04, allowed 1e-04"), (Broken, 0, "cannot run: no such thing")],
)
def test_a_variant_that_is_wrong_or_fails_is_a_row_that_says_why(way, code, note, tiny, tmp_path, monkeypatch, capsys):
    whole = bench_predict.ways

    def ways(model, device):
        made = whole(model, device)
        return {PLAIN: made[PLAIN], OURS: way(made[OURS].segmenter)}

    monkeypatch.setattr(bench_predict, "ways", ways)
    assert bench_predict.main(command(tmp_path)) == code
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    of_ours = [row for row in found if row["variant"] == OURS]
    assert [(row["note"], row["rate"]) for row in of_ours] == [(note, None)] * 2
    assert note in capsys.readouterr().out


def test_bf16_is_not_timed_where_it_is_imitated(ways, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    blank = bench_predict.PredictRow("tiles", "small", f"{OURS}-bf16", 9, 32)
    image = tissue(64, 0)
    row = bench_predict.check(ways[f"{OURS}-bf16"], image, ways[PLAIN].probabilities(image), blank)
    assert "only imitates bfloat16" in row.note
    timed = replace(row, rate=1.0, median=9.0, p20=8.0, p80=10.0, over_plain=1.0)
    assert len(bench_predict.cells(row)) == len(bench_predict.cells(timed)) == len(bench_predict.HEADER)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "smal"], "unknown model 'smal': did you mean 'small'"),
        (["--variants", "mpamatsh"], "unknown variant 'mpamatsh': did you mean 'mpamatch'"),
        (["--data", "nowhere"], "nowhere: is no prepared folder"),
    ],
)
def test_bad_words_are_one_sentence(words, message, tiny, tmp_path):
    with pytest.raises(InputError, match=message):
        bench_predict.main(command(tmp_path, "--variants", OURS, *words))


def test_compiled_variants_run_the_compiled_network(monkeypatch):
    compiled: list[nn.Module] = []

    def compile(network: nn.Module) -> nn.Module:
        compiled.append(nn.Sequential(network))
        return compiled[-1]

    monkeypatch.setattr(torch, "compile", compile)
    made = bench_predict.ways(TINY, "cpu")
    assert made[f"{PLAIN}-compiled"].model is compiled[0]
    assert made[f"{OURS}-compiled"].segmenter.model is compiled[1]
