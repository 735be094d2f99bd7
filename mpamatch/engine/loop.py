"""The one training loop."""

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from mpamatch import ranks
from mpamatch.batch import Batch, pieces, to_device
from mpamatch.claims import LOCK, alone, claim, claim_numbered
from mpamatch.console import new_console, say
from mpamatch.data.cache import ImageCache
from mpamatch.data.prepared import Prepared
from mpamatch.device import peak_memory
from mpamatch.engine.build import (
    build_feed,
    build_segmenter,
    build_training,
    encoder_line,
    frozen_identity,
    licence_notes,
    moved,
    open_data,
    placed,
    settled,
)
from mpamatch.engine.checkpoints import Progress, encoder_built_from, images_digest, load_last, save_last
from mpamatch.engine.config import Config, EngineConfig, load_saved, save_config
from mpamatch.engine.evaluation import evaluate
from mpamatch.engine.log import RunLog
from mpamatch.errors import InputError
from mpamatch.files import clear_unfinished
from mpamatch.inference.checkpoint import best_checkpoint, save_segmenter
from mpamatch.malloc import keep_freed_memory
from mpamatch.methods import Method
from mpamatch.models.build import RecordError
from mpamatch.models.encoders import Preset
from mpamatch.models.network import Network
from mpamatch.ops import dispatch
from mpamatch.signals import Terminated, postponed


@dataclass
class TrainingResult:
    """What a finished training returns.

    Attributes:
        run: its folder.
        best_mdice: highest validation mDice, 0 to 1; NaN without validation labels.
        best_step: the step that it was reached at, whose weights are the best checkpoint.
        seconds_per_step: mean wall-clock time, validation and checkpoints included.
        skipped: image → why it could not be used (data.on_error: skip).
        losses: the parts of the loss that the method logs.
        shares: the fractions, 0 to 1, that the method logs.
    """

    run: Path
    best_mdice: float
    best_step: int
    seconds_per_step: float
    skipped: dict[str, str]
    losses: tuple[str, ...]
    shares: tuple[str, ...]


def train(config: Config, run: Path | None = None, *, console: Console | None = None) -> TrainingResult:
    """Trains from the start in a new folder.

    After a restart of the ranks by torchrun the same call resumes from the last checkpoint of the folder that it chose
    first.

    Args:
        config: of `load_config`.
        run: the folder to make; None: runs/RECIPE-001, -002, …
        console: shows progress; None: standard output.

    Raises:
        InputError: the configuration does not fit the data or the machine, `run` exists already (both before the folder
            is made), or a value is not finite while training.
    """
    prepared = open_data(config)
    ranks.join(config.engine.device, config.engine.precision)
    config = ranks.from_first(lambda: placed(settled(config, prepared.name), prepared))
    folder = ranks.from_first(lambda: choose_run(run, config))
    try:
        trainer = Trainer(config, prepared, console or new_console())
    except BaseException:
        if ranks.rank() == 0:
            with suppress(OSError):  # not empty: of an attempt before a restart
                folder.rmdir()
        raise
    return trainer.fit(folder)


def resume(run: Path, *, data: Path | None = None, console: Console | None = None) -> TrainingResult:
    """Resumes a run from its last checkpoint, to the same numbers as if it had never stopped.

    Args:
        run: the run folder; if it has no checkpoint yet, training starts from the beginning.
        data: where the prepared set lies now; None: where it lay. The run's config.yaml says so from then on.
        console: shows progress; None: standard output.

    Raises:
        InputError: `run` is no run folder, its data are not there, or its checkpoint does not fit the data or the
            weights that are here.
    """
    if not run.is_dir():
        raise InputError(f"{run}: no such run folder.")
    config = moved(run, load_saved(run / "config.yaml"), data)
    last = last_checkpoint(run)  # none if it stopped before its first: from the start
    brought = last.is_file() and config.model.tuning == "full"
    built_from = encoder_built_from(last) if brought else None
    try:
        trainer = Trainer(config, open_data(config), console or new_console(), built_from)
    except RecordError as error:
        raise InputError(f"{last}: {error}") from error
    return trainer.fit(run)


def last_checkpoint(run: Path) -> Path:
    """Returns the path of the checkpoint that a run resumes from."""
    return run / "checkpoints" / "last.safetensors"


def new_run(run: Path | None, recipe: str) -> Path:
    """Makes `run`, or the first free runs/RECIPE-NNN if it is None. Raises InputError if `run` exists."""
    if run is None:
        return claim_numbered(Path("runs"), recipe)
    return claim(run, f"give another folder, or go on with it by --resume {run}")


