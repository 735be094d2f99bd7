"""The prototype bank: unit vectors in full precision, moved by clustering alone, its health in right numbers."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mpamatch.models.prototypes import PrototypeBank
from tests.tools.nosync import assert_no_sync

CLASSES, PER_CLASS, WIDTH = 2, 3, 8


def bank(classes: int = CLASSES, per_class: int = PER_CLASS, width: int = WIDTH, seed: int = 0) -> PrototypeBank:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return PrototypeBank(classes, per_class, width)


def pixels(count: int, seed: int = 1, width: int = WIDTH) -> tuple[Tensor, Tensor, Tensor]:
    """embedding (N,D), assignment (N,) with some ignored, weight (N,) with some zeros."""
    g = torch.Generator().manual_seed(seed)
    embedding = torch.randn(count, width, generator=g)
    assignment = torch.randint(-1, CLASSES * PER_CLASS, (count,), generator=g)
    return embedding, assignment, torch.rand(count, generator=g) * (torch.rand(count, generator=g) > 0.3)


def move(one: PrototypeBank, chosen: list[int], seed: int = 0, momentum: float = 0.999) -> None:
    """One step in which exactly the prototypes of the flat indices `chosen` get a pixel."""
    embedding = torch.randn(len(chosen), WIDTH, generator=torch.Generator().manual_seed(seed))
    weight = torch.ones(len(chosen))
    one.update(embedding, torch.tensor(chosen, dtype=torch.int64), weight, momentum=momentum, group=None)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_the_start_is_random_directions():
    one = bank(4, 50, 64)
    assert one.prototypes.shape == (4, 50, 64)
    assert one.prototypes.dtype == torch.float32
    assert torch.allclose(one.prototypes.norm(dim=-1), torch.ones(4, 50), atol=1e-6)
    flat = one.prototypes.reshape(200, 64)
    cosine = flat @ flat.T - torch.eye(200)
    assert cosine.abs().max() < 5.5 / 64**0.5  # directions in 64 dimensions have a standard deviation of 1/8
    assert cosine.std().item() == pytest.approx(1 / 8, rel=0.05)
    assert one.updates.dtype == torch.int64
    assert not one.updates.any()
    assert torch.equal(one.prototypes, bank(4, 50, 64).prototypes)
    assert not torch.equal(one.prototypes, bank(4, 50, 64, seed=1).prototypes)


def test_nothing_in_it_is_trained():
    one = bank()
    assert not list(one.parameters())
    embedding, assignment, weight = pixels(50)
    one.update(embedding.requires_grad_(), assignment, weight, momentum=0.9, group=None)
    assert not one.prototypes.requires_grad
    assert not one.idle.requires_grad
    assert set(one.state_dict()) == {"prototypes", "updates", "idle"}


@pytest.mark.parametrize("momentum", [0.5, 0.999])
def test_updates_agree_with_numpy(momentum):
    one = bank().double()
    prototypes = one.prototypes.numpy().copy().reshape(-1, WIDTH)
    updates = np.zeros(len(prototypes), dtype=int)
    idle = np.full(len(prototypes), 100)
    for step in range(6):
        embedding, assignment, weight = pixels(20, seed=step)
        one.update(embedding.double(), assignment, weight.double(), momentum=momentum, group=None)
        idle += 1
        for index in range(len(prototypes)):
            mine = assignment.numpy() == index
            mean = (weight.double().numpy()[mine, None] * unit(embedding.double().numpy())[mine]).sum(0)
            if np.linalg.norm(mean) == 0:
                continue
            share = min(1 - 1 / (updates[index] + 1), momentum)
            prototypes[index] = unit(share * prototypes[index] + (1 - share) * unit(mean))
            updates[index] += 1
            idle[index] = 0
    assert len(set(updates)) > 1
    assert np.allclose(one.prototypes.reshape(-1, WIDTH).numpy(), prototypes, atol=1e-12)
    assert np.array_equal(one.updates.flatten().numpy(), updates)
    assert np.array_equal(one.idle.flatten().numpy(), idle)


def test_prototypes_stay_unit_vectors_and_untouched_ones_stay_bit_for_bit():
    one = bank()
    before = one.prototypes.clone()
    for step in range(50):
        move(one, [0, 4], seed=step)
    assert torch.allclose(one.prototypes.norm(dim=-1), torch.ones(CLASSES, PER_CLASS), atol=1e-6)
    kept = [1, 2, 3, 5]
    assert torch.equal(one.prototypes.flatten(0, 1)[kept], before.flatten(0, 1)[kept])
    assert one.updates.flatten().tolist() == [50, 0, 0, 0, 50, 0]


def test_assignment_is_to_the_nearest_of_the_own_class_or_balanced():
    one = bank()
    g = torch.Generator().manual_seed(2)
    label = torch.randint(0, CLASSES, (90,), generator=g).to(torch.uint8)
    label[::10] = 255
    # all pixels near the first prototype of their class
    embedding = one.prototypes[label.long().clamp(max=1), 0] + 0.15 * torch.randn(90, WIDTH, generator=g)
    nearest = one.assign(embedding, label, iterations=0, epsilon=0.05, group=None)
    cosine = unit(embedding.numpy()) @ one.prototypes.flatten(0, 1).numpy().T
    own = np.arange(CLASSES * PER_CLASS)[None] // PER_CLASS == label.numpy()[:, None]
    expected = np.where(label.numpy() == 255, -1, np.where(own, cosine, -2).argmax(1))
    assert np.array_equal(nearest.numpy(), expected)
    balanced = one.assign(embedding, label, iterations=3, epsilon=0.05, group=None)
    assert (balanced[::10] == -1).all()
    assert torch.equal(balanced[label != 255] // PER_CLASS, label[label != 255].int())
    counts = torch.bincount(balanced[label != 255], minlength=CLASSES * PER_CLASS)
    assert counts.min() > torch.bincount(nearest[label != 255], minlength=CLASSES * PER_CLASS).min()


CASTS = {
    "half": lambda module: module.half(),
    "bfloat16": lambda module: module.bfloat16(),
    "to": lambda module: module.to(torch.bfloat16),
    "to_device_and_dtype": lambda module: module.to("cpu", torch.float16),
}


@pytest.mark.parametrize("cast", CASTS)
def test_half_precision_leaves_the_bank_in_float32(cast):
    parent = CASTS[cast](nn.ModuleDict({"bank": bank(), "linear": nn.Linear(2, 2)}))
    assert parent["linear"].weight.dtype in (torch.float16, torch.bfloat16)
    assert parent["bank"].prototypes.dtype == torch.float32
    assert parent["bank"].idle.dtype == torch.int64
    assert parent["bank"].updates.dtype == torch.int64


@pytest.mark.parametrize("cast", CASTS)
def test_half_precision_rounds_no_prototype(cast):
    """bfloat16 has 8 bits: a trained prototype rounded once loses what a thousand steps at momentum .999 moved it."""
    one = bank()
    move(one, [0, 1, 5])
    before = {name: value.clone() for name, value in one.state_dict().items()}
    CASTS[cast](one)
    for name, value in one.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_double_gives_float64_and_float_takes_it_back():
    one = bank().double()
    assert one.prototypes.dtype == torch.float64
    assert one.float().prototypes.dtype == torch.float32


def test_a_half_precision_embedding_moves_the_bank_in_float32():
    one = bank().bfloat16()
    embedding, assignment, weight = pixels(40)
    one.update(embedding.bfloat16(), assignment, weight, momentum=0.999, group=None)
    assert one.prototypes.dtype == torch.float32
    assert torch.allclose(one.prototypes.norm(dim=-1), torch.ones(CLASSES, PER_CLASS), atol=1e-6)


def health(one: PrototypeBank) -> dict[str, float]:
    return {name: float(value) for name, value in one.health().items()}


def test_cosines_agree_with_numpy():
    one = bank(3, 4, 16)
    p = unit(one.prototypes.double().numpy())
    within = [p[c, i] @ p[c, j] for c in range(3) for i in range(4) for j in range(4) if i != j]
    between = [p[a, i] @ p[b, j] for a in range(3) for b in range(3) if a != b for i in range(4) for j in range(4)]
    found = health(one)
    assert found["cosine_within"] == pytest.approx(np.mean(within), abs=1e-6)
    assert found["cosine_between"] == pytest.approx(np.mean(between), abs=1e-6)
    assert abs(np.mean(within) - np.mean(between)) > 1e-3


def test_a_collapsed_class_and_opposite_classes_are_told():
    one = bank()
    one.prototypes[0] = one.prototypes[0, :1]
    one.prototypes[1] = -one.prototypes[0, :1]
    assert health(one) == pytest.approx({"in_use": 0, "cosine_within": 1, "cosine_between": -1}, abs=1e-6)


@pytest.mark.parametrize(("classes", "per_class"), [(1, 4), (4, 1), (1, 1)])
def test_where_there_is_no_pair_the_cosine_is_zero(classes, per_class):
    found = health(bank(classes, per_class))
    assert all(np.isfinite(value) for value in found.values())
    assert (found["cosine_within"] == 0) == (per_class == 1)
    assert (found["cosine_between"] == 0) == (classes == 1)


def test_health_is_scalars_without_gradient():
    for value in bank().health().values():
        assert value.shape == ()
        assert not value.requires_grad


def test_in_use_counts_what_was_moved_of_late():
    one = bank()
    assert health(one)["in_use"] == 0
    move(one, [0, 1])
    assert health(one)["in_use"] == pytest.approx(2 / 6)
    for _ in range(90):
        move(one, [1, 2])
    assert health(one)["in_use"] == pytest.approx(3 / 6)  # the first was moved 90 steps ago
    for _ in range(20):
        move(one, [1, 2])
    assert health(one)["in_use"] == pytest.approx(2 / 6)


def test_in_use_forgets_a_prototype_that_was_busy_before():
    """Moved 150 times and then no more for 200 steps: not within the last ~100."""
    one = bank()
    for _ in range(150):
        move(one, [0, 1])
    for _ in range(200):
        move(one, [1])
    assert health(one)["in_use"] == pytest.approx(1 / 6)


def test_a_pixel_of_weight_zero_uses_nothing():
    one = bank()
    embedding, assignment, _ = pixels(30)
    before = one.prototypes.clone()
    one.update(embedding, assignment, torch.zeros(30), momentum=0.9, group=None)
    assert torch.equal(one.prototypes, before)
    assert not one.updates.any()
    assert health(one)["in_use"] == 0


def test_a_saved_bank_goes_on_as_if_never_saved(tmp_path):
    one, other = bank(), bank(seed=9)
    for step in range(5):
        move(one, [0, 3], seed=step)
    torch.save(one.state_dict(), tmp_path / "bank.pt")
    other.load_state_dict(torch.load(tmp_path / "bank.pt", weights_only=True))
    for step in range(5, 10):
        move(one, [0, 2], seed=step)
        move(other, [0, 2], seed=step)
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    assert health(one) == health(other)


def one_step(one: PrototypeBank, embedding: Tensor, label: Tensor, weight: Tensor) -> None:
    assignment = one.assign(embedding, label, iterations=3, epsilon=0.05, group=None)
    one.update(embedding, assignment, weight, momentum=0.999, group=None)
    one.health()


def test_a_step_asks_the_gpu_nothing():
    embedding, _, weight = pixels(30)
    assert_no_sync(one_step, bank(), embedding, torch.randint(0, 2, (30,), dtype=torch.uint8), weight)
