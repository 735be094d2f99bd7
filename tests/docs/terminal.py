"""Bash whose programs come back into this process: mpamatch, python and others cost no import of torch.

A block of shell code is run by bash as it stands: quotes, continued lines, comments, pipes, loops and exit codes are
bash's. On its PATH each program of `programs` is a small client that hands its words, folder and environment to the
process of the tests, where a function does the work, and prints and ends as that says.
"""

import contextlib
import io
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from unittest import mock

Program = Callable[[list[str]], int]  # the words after its name → exit code
PATIENCE = 240.0  # seconds for a block

CLIENT = """\
#!{python} -SE
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    words = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
    asked = {{"words": words, "folder": os.getcwd(), "environment": dict(os.environ)}}
    server.sendall(json.dumps(asked).encode() + b"\\n")
    answer = json.loads(server.makefile().readline())
sys.stdout.buffer.write(answer["out"].encode())
sys.stdout.flush()
sys.stderr.buffer.write(answer["err"].encode())
sys.exit(answer["code"])
"""


class Terminal:
    """Runs blocks of shell code in a folder. A context manager.

    Args:
        folder: where they run; also what ~ means.
        programs: by the name under which blocks call them.
        environment: variables beside those of the tests.
    """

    def __init__(self, folder: Path, programs: Mapping[str, Program], environment: Mapping[str, str] = {}):
        self.folder, self.programs = folder, programs
        self.own = Path(tempfile.mkdtemp(prefix="snippets-"))  # short: the path of a socket has 107 bytes at most
        address = str(self.own / "socket")
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(address)
        self.listener.listen()
        client = self.own / "client"
        client.write_text(CLIENT.format(python=sys.executable, address=address), encoding="utf-8")
        client.chmod(0o755)
        (self.own / "bin").mkdir()
        for name in programs:
            (self.own / "bin" / name).symlink_to(client)
        self.environment = {**os.environ, **environment, "HOME": str(folder), "LC_ALL": "C.UTF-8"}
        self.environment["PATH"] = f"{self.own / 'bin'}:/usr/local/bin:/usr/bin:/bin"

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()
        shutil.rmtree(self.own)

    def run(self, code: str) -> tuple[int, str]:
        """Runs a block; unless it is a whole script, it ends at the first command that fails.

        Returns its exit code and all that it printed.
        """
        strict = [] if code.startswith("#!") else ["-e"]
        with tempfile.TemporaryFile() as said:
            bash = subprocess.Popen(
                ["bash", *strict, "-o", "pipefail", "-c", code],
                cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said,
            )  # fmt: skip
            try:
                self._serve(bash)
            finally:
                bash.kill()
                bash.wait()
            said.seek(0)
            return bash.returncode, said.read().decode()

    def _serve(self, bash: "subprocess.Popen[bytes]") -> None:
        """Does what the clients ask for until bash has ended."""
        ended = os.pidfd_open(bash.pid)
        try:
            while True:
                ready = select.select([self.listener, ended], [], [], PATIENCE)[0]
                if self.listener in ready:
                    client, _ = self.listener.accept()
                    with client:
                        asked = json.loads(client.makefile().readline())
                        client.sendall(json.dumps(self._answer(**asked)).encode() + b"\n")
                elif ready:
                    return
                else:
                    raise TimeoutError(f"bash and no program in {PATIENCE:.0f} s")
        finally:
            os.close(ended)
            bash.poll()

    def _answer(self, words: list[str], folder: str, environment: dict[str, str]) -> dict[str, object]:
        """Calls the program in the client's folder and environment."""
        name, *rest = words
        kept = {name: os.environ[name] for name in ("HOME", "PATH") if name in os.environ}  # caches of libraries
        with recorded() as (out, err), contextlib.chdir(folder), mock.patch.dict(os.environ, environment | kept):
            try:
                code = self.programs[name](rest)
            except SystemExit as end:
                if isinstance(end.code, str):
                    print(end.code, file=sys.stderr)
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
            except Exception:
                traceback.print_exc()
                code = 1
        return {"code": code, "out": text(out), "err": text(err)}


@contextlib.contextmanager
def recorded() -> Iterator[tuple[io.TextIOWrapper, io.TextIOWrapper]]:
    """Records what is printed meanwhile, in streams that can do what a process's own can."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield out, err


def text(stream: io.TextIOWrapper) -> str:
    """What was recorded."""
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue().decode("utf-8")
