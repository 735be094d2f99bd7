"""The ranks that torchrun started: how they join, share work, agree, survive a restart and end together.

Without torchrun this process is the only rank, and nothing here communicates.
"""

import contextlib
import functools
import hashlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import nn

from mpamatch.device import choose_device
from mpamatch.errors import InputError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

PRECISION = {"32": "32-true", "bf16": "bf16-mixed", "64": "64-true"}
LONG = timedelta(days=2)  # timeout of a command in which one rank may have far more to do than another
Value = TypeVar("Value")


def all_ranks() -> dist.ProcessGroup | None:
    """Returns the process group of all ranks, or None if this process is alone."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return dist.group.WORLD
    return None


def started() -> int:
    """Returns how many ranks torchrun started, on all machines; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", 1)) if dist.is_torchelastic_launched() else 1


def size() -> int:
    """Returns how many ranks have joined; 1 before `join` and without torchrun."""
    return dist.get_world_size() if all_ranks() is not None else 1


def rank() -> int:
    """Returns the rank of this process, known before it has joined; rank 0 alone prints and writes what all share."""
    if all_ranks() is not None:
        return dist.get_rank()
    return int(os.environ["RANK"]) if started() > 1 else 0


def join(device: str, precision: str = "32", *, patience: timedelta = timedelta(minutes=30)) -> "Fabric":
    """Joins the process group, each rank on a device of its own; returns once all have; a second call changes nothing.

    Args:
        device: auto, cpu or cuda.
        precision: 32, bf16 (mixed) or 64.
        patience: timeout of every later collective; if a rank dies, the others get an error at once.

    Raises:
        InputError: a machine has more ranks than GPUs, or machines have different numbers of ranks.
    """
    from lightning_fabric import Fabric  # seconds to import: a process alone that only predicts needs none
    from lightning_fabric.strategies import DDPStrategy

    ranks, local = started(), int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if started() > 1 else 1
    accelerator = choose_device(device).type
    if accelerator == "cuda" and local > torch.cuda.device_count():
        raise InputError(
            f"torchrun: started {local} ranks on a machine where torch sees {torch.cuda.device_count()} GPUs; "
            "start one rank per GPU (--nproc-per-node), or take the CPU."
        )
    if ranks % local:
        raise InputError(f"torchrun: {ranks} ranks in all and {local} on this machine; start as many on every machine.")
    strategy: Any = DDPStrategy(broadcast_buffers=False, timeout=patience) if ranks > 1 else "auto"
    fabric = Fabric(
        accelerator=accelerator,
        devices=local,
        num_nodes=ranks // local,
        strategy=strategy,
        precision=PRECISION[precision],  # type: ignore[arg-type]
    )
    if ranks > 1 and not dist.is_initialized():
        _meet(fabric.device, patience)
    fabric.launch()
    return fabric


def _meet(device: torch.device, patience: timedelta) -> None:
    """Makes the process group by a rendezvous under a fresh key in torchrun's store.

    Torchrun (torch 2.11) keeps one store over restarts; a rank that found the address of a dead one in it would wait
    for that in vain, hence the fresh key. Without such a store it does nothing, and Fabric makes the group.
    """
    store = board()
    if store is None:
        return
    backend, own = ("nccl", device) if device.type == "cuda" else ("gloo", None)
    if own is not None:
        torch.cuda.set_device(own)
    place = dist.PrefixStore(_invite(store, patience) if rank() == 0 else _accept(store, patience), store)
    place.set_timeout(patience)
    dist.init_process_group(
        backend,
        store=place,
        rank=rank(),
        world_size=started(),
        timeout=patience,
        device_id=own,
    )


def _invite(store: dist.Store, patience: timedelta) -> str:
    """Publishes a fresh rendezvous key until every live rank has acknowledged it; returns the key. On rank 0 alone.

    Every request is answered, those that ranks left before they died too: the answer to one of these harms nobody.
    Raises RuntimeError if a rank has not acknowledged the key within `patience`.
    """
    place, deadline = uuid4().hex, time.monotonic() + patience.total_seconds()
    while missing := [other for other in range(1, started()) if not store.check([f"{place}/{other}"])]:
        for hello in (f"hello/{other}" for other in missing):
            if store.check([hello]):
                store.set(f"welcome/{store.get(hello).decode()}", place)
        if time.monotonic() > deadline:
            raise RuntimeError(f"ranks {missing} did not come within {patience}")
        time.sleep(0.02)
    return place


