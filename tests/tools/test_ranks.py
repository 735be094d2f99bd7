"""The two-rank runner: results by rank, failures told, no hang."""

import os
import time

import pytest
import torch
import torch.distributed as dist

from tests.tools.ranks import RankError, run_ranks

pytestmark = pytest.mark.slow


def _sum_of_ranks(rank: int, start: torch.Tensor) -> tuple[int, torch.Tensor]:
    total = start + rank
    dist.all_reduce(total)
    return rank, total


def _one_rank_raises(rank: int) -> None:
    if rank == 1:
        raise ValueError("the second rank is unhappy")
    dist.barrier()


def _one_rank_dies(rank: int) -> None:
    if rank == 0:
        os._exit(3)
    time.sleep(30)


def _sleeps(rank: int) -> None:
    time.sleep(30)


def test_results_come_back_by_rank() -> None:
    results = run_ranks(_sum_of_ranks, 2, torch.tensor([1.0, 2.0], dtype=torch.float64))
    assert [rank for rank, _ in results] == [0, 1]
    for _, total in results:
        torch.testing.assert_close(total, torch.tensor([3.0, 5.0], dtype=torch.float64))


def test_the_traceback_of_the_failed_rank_is_told_at_once() -> None:
    start = time.monotonic()
    with pytest.raises(RankError, match=r"(?s)rank 1:.*ValueError: the second rank is unhappy"):
        run_ranks(_one_rank_raises)
    assert time.monotonic() - start < 20


def test_a_rank_that_dies_is_told() -> None:
    with pytest.raises(RankError, match="rank 0 died with exit code 3"):
        run_ranks(_one_rank_dies)


def test_ranks_that_hang_are_ended() -> None:
    with pytest.raises(RankError, match=r"did not finish in 1\.5 s"):
        run_ranks(_sleeps, 2, timeout=1.5)
