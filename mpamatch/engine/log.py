"""The log of a run while it trains: metrics.jsonl, TensorBoard, a progress bar."""

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
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
from mpamatch.files import replacing
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
        self.file = self.path.open("a", encoding="utf-8")
        self._held = ExitStack()  # TensorBoard opens its file by name, again and again
        place = self._held.enter_context(in_utf8(run))
        self.board = SummaryWriter(str(place), purge_step=start + 1 if start else None)
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
            lines = [line for line in self.path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= start]
            with replacing(self.path) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in lines if line), encoding="utf-8")

    def __enter__(self) -> "RunLog":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.bar.stop()
        self.file.close()
        self.board.close()
        self._held.close()

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes a line of training.

        Args:
            step: steps done.
            values: means since the last line, as `Means.take` gives them.
        """
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


def _step_of(line: str) -> int:
    """Reads the step of a line; a line that a kill cut short counts as after all others."""
    try:
        return int(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return 1 << 62