def _accept(store: dist.Store, patience: timedelta) -> str:
    """Requests the rendezvous key from rank 0, acknowledges and returns it."""
    name = uuid4().hex
    store.set(f"hello/{rank()}", name)
    store.wait([f"welcome/{name}"], patience)
    place = store.get(f"welcome/{name}").decode()
    store.set(f"{place}/{rank()}", "")
    return place


def gather(value: Value) -> list[Value]:
    """Collects the `value` of every rank, in the order of the ranks, on every rank; any object that can be pickled."""
    if all_ranks() is None:
        return [value]
    values: list[Any] = [None] * size()
    dist.all_gather_object(values, value)
    return values


def from_first(make: Callable[[], Value]) -> Value:
    """Calls `make` on rank 0 alone and returns its result on every rank; an InputError too is raised on every rank."""
    if all_ranks() is None:
        return make()
    found: list[Any] = [None, None]
    if rank() == 0:
        try:
            found[0] = make()
        except InputError as error:
            found[1] = error
    dist.broadcast_object_list(found, src=0)
    if found[1] is not None:
        raise found[1]
    return found[0]


def synchronise_norms(module: nn.Module, device: torch.device) -> None:
    """Replaces the batch norms in `module` by torch.nn.SyncBatchNorm, whose statistics are those of all ranks.

    Names in the state dictionary stay the same; frozen norms alone, or a single rank, leave the module as it is.
    Raises InputError for a norm that trains on CPU ranks: SyncBatchNorm runs on GPUs alone.
    """
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training]
    if all_ranks() is None or not norms:
        return
    if device.type == "cpu":
        raise InputError(
            "model.norm: batch norm over several ranks needs GPUs (torch.nn.SyncBatchNorm knows no CPU); "
            "take --model.norm group."
        )
    nn.SyncBatchNorm.convert_sync_batchnorm(module)


@functools.cache
def board() -> dist.Store | None:
    """Connects to torchrun's own key-value store, which outlives the ranks; None without torchrun or such a store."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True):
        return None
    try:
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=20),
        )
    except (RuntimeError, ValueError):  # the machine that holds it is gone
        return None
    return dist.PrefixStore("mpamatch", store)


def remembered(make: Callable[[], str], *about: object) -> str:
    """Calls `make` once under this torchrun and returns that result after every restart too; call it on rank 0 alone.

    The result is stored under a hash of the representation of `about`.
    """
    store, key = board(), hashlib.sha256(repr(about).encode()).hexdigest()
    if store is None:
        return make()
    if not store.check([key]):
        store.set(key, make())
    return store.get(key).decode()


def say_once(sentence: str) -> None:
    """Prints why the ranks end, once, to stderr: the first rank to call prints, the others wait until it has.

    Torchrun kills all ranks as soon as one has ended, so without the wait the sentence could be lost.
    """
    store = board()
    if store is None or store.add("refused", 1) == 1:
        print(sentence, file=sys.stderr, flush=True)
        if store is not None:
            store.set("said", "")
    elif not store.check(["said"]):
        with contextlib.suppress(RuntimeError):  # the rank that was to print is gone
            store.wait(["said"], timedelta(seconds=10))


def refused() -> bool:
    """Tells whether a rank ended with bad input before this restart by torchrun: every attempt would meet it again."""
    store = board() if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) else None
    return store is not None and store.check(["refused"])


def lost_another(error: BaseException) -> bool:
    """Tells whether `error` is what a collective raises after another rank has ended."""
    return started() > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error))


def left_alone(error: BaseException) -> int:
    """Explains, once per attempt, that another rank has ended, unless bad input was named as the cause; returns 1."""
    store, attempt = board(), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if store is None or (not store.check(["refused"]) and store.add(f"lost/{attempt}", 1) == 1):
        said = str(error).splitlines()[0]
        print(f"mpamatch: another rank is gone, so rank {rank()} ends too ({said}).", file=sys.stderr)
    time.sleep(2)  # torchrun names as the cause whichever rank it sees end first, and looks ten times a second
    return 1


def leave(code: int) -> int:
    """Leaves the process group and returns `code`; any `code` but 0 ends the process at once, without clean-up.

    After an error the ordinary exit may wait for ranks that wait for this one.
    """
    if code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if dist.is_initialized():
        dist.destroy_process_group()
    return code


def mine(items: Sequence[Value]) -> Sequence[Value]:
    """Selects this rank's share of work that can be done in any order: every size()-th of `items`, from rank() on."""
    return items[rank() :: size()]
