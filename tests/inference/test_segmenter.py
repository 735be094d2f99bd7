"""From an image of any size to a label of the same size."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mpamatch.errors import InputError
from mpamatch.inference import segmenter as module
from mpamatch.inference.segmenter import Segmenter, evaluating, precision_on, prepare_image
from mpamatch.inference.settings import SegmenterSettings

HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.5, 1.0)}


class Brightness(nn.Module):
    """Class 1 where red is above the mean of the normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(20.0))
        self.modes: list[bool] = []

    def forward(self, windows: Tensor) -> SimpleNamespace:
        self.modes.append(self.training)
        red = self.gain * windows[:, :1]
        return SimpleNamespace(logits=torch.cat([-red, red], dim=1))


def make(model: nn.Module | None = None, **changes: Any) -> Segmenter:
    settings: dict[str, Any] = {
        "class_names": ("background", "gland"),
        "colours": ((0, 0, 0), (0, 200, 83)),
        "window": 32,
        "scale": 1.0,
        "microns_per_pixel": None,
        **HALF,
        **changes,
    }
    return Segmenter(model or Brightness(), SegmenterSettings(**settings))


def left_dark(height: int, width: int) -> np.ndarray:
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[:, width // 2 :] = 255
    return image


@pytest.mark.parametrize("size", [(16, 16), (17, 101), (32, 32), (75, 52), (20, 240)])
@pytest.mark.parametrize("scale", [0.57, 1.0, 1.7])
def test_label_has_the_images_own_size_and_border(size: tuple[int, int], scale: float) -> None:
    image = left_dark(*size)
    label = make(scale=scale).predict(image)
    assert label.shape == size
    assert label.dtype == np.uint8
    wrong = (label != (image[..., 0] > 127)).any(axis=0)
    slack = 0 if scale == 1 else 1
    assert wrong.sum() <= slack


def test_probabilities_sum_to_one_at_own_size() -> None:
    image = np.random.default_rng(0).integers(0, 256, (45, 70, 3), dtype=np.uint8)
    result = make(scale=0.6).probabilities(image)
    assert result.shape == (2, 45, 70)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.sum(dim=0), torch.ones(45, 70), rtol=0, atol=1e-5)


def test_probabilities_shrink_with_antialiasing() -> None:
    """A model that sees one-pixel stripes at three times the size: an image's pixel holds both by half."""

    class Stripes(nn.Module):
        def forward(self, windows: Tensor) -> SimpleNamespace:
            sign = (torch.arange(48) % 2 * 40.0 - 20).expand(len(windows), 1, 48, 48)
            return SimpleNamespace(logits=torch.cat([-sign, sign], dim=1))

    result = make(Stripes(), window=48, scale=3.0).probabilities(left_dark(16, 16))
    assert result.shape == (2, 16, 16)
    assert (result - 0.5).abs().max() < 0.07


def test_several_images_equal_one_by_one() -> None:
    generator = np.random.default_rng(1)
    images = [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in [(32, 32), (40, 61), (18, 99)]]
    together = make(batch=4).probabilities(images)
    for image, result in zip(images, together, strict=True):
        torch.testing.assert_close(result, make().probabilities(image), rtol=0, atol=1e-6)


