"""The demo: synthetic tissue, a supervised and a semi-supervised training, a table and overlays."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from mpamatch import ranks
from mpamatch.commands.evaluate import percent
from mpamatch.console import say
from mpamatch.data.cache import ImageCache
from mpamatch.data.prepared import Item, Prepared, load_prepared, write_prepared
from mpamatch.data.sources.synthetic import raw_set
from mpamatch.data.splits import write_split
from mpamatch.engine.config import Config, flags_for, load_config
from mpamatch.engine.evaluation import evaluate_run
from mpamatch.engine.loop import choose_run, train
from mpamatch.inference.checkpoint import load_segmenter
from mpamatch.methods.towers import TEXT
from mpamatch.models.text_encoders import MINILM, text_encoders
from mpamatch.report.figures import draw_examples, draw_training

TRAIN, VALIDATION, TEST = 128, 24, 48
LABELLED_PATIENTS = "2"  # 8 images
SHOWN = 5


def demo(config: Config, folder: Path | None, flags: Sequence[str], console: Console) -> int:
    """Makes tissue, trains `supervised` and the method of `config` for the same steps, and shows both on unseen images.

    Args:
        config: of the recipe demo with the user's flags.
        folder: the folder to make; None: runs/demo-001, -002, …
        flags: the user's, for the supervised training too, as far as it has the fields.
        console: shows progress and results.

    Returns:
        The exit code, 0.
    """
    began = time.perf_counter()
    ranks.join(config.engine.device)
    run = ranks.from_first(lambda: choose_run(folder, config))
    say(console, f"making {TRAIN + VALIDATION + TEST} images of tissue in {run / 'tissue'}")
    prepared, split = ranks.from_first(lambda: prepare(run / "tissue", config.engine.seed))
    config = replace(config, data=replace(config.data, root=str(prepared.root), split=split))
    other = load_config("demo", None, [*flags_for("supervised", flags), "--method.name", "supervised"])
    supervised = replace(other, data=config.data)
    config, text = use_text(config)
    say(console, f"text prototypes: {text}")

    runs = {"supervised": run / "supervised", config.method.name: run / config.method.name}
    results = {}
    for name, one in zip(runs, (supervised, config), strict=False):
        result = train(one, runs[name], console=console)
        if ranks.rank() == 0:
            draw_training(result.run, result.losses, result.shares)
        results[name] = {
            **evaluate_run(result.run, None, "test", config.engine.device),
            "seconds": result.seconds_per_step,
        }
    if ranks.rank() > 0:
        return 0
    console.print(table(results, prepared))
    picture = draw_unseen(run / "figures" / "unseen.png", prepared, runs)
    say(console, f"overlays on unseen images: {picture}")
    best = runs[config.method.name]
    say(console, f"curves: {best / 'figures' / 'training.png'}   all of it took {time.perf_counter() - began:.0f} s")
    say(
        console,
        "next, on your own data: mpamatch prepare folder IMAGES_AND_MASKS data/mine, then "
        "mpamatch-train --recipe folder --data.root data/mine",
    )
    return 0


def prepare(root: Path, seed: int) -> tuple[Prepared, str]:
    """Makes the set and its split; returns the set and the split's name. A set made before a restart is kept."""
    prepared = load_prepared(root) if (root / "dataset.json").is_file() else make_tissue(root, seed)
    return prepared, write_split(prepared, LABELLED_PATIENTS, 0).stem


def make_tissue(root: Path, seed: int) -> Prepared:
    """Writes training, validation and test images of different synthetic patients in the prepared form."""
    raw = raw_set(images=TRAIN + VALIDATION + TEST, seed=seed)
    parts = ["train"] * TRAIN + ["validation"] * VALIDATION + ["test"] * TEST
    items: list[Item] = [replace(item, part=part) for item, part in zip(raw.items, parts, strict=True)]
    return write_prepared(root, replace(raw, items=items))


def use_text(config: Config) -> tuple[Config, str]:
    """Switches text prototypes on if the method can have them and MiniLM is installed; returns also a word on it."""
    if TEXT not in config.trains.towers:
        return config, "not used by this method"
    if chosen := TEXT.encoder(config.method):
        return config, chosen
    missing = text_encoders()[MINILM]
    if missing:
        return config, f"off ({missing} switches them on)"
    return replace(config, method=replace(config.method, text_encoder=MINILM)), "MiniLM, pathology descriptions"


def table(results: dict[str, dict[str, Any]], prepared: Prepared) -> Table:
    """Builds the table of both methods' test scores, in percent."""
    shown = Table(title=f"{results['supervised']['images']} unseen images, pooled")
    shown.add_column("method")
    for name in ("mDice", "mIoU", *(f"Dice {c}" for c in prepared.class_names[1:]), "object F1", "s/step"):
        shown.add_column(name, justify="right")
    for name, scores in results.items():
        classes = [percent(scores["dice"][c]) for c in prepared.class_names[1:]]
        f1 = percent(scores["objects"]["f1"])
        shown.add_row(name, percent(scores["mdice"]), percent(scores["miou"]), *classes, f1, f"{scores['seconds']:.2f}")
    return shown


def draw_unseen(path: Path, prepared: Prepared, runs: dict[str, Path]) -> Path:
    """Draws test images with the true label and both predictions over them. Returns `path`."""
    images = ImageCache(prepared, cache_mb=0)
    names = prepared.labelled("test")[:: len(prepared.labelled("test")) // SHOWN][:SHOWN]
    pairs = [images.labelled(name) for name in names]
    pictures = [image for image, _ in pairs]
    columns: dict[str, list[np.ndarray]] = {"truth": [label for _, label in pairs]}
    for name, run in runs.items():
        segmenter = load_segmenter(run)
        columns[name] = [segmenter.predict(image) for image in pictures]
    return draw_examples(path, pictures, columns, prepared.colours, prepared.class_names)
