"""`mpamatch train`: trains a model, resumes a run or, without arguments, runs the demo."""

import argparse
import math
import warnings
from pathlib import Path

from rich.console import Console

from mpamatch import ranks
from mpamatch.console import new_console, say
from mpamatch.engine.config import field_help, load_config, recipe_for
from mpamatch.engine.loop import TrainingResult, resume, train
from mpamatch.errors import InputError

SHOWN = 5  # names of skipped images


def run(arguments: argparse.Namespace) -> int:
    """Trains, resumes or runs the demo as `arguments` say, or lists all fields; returns 0."""
    if arguments.fields:
        for name, default, meaning in field_help():
            print(f"--{name}: {meaning} (default: {default})")
        return 0
    console = new_console(quiet=ranks.rank() > 0)
    quiet_libraries()
    if arguments.resume:
        if arguments.flags or arguments.recipe or arguments.config or arguments.run:
            raise InputError("--resume: goes on with the run's own configuration and takes no other option but --data.")
        data = Path(arguments.data) if arguments.data else None
        report(resume(Path(arguments.resume), data=data, console=console), console)
        return 0
    if arguments.data:
        raise InputError("--data: says where the data of --resume lie now; a new run takes --data.root.")
    recipe = arguments.recipe or (None if arguments.config else recipe_for(arguments.flags))
    config = load_config(recipe, Path(arguments.config) if arguments.config else None, arguments.flags)
    folder = Path(arguments.run) if arguments.run else None
    if config.recipe == "demo" and not config.data.root:
        from mpamatch.commands.demo import demo

        return demo(config, folder, arguments.flags, console)
    if recipe != arguments.recipe:
        say(console, f"recipe: {recipe}, by the name of the data set; --recipe takes another, --config your own")
    report(train(config, folder, console=console), console)
    return 0


def report(result: TrainingResult, console: Console) -> None:
    """Draws the figures of a finished training and prints the best score and what to do next; on rank 0 alone."""
    from mpamatch.report.figures import draw_training

    if ranks.rank() > 0:
        return
    found = (
        "no validation labels, so the newest weights count as the best"
        if math.isnan(result.best_mdice)
        else f"best validation mDice {100 * result.best_mdice:.2f} at step {result.best_step}"
    )
    say(console, f"{found}; {result.seconds_per_step:.2f} s a step")
    if result.skipped:
        names = sorted(result.skipped)
        shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
        say(console, f"images skipped because they could not be used: {len(names)} ({shown})")
        say(console, f"the first: {result.skipped[names[0]]}")
    for figure in draw_training(result.run, result.losses, result.shares):
        say(console, f"wrote {figure}")
    say(
        console,
        f"next: mpamatch report {result.run}   or: mpamatch predict {result.run} IMAGES --out out",
    )


def quiet_libraries() -> None:
    """Silences warnings of libraries that a user can do nothing about."""
    import logging

    for name in ("lightning_fabric", "lightning.fabric", "torch.utils.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", category=FutureWarning)
