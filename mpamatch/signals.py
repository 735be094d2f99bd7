"""SIGTERM, by which clusters and containers end a process: clean up, save, say so, and end with 143."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

TERMINATED = 143  # the exit code: 128 and the signal's number


class Terminated(BaseException):
    """Raised where the process is when SIGTERM comes; its text says what became of the work."""


@contextmanager
def terminable() -> Iterator[None]:
    """Raises `Terminated` at SIGTERM meanwhile, so that files that are half-written are removed."""

    def stop(*_: Any) -> None:
        raise Terminated("terminated")

    with _handled(stop):
        yield


class Postponed:
    """Notes SIGTERM until the work is at a point where it can be saved; a second one raises `Terminated` at once.

    Attributes:
        asked: whether SIGTERM has come.
    """

    def __init__(self) -> None:
        self.asked = False

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Handles the signal."""
        if self.asked:
            raise Terminated("terminated")
        self.asked = True


@contextmanager
def postponed() -> Iterator[Postponed]:
    """Postpones SIGTERM meanwhile."""
    note = Postponed()
    with _handled(note.stop):
        yield note


@contextmanager
def _handled(handler: Any) -> Iterator[None]:
    """Sets the handler of SIGTERM meanwhile; in a thread nothing is set, as Python allows none there."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def heed_parent_alone() -> None:
    """Makes this child process end at a SIGTERM of its parent and pass over those of others.

    Clusters send the signal to every process of a job; the parent of a worker then wants one batch more, and ends it
    itself. A thread waits for the signal, as only so its sender is known.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # of threads to come too

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
