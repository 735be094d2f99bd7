"""Pseudo-labels and CutMix between neighbours."""

import pytest
import torch
from torch import Tensor

from mpamatch import ops
from mpamatch.errors import InputError
from mpamatch.methods import consistency
from mpamatch.methods.fixmatch import FixMatchConfig
from mpamatch.methods.pseudo_labels import Targets, pseudo_targets
from tests.methods import truth


@pytest.mark.parametrize(
    ("count", "partners"),
    [(1, [0]), (2, [1, 0]), (3, [1, 0, 0]), (4, [1, 0, 3, 2]), (5, [1, 0, 3, 2, 0]), (6, [1, 0, 3, 2, 5, 4])],
)
def test_neighbours(count: int, partners: list[int]) -> None:
    x = torch.arange(count)[:, None, None].expand(count, 2, 3)
    assert consistency.neighbours(x)[:, 0, 0].tolist() == partners
    assert consistency.neighbours(x).shape == x.shape


def test_pairs_stay_together_when_a_batch_is_cut_over_ranks() -> None:
    x = torch.arange(8)
    halves = torch.cat([consistency.neighbours(half) for half in x.split(4)])
    assert torch.equal(halves, consistency.neighbours(x))


BOXES = {
    "some": [[2, 1, 5, 4], [0, 3, 6, 5], [1, 1, 2, 2]],
    "empty": [[2, 2, 2, 5], [4, 4, 1, 1], [0, 0, 0, 0]],
    "whole": [[0, 0, 6, 5], [0, 0, 6, 5], [0, 0, 6, 5]],
}


def _box(name: str, count: int = 3) -> Tensor:
    return torch.tensor(BOXES[name][:count], dtype=torch.int32)


@pytest.mark.parametrize("box", BOXES)
def test_inside(box: str) -> None:
    ours = consistency.inside(_box(box), 6, 5)
    for i, (top, left, bottom, right) in enumerate(BOXES[box]):
        for y in range(6):
            for x in range(5):
                assert bool(ours[i, y, x]) == (top <= y < bottom and left <= x < right)


def _numbered(count: int) -> Tensor:
    """(count, 3, 6, 5): every value tells its image, channel, row and column."""
    return torch.arange(count * 3 * 6 * 5, dtype=torch.float64).reshape(count, 3, 6, 5)


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_cutmix_takes_the_box_from_the_neighbour(count: int, box: str) -> None:
    image = _numbered(count)
    mixed = consistency.cutmix(image, consistency.inside(_box(box, count), 6, 5))
    assert torch.equal(mixed, truth.cutmix(image, _box(box, count)))
    assert torch.equal(mixed, image) == (count == 1 or box == "empty")


def test_image_label_weight_and_valid_are_mixed_alike() -> None:
    """Label, weight and valid map are functions of the image's first channel; so they must be after mixing."""
    image, chosen = _numbered(3), consistency.inside(_box("some"), 6, 5)
    key = image[:, 0]
    targets = Targets((key % 7).to(torch.uint8), (key % 2), key % 3 == 0)
    mixed_key = consistency.cutmix(image, chosen)[:, 0]
    assert not torch.equal(mixed_key, key)
    mixed = consistency.cutmix_targets(targets, chosen)
    assert torch.equal(mixed.label, (mixed_key % 7).to(torch.uint8))
    assert torch.equal(mixed.weight, mixed_key % 2)
    assert torch.equal(mixed.valid, mixed_key % 3 == 0)


def test_a_batch_of_one_is_left_as_it_is() -> None:
    image = _numbered(1)
    targets = Targets(image[:, 0].to(torch.uint8), image[:, 1], image[:, 2] > 70)
    chosen = consistency.inside(_box("some", 1), 6, 5)
    assert torch.equal(consistency.cutmix(image, chosen), image)
    for ours, before in zip(consistency.cutmix_targets(targets, chosen), targets, strict=True):
        assert torch.equal(ours, before)


def test_a_pseudo_label_counts_from_the_threshold_on_and_where_valid() -> None:
    logits = 2 * torch.randn(2, 4, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(2, 6, 5, dtype=torch.bool)
    valid[:, :, 3:] = False
    _, confidence = ops.pseudo_label(logits)
    threshold = float(confidence[0, 2, 1])  # one pixel is exactly this sure
    targets = pseudo_targets(logits.requires_grad_(), valid, threshold)
    p = logits.detach().softmax(1)
    assert torch.equal(targets.label, p.argmax(1).to(torch.uint8))
    assert targets.weight[0, 2, 1] == 1
    sure = (p.max(1).values > threshold) & valid
    sure[0, 2, 1] = True
    assert torch.equal(targets.weight, sure.double())
    assert 0 < int(sure.sum()) < int(valid.sum())
    assert targets.valid is valid
    assert not targets.weight.requires_grad


@pytest.mark.parametrize(("threshold", "counted"), [(0.0, 1.0), (1.0, 0.0)])
def test_the_ends_of_the_threshold(threshold: float, counted: float) -> None:
    logits = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    targets = pseudo_targets(logits, torch.ones(1, 4, 4, dtype=torch.bool), threshold)
    assert float(targets.weight.mean()) == counted


@pytest.mark.parametrize(
    ("threshold", "loss", "says"),
    [(1.01, "ce", "method.threshold"), (-0.1, "ce", "method.threshold"), (0.9, "bothe", "both")],
)
def test_settings_that_cannot_be(threshold: float, loss: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        FixMatchConfig(threshold=threshold, unlabelled_loss=loss)  # type: ignore[arg-type]
