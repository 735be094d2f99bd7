"""Objects told apart by their border, and what a run that has learned it predicts and scores."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import measure
from torch import Tensor, nn

from mpamatch.cli import main
from mpamatch.data.instances import border_of
from mpamatch.data.prepared import load_prepared, write_prepared
from mpamatch.data.sources.synthetic import raw_set
from mpamatch.engine.evaluation import evaluate_run
from mpamatch.errors import InputError
from mpamatch.images import read_mask
from mpamatch.inference.checkpoint import load_segmenter
from mpamatch.inference.files import predict_files
from mpamatch.inference.objects import separate
from mpamatch.inference.segmenter import Segmenter
from mpamatch.inference.settings import SegmenterSettings
from tests.data.test_instances import two_discs
from tests.tiny import tiny_flags


def seen(numbers: np.ndarray, width: float = 3) -> tuple[np.ndarray, np.ndarray]:
    """The label and a soft border of these objects."""
    label = (numbers > 0).astype(np.uint8)
    return label, (0.9 * (border_of(numbers.astype(np.uint16), label, width) == 1)).astype(np.float32)


def test_two_discs_that_touch_are_two_objects():
    truth = two_discs()
    label, border = seen(truth)
    assert measure.label(label, connectivity=2).max() == 1
    found = separate(label, border)
    assert found.dtype == np.int32
    assert np.array_equal(found > 0, label > 0)
    assert (found == truth).mean() > 0.99
    assert separate(label, np.zeros_like(border)).max() == 1  # no border, one object


def test_discs_apart_are_what_regions_are():
    truth = two_discs(apart=24)
    label, border = seen(truth)
    assert np.array_equal(separate(label, border), measure.label(label, connectivity=2))


def test_objects_of_two_classes_are_numbered_class_by_class():
    truth = two_discs()
    label, border = seen(truth)
    label[truth == 1] = 2
    found = separate(label, border)
    assert np.unique(found[truth == 1]).tolist() == [2]
    assert np.unique(found[truth == 2]).tolist() == [1]


def test_a_region_without_inside_is_one_object_and_a_hole_in_a_border_is_none():
    label = np.zeros((40, 60), dtype=np.uint8)
    label[2:6, 2:30] = 1  # thinner than its border
    label[20:38, 5:55] = 1
    border = np.zeros(label.shape, dtype=np.float32)
    border[2:6] = 0.9
    border[20:38, 28:32] = 0.9
    border[24:27, 29:31] = 0.0  # six pixels
    label[0, 40:59] = 1  # a speck of 19 pixels
    border[0] = 0.9
    found = separate(label, border)
    assert not found[0].any()
    assert np.array_equal(found[1:] > 0, label[1:] > 0)
    assert found.max() == 3
    assert len(np.unique(found[2:6, 2:30])) == 1
    assert found[30, 10] != found[30, 50]
    assert separate(label, border, smallest=6).max() == 5


def test_seeds_are_measured_in_pixels_of_the_scaled_image():
    label, border = seen(two_discs())
    inside = int(((label > 0) & (border < 0.5)).sum()) // 2
    scale = (20 / inside) ** 0.5
    assert separate(label, border, 1.05 * scale).max() == 2
    assert separate(label, border, 0.9 * scale).max() == 1


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (25, 3)])
@pytest.mark.parametrize("value", [0, 1])
def test_any_size_and_an_image_of_one_class(size, value):
    label = np.full(size, value, dtype=np.uint8)
    for border in (0.0, 1.0):
        found = separate(label, np.full(size, border, dtype=np.float32))
        assert found.shape == size
        assert (found == value * (label.size >= 20)).all()


class Painted(nn.Module):
    """Red tells the class, green the border."""

    border_width = 3

    def forward(self, windows: Tensor) -> SimpleNamespace:
        red, green = windows[:, :1], windows[:, 1:2]
        return SimpleNamespace(logits=torch.cat([0.5 - red, red - 0.5], dim=1) * 20, border=(green - 0.5) * 20)


def painted(numbers: np.ndarray) -> np.ndarray:
    label, border = seen(numbers)
    return (255 * np.stack([label, border > 0.5, label], axis=-1)).astype(np.uint8)


def segmenter(model: nn.Module | None = None, **changes: Any) -> Segmenter:
    settings = {"window": 32, "scale": 1.0, "microns_per_pixel": None, **changes}
    names, colours, zero, one = ("background", "gland"), ((0, 0, 0), (0, 200, 83)), (0, 0, 0), (1, 1, 1)
    return Segmenter(model or Painted(), SegmenterSettings(names, colours, zero, one, **settings))


def test_windows_average_the_border_as_they_do_classes():
    image, ours = painted(two_discs()), segmenter()
    ((probability, border),) = ours.with_borders([image])
    assert torch.equal(probability, ours.probabilities(image))
    assert border.shape == image.shape[:2]
    wanted = torch.sigmoid(20 * (torch.from_numpy(image[..., 1]).float() / 255 - 0.5))
    torch.testing.assert_close(border, wanted, rtol=0, atol=1e-5)
    label, objects = ours.predict_objects(image)
    assert np.array_equal(label, ours.predict(image))
    assert (objects == two_discs()).mean() > 0.99


def test_objects_have_the_images_own_size_at_any_scale():
    for scale in (0.7, 1.6):
        label, objects = segmenter(scale=scale).predict_objects(painted(two_discs(67, 101)))
        assert label.shape == objects.shape == (67, 101)
        assert np.array_equal(objects > 0, label > 0)


def test_a_model_without_border_says_so():
    class Plain(nn.Module):
        def forward(self, windows: Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=windows[:, :2])

    ours = segmenter(Plain())
    assert not ours.tells_objects_apart
    with pytest.raises(InputError, match=r"has learned no border of objects: train it with --model\.boundary true"):
        ours.predict_objects(painted(two_discs()))


def test_predict_writes_numbers_of_16_bits_and_goes_on(tmp_path):
    for name in ("a", "b"):
        Image.fromarray(painted(two_discs())).save(tmp_path / f"{name}.png")
    out = tmp_path / "out"
    predict_files(segmenter(), [tmp_path / "a.png", tmp_path / "b.png"], out)
    with Image.open(out / "objects" / "b.png") as stored:
        assert stored.mode.startswith("I;16")
        numbers = np.asarray(stored)
    assert np.array_equal(numbers, segmenter().predict_objects(painted(two_discs()))[1])
    (out / "objects" / "b.png").unlink()
    before = (out / "objects" / "a.png").stat().st_mtime_ns
    predict_files(segmenter(), [tmp_path / "a.png", tmp_path / "b.png"], out)
    assert np.array_equal(read_mask(out / "objects" / "b.png"), numbers)
    assert (out / "objects" / "a.png").stat().st_mtime_ns == before


def test_more_objects_than_16_bits_number_are_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr("mpamatch.inference.files.MOST_OBJECTS", 1)
    Image.fromarray(painted(two_discs())).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png: has 2 objects, and a file of objects holds 1"):
        predict_files(segmenter(), [tmp_path / "a.png"], tmp_path / "out")
    assert not (tmp_path / "out" / "masks").exists()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, Path]:
    """A run of two steps on crowded tissue, by the command line, and its data."""
    root = tmp_path_factory.mktemp("run")
    write_prepared(root / "data", raw_set(images=24, size=48, crowded=True))
    fields = {"model.boundary": True, "model.boundary_weight": 0.5}
    words = ["--recipe", "demo", *tiny_flags(root / "data", "fixmatch", fields), "--run", str(root / "run")]
    assert main(["split", str(root / "data"), "--images", "4"]) == 0
    assert main(["train", *words]) == 0
    return root / "run", root / "data"


def test_train_evaluate_and_predict_by_the_command_line(run, tmp_path, capsys):
    folder, data = run
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(line["border"] > 0 for line in lines if "loss" in line)
    assert main(["evaluate", str(folder), "--part", "test"]) == 0
    scores = json.loads((folder / "evaluation-test.json").read_text())
    assert set(scores["objects"]) == {"f1", "dice", "hausdorff"}
    prepared = load_prepared(data)
    name = prepared.labelled("test")[0]
    assert main(["predict", str(folder), str(prepared.image_path(name)), "--out", str(tmp_path / "out")]) == 0
    assert "masks, overlays, objects and areas.csv are in" in " ".join(capsys.readouterr().out.split())
    written = read_mask(tmp_path / "out" / "objects" / f"{Path(name).stem}.png")
    label, objects = load_segmenter(folder, "cpu").predict_objects(prepared.image_path(name))
    assert np.array_equal(written, objects)
    assert np.array_equal(read_mask(tmp_path / "out" / "masks" / f"{Path(name).stem}.png"), label)


def test_evaluation_takes_true_objects_from_their_numbers(run, monkeypatch):
    """A model that predicts the truth scores 1 with the border, and loses where touching glands are regions."""
    folder, data = run
    prepared = load_prepared(data)
    truth = iter(())

    def borders(self, images):
        for _ in images:
            name = next(truth)
            label = read_mask(prepared.mask_path(name))
            numbers = read_mask(prepared.instances_path(name))
            border = border_of(numbers.astype(np.uint16), label, 2) == 1
            one_hot = np.stack([label == 0, label == 1]).astype(np.float32)
            yield torch.from_numpy(one_hot), torch.from_numpy(border.astype(np.float32))

    scores = []
    for apart in (True, False):
        truth = iter(prepared.labelled("test"))
        monkeypatch.setattr(Segmenter, "with_borders", borders)
        monkeypatch.setattr(Segmenter, "probabilities", lambda self, images: [p for p, _ in borders(self, images)])
        monkeypatch.setattr(Segmenter, "tells_objects_apart", property(lambda self, apart=apart: apart))
        scores.append(evaluate_run(folder, data, "test", "cpu"))
    assert scores[0]["mdice"] == scores[1]["mdice"] == 1
    assert scores[0]["objects"]["dice"] > 0.95
    assert scores[1]["objects"]["dice"] < scores[0]["objects"]["dice"] - 0.1
    assert scores[1]["objects"]["f1"] < scores[0]["objects"]["f1"]


def test_boundary_without_numbers_is_one_sentence(run, tmp_path, capsys):
    raw = raw_set(images=24, size=48)
    items = (item.__class__(**{**vars(item), "instances": None}) for item in raw.items)
    write_prepared(tmp_path / "data", raw.__class__(**{**vars(raw), "items": items}))
    words = tiny_flags(tmp_path / "data", "supervised", {"model.boundary": True})
    assert main(["train", "--recipe", "demo", *words, "--run", str(tmp_path / "run")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "model.boundary:" in said
    assert "has no numbers of objects (instances/) for" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("method", "fields", "told"),
    [
        ("supervised", {"model.boundary_width": 2}, "model.boundary_width: does nothing unless model.boundary"),
        (
            "supervised",
            {"model.boundary": True, "model.boundary_weight": 0},
            "model.boundary_weight: expected more than 0",
        ),
        ("lpd", {"model.boundary": True}, "model.boundary: does nothing for lpd"),
    ],
)
def test_options_that_do_nothing_are_refused(method, fields, told, run, tmp_path, capsys):
    words = tiny_flags(run[1], method, fields)
    assert main(["train", "--recipe", "demo", *words, "--run", str(tmp_path / "run")]) == 2
    assert told in " ".join(capsys.readouterr().err.split())
