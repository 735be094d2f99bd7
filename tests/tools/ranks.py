"""Run a function in several gloo ranks on this machine.

Processes are forked from a server that has torch imported already (tests.tools.warm), so only the first call of a
test session waits for that import; a later call with an empty function takes a tenth of a second.
"""

import gc
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.tools import warm

TIMEOUT = 60.0  # seconds for all ranks together, the import included
GRACE = 1.0  # seconds that the others get to write down their own failure once one rank has failed


class RankError(RuntimeError):
    """A rank raised, died or did not finish; the message holds its traceback."""


def run_ranks(function: Callable[..., Any], world_size: int = 2, *args: Any, timeout: float = TIMEOUT) -> list[Any]:
    """function(rank, *args) in every rank of a gloo world; what each rank returned, by rank.

    function is defined at the top of a module; it, args and the results travel by pickle.
    Raises RankError with the traceback of the rank that failed first, or after `timeout` seconds.
    """
    context = warm.context()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        task = pickle.dumps((function, args))
        ranks: list[BaseProcess] = [
            context.Process(target=_rank, args=(rank, world_size, folder, task, timeout), daemon=True)
            for rank in range(world_size)
        ]
        for process in ranks:
            process.start()
        try:
            failed = _wait(ranks, timeout)
        finally:
            _end(ranks)
        if failed is not None:
            raise RankError(_story(ranks, folder, failed, timeout))
        return [pickle.loads((folder / f"{rank}.result").read_bytes()) for rank in range(world_size)]


def _rank(rank: int, world_size: int, folder: Path, task: bytes, timeout: float) -> None:
    torch.set_num_threads(1)
    gc.freeze()  # a collection need not look at what was imported
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # the name of a machine without a network need not resolve
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout),
        )
        function, args = pickle.loads(task)
        result = pickle.dumps(function(rank, *args))
        dist.barrier()  # no rank leaves while another still needs it
        (folder / f"{rank}.result").write_bytes(result)
        dist.destroy_process_group()
    except BaseException:
        unfinished = folder / f"{rank}.unfinished"
        unfinished.write_text(f"{time.time()}\n{traceback.format_exc()}")
        unfinished.rename(folder / f"{rank}.error")
        os._exit(1)  # the ordinary way out waits for the other ranks


def _wait(ranks: list[BaseProcess], timeout: float) -> int | None:
    """The first rank seen to fail, -1 where time ran out, None where all went well."""
    deadline = time.monotonic() + timeout
    running = list(enumerate(ranks))
    while running:
        wait([process.sentinel for _, process in running], timeout=max(0.0, deadline - time.monotonic()))
        ended = [rank for rank, process in running if not process.is_alive()]
        running = [(rank, process) for rank, process in running if rank not in ended]
        for rank in ended:
            if ranks[rank].exitcode != 0:
                wait([process.sentinel for _, process in running], timeout=GRACE)
                return rank
        if running and time.monotonic() >= deadline:
            return -1
    return None


def _end(ranks: list[BaseProcess]) -> None:
    for process in ranks:
        if process.is_alive():
            process.kill()
        process.join()


def _story(ranks: list[BaseProcess], folder: Path, failed: int, timeout: float) -> str:
    """The failure that came first explains the others: a rank left alone fails in its collective."""
    errors = []
    for rank in range(len(ranks)):
        path = folder / f"{rank}.error"
        if path.exists():
            moment, _, text = path.read_text().partition("\n")
            errors.append((float(moment), f"rank {rank}:\n{text}"))
    if errors:
        return min(errors)[1]
    if failed < 0:
        return f"the ranks did not finish in {timeout:g} s"
    return f"rank {failed} died with exit code {ranks[failed].exitcode}"
