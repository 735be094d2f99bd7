"""The log of a run while it trains: metrics.jsonl, TensorBoard, a progress bar."""

import functools
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch.utils.tensorboard import SummaryWriter

from mpamatch.console import new_bar, say, text_column
from mpamatch.errors import WriteError
from mpamatch.files import read_objects, replacing
from mpamatch.names import in_utf8


class RunLog:
    """Writes values to metrics.jsonl and TensorBoard and shows them on a progress bar. A context manager, of rank 0."""

    def __init__(
        self,
        run: Path,
        steps: int,
        start: int,
        console: Console,
        *,
        losses: Sequence[str] = (),  # parts of the loss that the progress line shows
        shares: Sequence[str] = (),  # fractions, 0 to 1, that it shows
    ):
        self.losses, self.shares = ("loss", *losses), shares
        self.path, self.steps, self.console = run / "metrics.jsonl", steps, console
        self._forget_after(start)
        _quiet_tensorboard()
        self._held = ExitStack()  # TensorBoard opens its file by name, again and again
        with self._telling():
            self.file = self.path.open("a", encoding="utf-8")
            place = self._held.enter_context(in_utf8(run))
            # at the start too: a run that was killed before its first checkpoint has left steps that come again
            self.board = SummaryWriter(str(place), purge_step=start + 1)
        self.start, self.began = start, time.perf_counter()
        self.validation = ""
        self.bar = new_bar(
            text_column(),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            text_column("{task.fields[parts]}"),
            TimeElapsedColumn(),
            text_column("ETA"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            shown=console.is_terminal,
        )
        self.task = self.bar.add_task("training", total=steps, completed=start, parts="")

    def _forget_after(self, start: int) -> None:
        """Removes the lines after step `start`, which a resumed run writes anew."""
        if self.path.is_file():
            lines = [line for line in read_objects(self.path) if _step_of(line) <= start]
            with replacing(self.path) as temporary:
                temporary.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")

    def __enter__(self) -> "RunLog":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.bar.stop()
        try:
            with self._telling():
                self.file.close()
                self.board.close()
                self._held.close()
        except WriteError:
            if error is None:  # else that says why the training ends
                raise

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes a line of training.

        Args:
            step: steps done.
            values: means since the last line, as `Means.take` gives them.
        """
        with self._telling():
            self._line({"step": step, **values})
            for name, value in values.items():
                self.board.add_scalar(name if "/" in name else f"train/{name}", value, step)
        shown = [f"{name} {values[name]:.3f}" for name in self.losses if name in values]
        shown += [f"{name} {values[name]:.0%}" for name in self.shares if name in values]
        if self.validation:
            shown.append(self.validation)
        self.bar.update(self.task, completed=step, parts="  ".join(shown))

    def write_validation(self, step: int, scores: dict[str, Any], best: bool) -> None:
        """Writes a line of validation scores; `best`: whether they are the best so far."""
        with self._telling():
            self._line({"step": step, "validation": scores})
            for name in ("mdice", "miou"):
                self.board.add_scalar(f"validation/{name}", scores[name], step)
        self.validation = f"validation mDice {100 * scores['mdice']:.1f}"
        if not self.console.is_terminal:
            speed = (time.perf_counter() - self.began) / max(step - self.start, 1)
            mark = " (best so far)" if best else ""
            left = (self.steps - step) * speed
            say(
                self.console,
                f"step {step}/{self.steps}: {self.validation}{mark}, {speed:.2f} s a step, {left:.0f} s left",
            )

    def _line(self, content: dict[str, Any]) -> None:
        self.file.write(json.dumps(content) + "\n")
        self.file.flush()

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Turns what a full disk raises into a sentence that names the run."""
        try:
            yield
        except OSError as error:
            run = self.path.parent
            raise WriteError(
                f"{run}: its metrics.jsonl and TensorBoard's events cannot be written ({error.strerror or error}): "
                f"make room, then go on by --resume {run}."
            ) from error


@functools.cache
def _quiet_tensorboard() -> None:
    """Passes over a full disk in a thread of TensorBoard from now on, as its next call raises the same error again."""
    others = threading.excepthook

    def hook(failed: threading.ExceptHookArgs) -> None:
        if not (isinstance(failed.exc_value, OSError) and type(failed.thread).__module__.startswith("tensorboard.")):
            others(failed)

    threading.excepthook = hook


def _step_of(line: dict[str, Any] | None) -> int:
    """Returns the step of a line; a line that a kill cut short counts as after all others."""
    step = None if line is None else line.get("step")
    return step if isinstance(step, int) else 1 << 62
