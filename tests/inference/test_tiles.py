"""Windows cover, keep their size, and leave no trace in the result."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mpamatch.errors import InputError
from mpamatch.inference.tiles import look_each, origins, probabilities

SIDES = st.integers(1, 40)


def pointwise(windows: Tensor) -> Tensor:
    """Logits that depend on a pixel alone, so that no window can matter."""
    red, green, blue = windows.unbind(dim=1)
    return torch.stack([red - blue, 2 * green, red * blue], dim=1)


def segment_each(model: Callable[[Tensor], Tensor], images: Iterable[Tensor], **settings: Any) -> Iterator[Tensor]:
    """The result of each image."""
    return (canvas.result() for canvas in look_each(lambda x: (probabilities(model, x), None), images, **settings))


def segment(model: Callable[[Tensor], Tensor], image: Tensor, *, window: int, overlap: float, batch: int) -> Tensor:
    """The result of a single image."""
    (result,) = segment_each(model, [image], window=window, overlap=overlap, batch=batch)
    return result


class Recorder:
    """Remembers the shape of every batch it is given."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, windows: Tensor) -> Tensor:
        self.shapes.append(tuple(windows.shape))
        return pointwise(windows)


@given(length=st.integers(1, 300), window=st.integers(1, 64), data=st.data())
@settings(max_examples=200, deadline=None)
def test_origins_cover_without_strips(length: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window))
    starts = origins(length, window, stride)
    covered = {pixel for start in starts for pixel in range(start, start + window)}
    assert covered >= set(range(length))
    assert starts[0] == 0
    assert starts[-1] + window == max(length, window)
    assert all(1 <= b - a <= stride for a, b in pairwise(starts))
    fewest = 1 if length <= window else -(-(length - window) // stride) + 1
    assert len(starts) == fewest


def test_origins_known() -> None:
    assert origins(224, 224, 149) == [0]
    assert origins(100, 224, 149) == [0]
    assert origins(225, 224, 149) == [0, 1]
    assert origins(10, 4, 3) == [0, 3, 6]
    assert origins(11, 4, 3) == [0, 2, 4, 7]


@pytest.mark.parametrize(("length", "window", "stride"), [(0, 4, 2), (9, 4, 5), (9, 4, 0), (9, 0, 0)])
def test_origins_refused(length: int, window: int, stride: int) -> None:
    with pytest.raises(InputError, match="stride"):
        origins(length, window, stride)


@given(height=SIDES, width=SIDES, window=st.integers(1, 17), overlap=st.floats(0, 0.9), batch=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_pointwise_model_equals_whole_image(height: int, width: int, window: int, overlap: float, batch: int) -> None:
    image = torch.randn(3, height, width, generator=torch.Generator().manual_seed(height * 41 + width))
    model = Recorder()
    result = segment(model, image, window=window, overlap=overlap, batch=batch)
    torch.testing.assert_close(result, pointwise(image[None])[0].softmax(dim=0), rtol=0, atol=1e-6)
    assert result.dtype == torch.float32
    assert all(shape[1:] == (3, window, window) and 1 <= shape[0] <= batch for shape in model.shapes)


def test_constant_windows_blend_to_a_constant() -> None:
    def constant(windows: Tensor) -> Tensor:
        return torch.tensor([0.3, -1.0]).view(1, 2, 1, 1).expand(len(windows), 2, 16, 16)

    result = segment(constant, torch.randn(3, 53, 38), window=16, overlap=1 / 3, batch=4)
    expected = torch.tensor([0.3, -1.0]).softmax(dim=0).view(2, 1, 1).expand(2, 53, 38)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)


def test_blend_has_no_seam() -> None:
    """Two windows that disagree fade into each other: no step is larger than the Hann ramp's steepest.

    The share of the left window over an overlap of 32 pixels is sin²/(sin² + cos²) of a quarter wave per 32
    pixels: its steepest step is π/2/32 ≈ 0.049; a hard border would be one step of 1.
    """

    def by_position(windows: Tensor) -> Tensor:
        side = windows.mean(dim=(1, 2, 3)).sign() * 50
        return torch.stack([side, -side], dim=1)[..., None, None].expand(len(windows), 2, 64, 64)

    image = torch.linspace(-1, 1, 96).expand(3, 64, 96)
    result = segment(by_position, image, window=64, overlap=0.5, batch=2)[0]
    assert result[:, :32].max() < 1e-6
    assert result[:, 64:].min() > 1 - 1e-6
    assert result.diff(dim=1).abs().max() < 0.05


def test_images_in_a_batch_equal_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    network = torch.nn.Conv2d(3, 4, 5, padding=2).double()
    images = [torch.randn(3, h, w, generator=generator).double() for h, w in [(16, 16), (5, 40), (33, 20), (1, 1)]]
    together = list(segment_each(network, images, window=16, overlap=0.25, batch=3))
    for image, result in zip(images, together, strict=True):
        alone = segment(network, image, window=16, overlap=0.25, batch=8)
        torch.testing.assert_close(result, alone, rtol=0, atol=1e-7)
        assert result.shape == (4, *image.shape[1:])


def test_images_of_window_size_cost_one_row_each() -> None:
    model = Recorder()
    images = [torch.randn(3, 16, 16) for _ in range(7)]
    results = list(segment_each(model, images, window=16, overlap=1 / 3, batch=4))
    assert [shape[0] for shape in model.shapes] == [4, 3]
    for image, result in zip(images, results, strict=True):
        assert torch.equal(result, pointwise(image[None])[0].softmax(dim=0))


def test_windows_run_on_from_image_to_image_and_results_come_as_soon_as_they_are_done() -> None:
    model, taken = Recorder(), []

    def images():
        for number, size in enumerate([(16, 16), (16, 40), (40, 40), (16, 16), (9, 9)]):  # 1, 3, 9, 1, 1 windows
            taken.append(number)
            yield torch.randn(3, *size, generator=torch.Generator().manual_seed(number))

    results, known = segment_each(model, images(), window=16, overlap=0, batch=4), []
    sides = []
    for result in results:
        sides.append(tuple(result.shape[1:]))
        known.append((taken[-1], len(model.shapes)))
    assert sides == [(16, 16), (16, 40), (40, 40), (16, 16), (9, 9)]
    assert [shape[0] for shape in model.shapes] == [4, 4, 4, 3]
    # The last image taken and the batches run by then: one window more than a batch is known before it runs.
    assert known == [(2, 1), (2, 1), (4, 4), (4, 4), (4, 4)]


class WhereItRuns:
    """Remembers the thread of each batch and how many threads torch may use there."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, str, int]] = []

    def __call__(self, windows: Tensor) -> Tensor:
        self.calls.append((len(windows), threading.current_thread().name, torch.get_num_threads()))
        time.sleep(0.01)
        return pointwise(windows)


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("four_threads")
def test_batches_run_at_a_time_each_with_its_share_of_threads() -> None:
    model = WhereItRuns()
    images = [torch.randn(3, 16 + number, 40, generator=torch.Generator().manual_seed(number)) for number in range(7)]
    settings = {"window": 16, "overlap": 0.25, "batch": 4}
    alone = list(segment_each(pointwise, images, **settings))
    together = list(segment_each(model, images, **settings, threads=2))
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))
    assert len({name for _, name, _ in model.calls}) == 2
    assert {threads for *_, threads in model.calls} == {2}
    assert torch.get_num_threads() == 4


@pytest.mark.usefixtures("four_threads")
@pytest.mark.parametrize(
    ("images", "sizes", "threads"), [(1, [1], 4), (2, [1, 1], 1), (8, [2, 2, 2, 2], 1), (11, [8, 1, 1, 1], 1)]
)
def test_a_last_batch_is_divided_and_a_single_window_has_all_threads(
    images: int, sizes: list[int], threads: int
) -> None:
    model = WhereItRuns()
    given = (torch.randn(3, 16, 16) for _ in range(images))
    assert len(list(segment_each(model, given, window=16, overlap=0, batch=8, threads=4))) == images
    assert sorted(size for size, *_ in model.calls) == sorted(sizes)
    assert {of_torch for *_, of_torch in model.calls} == {threads}


@pytest.mark.usefixtures("four_threads")
def test_a_model_that_fails_in_a_thread_is_told_and_leaves_torch_as_it_was() -> None:
    def broken(windows: Tensor) -> Tensor:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        list(segment_each(broken, [torch.randn(3, 40, 40)], window=16, overlap=0, batch=2, threads=2))
    assert torch.get_num_threads() == 4


def test_settings_are_refused_before_an_image_is_taken() -> None:
    with pytest.raises(InputError, match="overlap"):
        segment_each(pointwise, iter(()), window=16, overlap=1.0, batch=4)


def test_small_images_are_reflected_or_repeated_around_the_middle() -> None:
    seen: list[Tensor] = []

    def model(windows: Tensor) -> Tensor:
        seen.append(windows[0, 0])
        return windows

    segment(model, torch.arange(4.0).expand(3, 1, 4), window=6, overlap=0, batch=1)
    assert seen[0].tolist() == [[1, 0, 1, 2, 3, 2]] * 6


def test_results_can_be_changed_and_carry_no_gradient() -> None:
    network = torch.nn.Conv2d(3, 2, 1)
    result = segment(network, torch.randn(3, 9, 9), window=8, overlap=0.5, batch=2)
    assert not result.requires_grad
    result += 1  # an inference tensor would refuse
    assert result.min() >= 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"overlap": 1.0}, "overlap"),
        ({"overlap": -0.1}, "overlap"),
        ({"window": 0}, "window"),
        ({"batch": 0}, "batch"),
    ],
)
def test_settings_refused(changes: dict[str, float], words: str) -> None:
    arguments = {"window": 8, "overlap": 0.5, "batch": 2, **changes}
    with pytest.raises(InputError, match=words):
        segment(pointwise, torch.zeros(3, 9, 9), **arguments)


@pytest.mark.parametrize("shape", [(1, 9, 9), (3, 9), (2, 3, 9, 9), (3, 0, 9)])
def test_image_shapes_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"must be \(3, H, W\)"):
        segment(pointwise, torch.zeros(shape), window=8, overlap=0.5, batch=2)


def test_model_with_other_size_refused() -> None:
    with pytest.raises(InputError, match="must be logits"):
        segment(lambda windows: windows[..., ::4, ::4], torch.zeros(3, 9, 9), window=8, overlap=0.5, batch=2)
