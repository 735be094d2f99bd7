"""The command of tests.tools.warm: hands words, environment and streams to the server, ends as the process does."""

import json
import os
import socket
import sys
from pathlib import Path


def main() -> None:
    address, *words = sys.argv[1:]
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        socket.send_fds(server, [b"."], [0, 1, 2])
        asked = {
            "words": words,
            "folder": str(Path.cwd()),
            "environment": dict(os.environ),
            "cores": list(os.sched_getaffinity(0)),
        }
        server.sendall(json.dumps(asked).encode() + b"\n")
        code = int(server.makefile().read())
    if code < 0:
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main()