def test_labels_of_many_are_those_of_each_alone() -> None:
    generator = np.random.default_rng(3)
    sizes = [(32, 32), (40, 61), (18, 99), (64, 64), (20, 20)]
    images = [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    segmenter = make(batch=3, scale=0.7)
    for image, label in zip(images, segmenter.labels(iter(images)), strict=True):
        assert label.dtype == torch.uint8
        assert np.array_equal(label.numpy(), segmenter.predict(image))


def test_labels_take_images_as_they_need_them() -> None:
    taken = []

    def images():
        for number in range(20):
            taken.append(number)
            yield left_dark(32, 32)

    next(make(batch=4).labels(images()))
    assert taken == [0, 1, 2, 3, 4]


def test_a_model_in_training_stays_in_evaluation_mode_until_its_last_batch() -> None:
    """Two batches run at a time: the first one's end must not switch the second one's dropout on."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        model = Brightness().train()
        assert len(list(make(model, batch=1).labels([left_dark(32, 32)] * 12))) == 12
    finally:
        torch.set_num_threads(before)
    assert model.modes == [False] * 12
    assert model.training


def test_images_of_two_homes_share_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU keeps small images and the host large ones; here both homes are the CPU, asked for image by image."""
    asked = []
    monkeypatch.setattr(Segmenter, "_home", lambda self, pixels: asked.append(pixels) or torch.device("cpu"))
    images = [left_dark(32, 32), left_dark(64, 48)]
    assert [tuple(label.shape) for label in make().labels(images)] == [(32, 32), (64, 48)]
    assert asked == [32 * 32, 64 * 48]


def test_large_images_are_kept_in_host_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = make()
    monkeypatch.setattr(Segmenter, "device", torch.device("meta"))
    monkeypatch.setattr(module, "LARGEST_ON_DEVICE", 2 * 40 * 40)
    assert segmenter._home(40 * 40) == torch.device("meta")
    assert segmenter._home(40 * 40 + 1) == torch.device("cpu")


def test_path_and_array_agree(tmp_path: Path) -> None:
    image = left_dark(40, 33)
    Image.fromarray(image).save(tmp_path / "a.png")
    assert np.array_equal(make().predict(tmp_path / "a.png"), make().predict(image))
    assert np.array_equal(make().predict(str(tmp_path / "a.png")), make().predict(image))


def test_modes_are_put_back() -> None:
    model = nn.Sequential(Brightness(), nn.Identity())
    model.train()
    model[1].eval()
    with evaluating(model):
        assert not any(part.training for part in model.modules())
    assert [part.training for part in model.modules()] == [True, True, False]


def test_model_in_training_is_evaluated() -> None:
    model = Brightness().train()
    make(model).predict(left_dark(20, 20))
    assert model.modes == [False]
    assert model.training


def test_bf16_runs_the_model_in_bf16() -> None:
    class Convolution(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 2, 1)
            self.kinds: list[torch.dtype] = []

        def forward(self, windows: Tensor) -> SimpleNamespace:
            logits = self.convolution(windows)
            self.kinds.append(logits.dtype)
            return SimpleNamespace(logits=logits)

    model = Convolution()
    low = make(model, precision="bf16").probabilities(left_dark(32, 32))
    high = make(model).probabilities(left_dark(32, 32))
    assert model.kinds == [torch.bfloat16, torch.float32]
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, high, rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("capability", "device", "precision"),
    [("AVX2", "cpu", "32"), ("DEFAULT", "cpu", "32"), ("AVX512", "cpu", "bf16"), ("AVX2", "cuda", "bf16")],
)
def test_a_cpu_that_imitates_bf16_takes_float32(
    capability: str, device: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert precision_on(torch.device(device), "bf16") == precision
    assert precision_on(torch.device(device), "32") == "32"


def test_prepare_image_normalises() -> None:
    image = np.full((4, 5, 3), 51, dtype=np.uint8)
    prepared = prepare_image(image, 1.0, **HALF)
    assert prepared.shape == (3, 4, 5)
    expected = torch.tensor([(0.2 - 0.5) / 0.25, (0.2 - 0.5) / 0.5, (0.2 - 0.5) / 1.0])
    torch.testing.assert_close(prepared, expected.view(3, 1, 1).expand(3, 4, 5))


def test_prepare_image_is_antialiased() -> None:
    """One-pixel stripes at a third of the size are grey; every third pixel alone would be stripes again."""
    image = np.zeros((66, 66, 3), dtype=np.uint8)
    image[:, ::2] = 255
    prepared = prepare_image(image, 1 / 3, mean=(0, 0, 0), std=(1, 1, 1))
    assert prepared.shape == (3, 22, 22)
    assert (prepared - 0.5).abs().max() < 0.07


def test_prepare_image_leaves_the_image_and_takes_views() -> None:
    image = np.random.default_rng(2).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    before = image.copy()
    flipped = prepare_image(image[:, ::-1], 1.0, **HALF)
    assert torch.equal(flipped.flip(2), prepare_image(image, 1.0, **HALF))
    assert np.array_equal(image, before)
    image.setflags(write=False)
    assert torch.equal(prepare_image(image, 1.0, **HALF), flipped.flip(2))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"colours": ((0, 0, 0),)}, "colours"),
        ({"class_names": ["x"] * 256, "colours": [(0, 0, 0)] * 256}, "256 classes"),
        ({"scale": 0.0}, "scale"),
        ({"scale": float("nan")}, "scale"),
        ({"precision": "bf61"}, "did you mean 'bf16'"),
    ],
)
def test_settings_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make(**changes)


def test_model_with_other_classes_refused() -> None:
    segmenter = make(class_names=("background", "benign", "malignant"), colours=((0, 0, 0),) * 3)
    with pytest.raises(InputError, match="gives 2 classes, but 3 are named: background, benign, malignant"):
        segmenter.predict(left_dark(20, 20))


@pytest.mark.parametrize("image", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 4), np.uint8), np.zeros((9, 9, 3))])
def test_images_refused(image: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"must be \(H, W, 3\) uint8"):
        make().probabilities(image)