def choose_run(run: Path | None, config: Config) -> Path:
    """Makes the folder of a new run; after a restart by torchrun it is the one made before."""
    return Path(ranks.remembered(lambda: str(new_run(run, config.recipe)), run, config))


class Trainer:
    """Builds what a run needs and trains it.

    Raises InputError if configuration, data and machine do not fit each other.
    """

    def __init__(self, config: Config, prepared: Prepared, console: Console, built_from: Preset | None = None):
        self.config, self.prepared, self.console = config, prepared, console
        engine = config.engine
        self.fabric = ranks.join(engine.device, engine.precision)
        self.method: Method = build_training(config, prepared, built_from)
        rank, size = self.fabric.global_rank, self.fabric.world_size
        _check_passes(config, size)
        self.feed = build_feed(config, prepared, self.method, rank=rank, ranks=size, device=self.fabric.device)
        self.frozen = frozen_identity(self.method)
        self.validation = ImageCache(prepared, config.data.cache_mb)
        self.main = self.fabric.is_global_zero

        self.method.to(self.fabric.device)
        ranks.synchronise_norms(self.method, self.fabric.device)
        self.backends = dispatch.prepare(str(self.fabric.device))  # checks its kernels before the first step
        if engine.keep_memory and self.fabric.device.type == "cpu":
            keep_freed_memory()
        _lay_out(self.method, engine, self.fabric.device)
        self.optimizer = _optimizer(self.method, engine)
        module: Any = _compiled(self.method, engine, size) if engine.compile != "none" else self.method
        self.step_module, self.wrapped_optimizer = self.fabric.setup(module, self.optimizer, _reapply_compile=False)
        self.segmenter = build_segmenter(config, prepared, self.method.deployed)

    def fit(self, run: Path) -> TrainingResult:
        """Trains in the folder `run`, from its last checkpoint if it has one."""
        held = f"{run}: another process is training this run; wait for it or end it."
        with ExitStack() as stack:
            ranks.from_first(lambda: stack.enter_context(alone(run / LOCK, held)))  # on rank 0, for all of them
            return self._fit(run)

    def _fit(self, run: Path) -> TrainingResult:
        last = last_checkpoint(run)
        progress = Progress()
        if ranks.from_first(last.is_file):
            progress = load_last(last, self.method, self.optimizer, self.frozen, self._images())
        elif self.main:
            (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        if self.main and not ((run / "config.yaml").is_file() and load_saved(run / "config.yaml") == self.config):
            save_config(self.config, run / "config.yaml")
        if self.main:
            for folder in (run, last.parent):
                clear_unfinished(folder)
            self._announce(run, progress)
        engine, began, start = self.config.engine, time.perf_counter(), progress.step
        log = self._log(run, start) if self.main else None
        if log:
            with log:
                self._steps(run, progress, log)
        else:
            self._steps(run, progress, None)
        seconds = (time.perf_counter() - began) / max(engine.steps - start, 1)
        logged = (self.method.losses, self.method.shares)
        return TrainingResult(run, progress.best, progress.best_step, seconds, self._skipped(), *logged)

    def _log(self, run: Path, start: int) -> RunLog:
        method = self.method
        losses = method.losses if method.progress is None else method.progress
        return RunLog(run, self.config.engine.steps, start, self.console, losses=losses, shares=method.shares)

    def _images(self) -> str:
        return images_digest(self.feed.labelled, self.feed.unlabelled, self.prepared.class_names)

    def _skipped(self) -> dict[str, str]:
        """Collects the images that the feeds of all ranks skipped, each with the reason."""
        return {name: why for of_rank in ranks.gather(self.feed.skipped) for name, why in of_rank.items()}

    def _announce(self, run: Path, progress: Progress) -> None:
        console, config = self.console, self.config
        say(console, encoder_line(config))
        say(
            console,
            f"{config.method.name} with {config.model.encoder} on {self.prepared.name}: "
            f"{len(self.feed.labelled)} labelled and {len(self.feed.unlabelled)} unlabelled images, "
            f"{config.engine.steps} steps on {self.fabric.device}, in {run}",
        )
        for note in licence_notes(config, self.method):
            say(console, note)
        by_backend = {name: [op for op, used in self.backends.items() if used == name] for name in dispatch.NAMES}
        say(console, "operations: " + "; ".join(f"{name}: {', '.join(ops)}" for name, ops in by_backend.items() if ops))
        if progress.step:
            say(console, f"resumed at step {progress.step}")
        shares = self.fabric.world_size * config.engine.accumulate
        if self.method.mixes and config.data.unlabelled_batch == shares:
            say(console, "one unlabelled image per pass has no neighbour to mix with: CutMix is off")

    def _steps(self, run: Path, progress: Progress, log: RunLog | None) -> None:
        engine, device = self.config.engine, self.fabric.device
        means = Means()
        self.method.train()
        with postponed() as termination:
            feed = self.feed.batches(progress.step, engine.steps)
            for step, batch in enumerate(means.waiting(feed), start=progress.step):
                rate = engine.learning_rate * (1 - step / engine.steps) ** engine.power
                for group in self.optimizer.param_groups:
                    group["lr"] = rate * group["lr_scale"]
                try:
                    self.step(to_device(batch, device), step, means)
                    self._housekeeping(run, progress, log, means, step + 1, rate)
                except RuntimeError as error:
                    if termination.asked and ranks.lost_another(error):  # rank 0 has saved and ended
                        raise Terminated("terminated") from error
                    raise
                if termination.asked and self.main:
                    self._terminate(run, progress, step + 1)

    def _terminate(self, run: Path, progress: Progress, done: int) -> None:
        """Saves after `done` steps, unless they just were, and raises `Terminated`. On rank 0 alone."""
        if progress.step != done:
            self._save(run, progress, done)
        raise Terminated(f"terminated; {run} is saved at step {done}: go on with mpamatch train --resume {run}")

    def _save(self, run: Path, progress: Progress, done: int) -> None:
        """Writes the checkpoint after `done` steps. Raises InputError if a weight is not finite."""
        self._refuse_non_finite(run, {"weights": float(weights_norm(self.method))}, done)
        progress.step = done
        save_last(last_checkpoint(run), self.method, self.optimizer, progress, self.frozen, self._images())

    def step(self, batch: Batch, step: int, means: "Means") -> None:
        """Takes one step of the optimizer.

        Args:
            batch: on the device; cut into engine.accumulate passes.
            step: steps done before.
            means: takes the parts of the loss.
        """
        clock = torch.full((), step, dtype=torch.int64, device=self.fabric.device)
        passes = self.config.engine.accumulate
        if self.config.engine.compile == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        for number, piece in enumerate(pieces(batch, passes) if passes > 1 else [batch], start=1):
            with self.fabric.no_backward_sync(self.step_module, enabled=number < passes):
                with _enough_for_norms():
                    parts = self.step_module(piece, clock)
                self.fabric.backward(parts["loss"] * (self.fabric.world_size / passes))
            means.add(parts, passes)
        self.wrapped_optimizer.step()
        self.wrapped_optimizer.zero_grad()
        self.method.after_step(clock)

    def _housekeeping(
        self, run: Path, progress: Progress, log: RunLog | None, means: "Means", done: int, rate: float
    ) -> None:
        """Logs, validates and saves what is due after `done` steps. Raises InputError if a value is not finite."""
        engine = self.config.engine
        last = done == engine.steps
        validates = last or done % engine.validate_every == 0
        saves = last or done % engine.save_every == 0
        if not (saves or validates or done % engine.log_every == 0):
            return
        values = means.take() | {name: float(value) for name, value in self.method.diagnostics().items()}
        self._refuse_non_finite(run, values, done)
        if log:
            log.write(done, {**values, "learning_rate": rate, "memory_mb": peak_memory(self.fabric.device)})
        if validates:
            self._validate(run, progress, log, done)
        if saves and self.main:
            self._save(run, progress, done)
        if validates or saves:
            self.fabric.barrier()
            means.restart_clock()

    def _validate(self, run: Path, progress: Progress, log: RunLog | None, done: int) -> None:
        has_labels = bool(self.prepared.labelled("validation"))
        scores = evaluate(self.segmenter, self.validation, "validation", objects=False) if has_labels else None
        if scores and scores["mdice"] is None:  # every pixel is ignored
            scores = None
        # without validation labels the newest weights count as the best
        best = scores is None or scores["mdice"] > progress.best
        if best:
            progress.best, progress.best_step = (scores["mdice"] if scores else math.nan), done
            if self.main:
                save_segmenter(best_checkpoint(run), self.segmenter)
        if log and scores:
            log.write_validation(done, scores, best)

    def _refuse_non_finite(self, run: Path, values: dict[str, float], done: int) -> None:
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            known = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            raise InputError(
                f"{' and '.join(bad)} not finite by step {done} ({known}); {run / 'checkpoints'} holds the weights "
                "from before: try a lower --engine.learning_rate or --engine.precision 32."
            )


class Means:
    """Running means of the parts of the loss, kept on the device until they are taken, and the time of a step."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count, self.passes = 0, 1
        self.waited = 0.0
        self.restart_clock()

    def waiting(self, feed: Iterable[Batch]) -> Iterator[Batch]:
        """Yields the batches of `feed` and adds the time that each is waited for to `data_seconds`."""
        source = iter(feed)
        while True:
            asked = time.perf_counter()
            batch = next(source, None)
            self.waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def add(self, parts: dict[str, Tensor], passes: int) -> None:
        """Adds the parts of one of the `passes` of a step."""
        for name, value in parts.items():
            value = value.detach().float()
            # a copy: a replayed CUDA graph writes the next step's value into the same place
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
        self.count += 1
        self.passes = passes

    def take(self) -> dict[str, float]:
        """Returns the means since the last call and starts anew; it waits for the device.

        Two are times, in seconds a step: `seconds` the wall-clock time, and `data_seconds` the part spent waiting for
        batches (on a GPU, which the host runs ahead of, more than the GPU itself waits).
        """
        values = {name: float(total) / self.count for name, total in self.sums.items()}
        steps = self.count / self.passes
        values["seconds"] = (time.perf_counter() - self.began) / steps
        values["data_seconds"] = self.waited / steps
        self.sums, self.count, self.waited = {}, 0, 0.0
        self.restart_clock()
        return values

    def restart_clock(self) -> None:
        """Starts the clock of `seconds` anew, so that validation and checkpoints do not count."""
        self.began = time.perf_counter()


def weights_norm(method: Method) -> Tensor:
    """Computes the norm of all trained weights, (): not finite as soon as one of them is not."""
    norms = [parameter.detach().float().norm() for parameter in method.parameters() if parameter.requires_grad]
    return torch.stack(norms).norm()


def _check_passes(config: Config, ranks: int) -> None:
    """Raises InputError if a batch does not divide into the passes of every rank."""
    passes = config.engine.accumulate
    for name in ("batch", "unlabelled_batch"):
        size = getattr(config.data, name)
        if passes > 1 and size % (ranks * passes):
            raise InputError(
                f"data.{name}: {size} images do not divide into {passes} passes (engine.accumulate) on {ranks} ranks; "
                f"choose a multiple of {ranks * passes}."
            )


@contextmanager
def _enough_for_norms() -> Iterator[None]:
    """Raises InputError in place of torch's ValueError for a batch norm that has one value of each channel."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise InputError(
            "model.norm: batch norm has one value of each channel at the network's smallest scale, too few for a "
            "variance: take a larger data.batch or data.crop, or --model.norm group."
        ) from error


