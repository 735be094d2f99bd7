"""Two ranks with half of the batch each train as one process with the whole batch does: float64, 1e-9, three steps.

Each rank multiplies its loss by the number of ranks, because DistributedDataParallel averages gradients.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mpamatch.batch import Batch, Labelled, Unlabelled
from mpamatch.methods import losses
from mpamatch.methods.lpd import background_loss
from tests.methods.cases import assert_same_numbers, at, batch, gradients, method
from tests.tools.ranks import run_ranks

pytestmark = pytest.mark.slow

RANKS, STEPS = 2, 3
CASES: dict[str, dict[str, Any]] = {
    "supervised": {"name": "supervised"},
    "mean_teacher": {"name": "mean_teacher", "ramp": 4},
    "fixmatch": {"name": "fixmatch", "unlabelled_loss": "both"},
    "unimatch": {"name": "unimatch"},
    "mpamatch": {"name": "mpamatch", "text": True},
    "mpamatch, second opinion": {
        "name": "mpamatch",
        "second_opinion": "agree",
        "assignment": "nearest",
        "unlabelled_loss": "dice",
    },
    "adaptive": {"name": "fixmatch", "threshold": "adaptive", "threshold_momentum": 0.5},
    "corrmatch": {"name": "fixmatch", "threshold": "corrmatch", "threshold_momentum": 0.8},
    "class thresholds": {"name": "fixmatch", "class_thresholds": True, "threshold_momentum": 0.5},
    "aligned": {"name": "fixmatch", "align_classes": True, "share_momentum": 0.5},
    "teacher": {"name": "unimatch", "teacher": True, "second_opinion": "average", "opinion_of": ["student", "mirror"]},
    "unimatch_v2": {"name": "unimatch_v2", "threshold": 0.4, "unlabelled_start": 1, "unlabelled_ramp": 1},
    "heads": {"name": "mpamatch", "text": True, "weight_head": 0.5, "head_share": 0.3},
    "pccs": {"name": "pccs", "weight_contrast": 1.0, "distance_share": 0.1, "uncertain": 0.0},
    "lpd": {"name": "lpd", "start": 1},
    "lpd, own pixels of raw prototypes": {
        "name": "lpd",
        "start": 1,
        "diversity_pixels": "own",
        "diversity_prototypes": "raw",
        "model": {"prototype_width": 128},
    },
    "supervised, cross-entropy": {"name": "supervised", "labelled_loss": "ce"},
    "fixmatch, borders": {"name": "fixmatch", "model": {"boundary": True, "boundary_weight": 0.7}},
}
Run = dict[str, dict[str, Tensor]]  # by step: parts of the loss and gradients; "state": parameters and buffers


def _half(data: Batch, rank: int) -> Batch:
    def cut(part: Any) -> Any:
        return type(part)(*(None if x is None else x.chunk(RANKS)[rank] for x in part))

    assert data.unlabelled is not None
    return Batch(cut(data.labelled), cut(data.unlabelled))


def _train(case: str, rank: int | None = None) -> Run:
    ours = method(**CASES[case])
    module: nn.Module = ours if rank is None else DistributedDataParallel(ours, broadcast_buffers=False)
    ranks = 1 if rank is None else RANKS
    optimizer = torch.optim.SGD([p for p in ours.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
    run: Run = {}
    for step in range(STEPS):
        data = batch(4, seed=step)
        parts = module(data if rank is None else _half(data, rank), at(step))
        (parts["loss"] * ranks).backward()
        run[f"step {step}"] = {name: value.detach() for name, value in parts.items()} | gradients(ours)
        optimizer.step()
        optimizer.zero_grad()
        ours.after_step(at(step))
    return run | {"state": {name: value.clone() for name, value in ours.state_dict().items()}}


def _train_all(rank: int) -> dict[str, Run]:
    return {case: _train(case, rank) for case in CASES}


@pytest.fixture(scope="module")
def by_rank() -> list[dict[str, Run]]:
    return run_ranks(_train_all, RANKS, timeout=300)


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_train_as_one(case: str, by_rank: list[dict[str, Run]]) -> None:
    alone = _train(case)
    for run in by_rank:
        for when, numbers in alone.items():
            assert_same_numbers(run[case][when], numbers, 1e-9)


def test_the_halves_differ() -> None:
    """What the comparison rests on: other sums on each rank, and prototypes that move."""
    first, second = (_half(batch(4), rank) for rank in range(RANKS))
    assert first.unlabelled is not None
    assert second.unlabelled is not None
    assert int((first.labelled.label != 255).sum()) != int((second.labelled.label != 255).sum())
    assert int(first.unlabelled.valid.sum()) != int(second.unlabelled.valid.sum())
    assert isinstance(first.labelled, Labelled)
    assert isinstance(first.unlabelled, Unlabelled)
    assert int(_train("mpamatch")["state"]["bank.updates"].sum()) > 9
    for case, names in {"adaptive": ["confidence", "probability"], "aligned": ["labelled_share"]}.items():
        halves = []
        for rank in range(RANKS):
            ours = method(**CASES[case])
            ours(_half(batch(4), rank), at(0))
            halves.append({name: ours.state_dict()[f"pseudo.{name}"] for name in names})
        assert all((halves[0][name] - halves[1][name]).abs().max() > 1e-5 for name in names)
    assert float(_train("pccs")["step 1"]["level_contrast"]) > 0.1


def _sums(rank: int) -> dict[str, float]:
    local = torch.tensor([1.0 + rank, 10.0], dtype=torch.float64, requires_grad=True)
    total = losses.over_ranks(local * 3)
    mean = losses.weighted_mean(local[0], torch.tensor(2.0 + rank))
    (total.sum() + mean).backward()
    assert local.grad is not None
    return {
        "total": float(total[0].detach()),
        "mean": float(mean.detach()),
        "share": float(losses.share(torch.tensor([1.0, 0.0]) * rank, torch.ones(2))),
        "gradient": float(local.grad[0]),
    }


BACKGROUND = torch.nn.functional.normalize(
    torch.randn(4, 5, generator=torch.Generator().manual_seed(2)).double(), dim=1
)
SHOWN = torch.tensor([[1.0, 0, 0], [1, 1, 0], [1, 1, 1], [0, 0, 1]])  # the third shows all classes and has no part


def _background(rank: int | None) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(3)
    prototypes = torch.nn.functional.normalize(torch.randn(3, 2, 5, generator=g).double(), dim=2).requires_grad_()
    z, shown = (x if rank is None else x.chunk(RANKS)[rank] for x in (BACKGROUND, SHOWN))
    loss = background_loss(z, prototypes, shown, 0.07)
    loss.backward()
    assert prototypes.grad is not None
    return {"loss": loss.detach(), "gradient": prototypes.grad}


def test_the_background_of_lpd_is_pooled_over_ranks() -> None:
    """The same loss on every rank, and gradients that add up to that of one process."""
    alone, by_rank = _background(None), run_ranks(_background, RANKS, timeout=120)
    for found in by_rank:
        torch.testing.assert_close(found["loss"], alone["loss"], rtol=1e-12, atol=0)
    torch.testing.assert_close(by_rank[0]["gradient"] + by_rank[1]["gradient"], alone["gradient"], rtol=1e-9, atol=0)


def test_sums_over_ranks_carry_the_local_gradient() -> None:
    """Locals 1 and 2: 3·(1 + 2); mean (1 + 2)/(2 + 3); share 1 of 4; gradient 3 + 1/5 on either rank."""
    for found in run_ranks(_sums, RANKS, timeout=120):
        assert found == pytest.approx({"total": 9.0, "mean": 0.6, "share": 0.25, "gradient": 3.2})
