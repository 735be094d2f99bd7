"""A python command whose processes have torch imported when they start: 0.2 s of CPU time in place of 5.

They are forked from the server that multiprocessing keeps for tests.tools.ranks too, so a session imports once.
"""

import atexit
import contextlib
import gc
import json
import multiprocessing
import os
import runpy
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import torch

# What mpamatch imports and takes long; nothing of mpamatch itself, whose own import belongs to what is tested.
PRELOAD = [
    "torch",
    "torch.distributed",
    "torch._dynamo",
    "torchvision",
    "lightning_fabric",
    "timm",
    "jsonargparse",
    "scipy.ndimage",
    "rich.console",
    "rich.progress",
    "safetensors.torch",
    "yaml",
    "PIL.Image",
]
CLIENT = Path(__file__).with_name("warm_client.py")
ALIVE = 2.0  # seconds between two looks at whether the tests still run


def context() -> ForkServerContext:
    """The start method of processes that find PRELOAD imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


@contextlib.contextmanager
def warm_python(folder: Path) -> Iterator[str]:
    """The path of a command that takes `[-u] -m MODULE …` or `[-u] -c CODE …` as python does.

    Environment, working folder, cores, standard streams, exit code and fatal signal are those of an ordinary process,
    and whoever kills the command kills the process. PYTHONPATH and all else that python reads as it starts is without
    effect. The command and its socket lie in `folder`. If the system has no pidfd, the command is python itself.
    """
    if not hasattr(os, "pidfd_open"):
        yield sys.executable
        return
    command, address = folder / "python", f"{folder}/socket"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{CLIENT}" "{address}" "$@"\n')
    command.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        server = context().Process(target=_serve, args=(listener,))
        server.start()
    try:
        yield str(command)
    finally:
        server.kill()
        server.join()


def _serve(listener: socket.socket) -> None:
    """Forks a keeper for every command that asks, as long as the tests run."""
    torch.set_num_threads(1)  # a pool of threads does not outlive a fork
    gc.freeze()  # nor need a collection look at what was imported
    parent = os.getppid()
    listener.settimeout(ALIVE)
    while os.getppid() == parent:
        with contextlib.suppress(TimeoutError):
            client, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _keep(client)
            client.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)


def _keep(client: socket.socket) -> NoReturn:
    """Forks the process, kills it if the command is killed, and tells the command its exit code."""
    client.setblocking(True)
    _, streams, _, _ = socket.recv_fds(client, 1, 3)
    with client.makefile() as stream:
        asked = json.loads(stream.readline())
    process = os.fork()
    if process == 0:
        client.close()
        _become(streams, **asked)
    for number in streams:
        os.close(number)
    ended = os.pidfd_open(process)
    if ended not in select.select([client, ended], [], [])[0]:
        os.kill(process, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    with contextlib.suppress(OSError):
        client.sendall(b"%d" % code)
    os._exit(0)


def _become(
    streams: list[int], words: list[str], folder: str, environment: dict[str, str], cores: list[int]
) -> NoReturn:
    """Runs `python words…` and ends as python does."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode) for number, mode in enumerate("rww"))
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    os.sched_setaffinity(0, cores)
    sys.path.insert(0, folder)
    code = _run(words)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(code)


def _run(words: list[str]) -> int:
    """The exit code of `python words…`."""
    if words[0] == "-u":
        sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
        words = words[1:]
    option, what, *rest = words
    try:
        if option == "-m":
            sys.argv = [what, *rest]
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        elif option == "-c":
            sys.argv = ["-c", *rest]
            main = sys.modules["__main__"] = ModuleType("__main__")
            exec(compile(what, "<string>", "exec"), main.__dict__)
        else:
            raise SystemExit(f"a warm python takes -m or -c, not {option}")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