def _lay_out(method: Method, engine: EngineConfig, device: torch.device) -> None:
    """Sets the memory layout of the networks that engine.channels_last asks for."""
    if engine.channels_last == "true" or (engine.channels_last == "auto" and device.type == "cuda"):
        method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    elif engine.channels_last == "auto":
        # On a CPU convolutions of timm's backbones want NHWC, group norms NCHW: 20 images of 112² through
        # tf_efficientnet_lite0 and its decoder, forward and backward, on one core (AVX2), NCHW, NHWC, mixed:
        # 0.90 s, 1.01 s, 0.78 s with group norms in the decoder, 1.02 s, 0.73 s with batch norms.
        for network in (module for module in method.modules() if isinstance(module, Network)):
            if network.encoder.preset.family == "features":
                network.use_channels_last(encoder_alone=network.config.norm == "group")


def _compiled(method: Method, engine: EngineConfig, ranks: int) -> Any:
    """Compiles the step into one graph. Raises InputError for settings that do not allow it."""
    config = method.model.config
    if engine.compile == "reduce-overhead" and ranks > 1:
        raise InputError("engine.compile: reduce-overhead replays the step on one GPU; take default for several ranks.")
    if config.checkpointing and config.norm == "batch":
        raise InputError("engine.compile: with model.checkpointing it needs --model.norm group.")
    return torch.compile(method, fullgraph=True, mode=engine.compile)


def _optimizer(method: Method, engine: EngineConfig) -> torch.optim.Optimizer:
    groups = [
        {
            "params": group["params"],
            "lr": engine.learning_rate * group["lr_scale"],
            "lr_scale": group["lr_scale"],
            "weight_decay": engine.weight_decay if group["decay"] else 0.0,
        }
        for group in method.parameter_groups()
    ]
    if engine.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=engine.learning_rate, momentum=0.9, fused=engine.fused)
    return torch.optim.AdamW(groups, lr=engine.learning_rate, fused=engine.fused)
