"""The account of a run: all that a report says of it, as numbers and words that are ready for JSON."""

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mpamatch.data.prepared import (
    PARTS,
    Prepared,
    load_prepared,
    training_lists,
    weak_training_lists,
)
from mpamatch.engine.checkpoints import images_digest
from mpamatch.engine.config import SECTIONS, Config, load_saved
from mpamatch.engine.loop import last_checkpoint
from mpamatch.errors import InputError
from mpamatch.files import read_objects
from mpamatch.inference.checkpoint import best_checkpoint
from mpamatch.models.encoders import preset_of, weights_line
from mpamatch.models.licences import licence_of, licence_of_encoder
from mpamatch.models.text_encoders import text_licences
from mpamatch.tensors import read_about

HEALTH = ("prototypes/in_use", "prototypes/cosine_within", "prototypes/cosine_between")
KEY = {  # the settings that stand at the top, if the method has them
    "data": ("crop", "scale", "batch", "unlabelled_batch"),
    "model": ("encoder", "norm", "tuning", "prototypes"),
    "method": ("threshold", "prototypes", "temperature", "momentum", "text_encoder", "prompts", "image_encoder"),
    "engine": ("steps", "optimizer", "learning_rate", "precision", "seed"),
}


def account_of(run: Path, prepared: Prepared, config: Config) -> dict[str, Any]:
    """Tells what a run was trained on, with what and how it went; nothing of its scores.

    Folders of this machine are left out: of files only their names are told.

    Args:
        run: the run folder, with a trained model.
        prepared: the set that it is scored on.
        config: of the run.
    """
    lines = [line for line in read_objects(run / "metrics.jsonl") if line is not None]
    return {
        "name": run.resolve().name,
        "recipe": config.recipe,
        "method": config.method.name,
        "about": _first_sentence(config.trains.__doc__ or ""),
        "classes": list(prepared.class_names),
        "colours": [list(colour) for colour in prepared.colours],
        "data": _data(run, prepared, config),
        "weights": _weights(config),
        "settings": _settings(config),
        "threshold": _threshold(config),
        "training": _training(run, config, lines),
        "curves": _curves(config, lines),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Tells which versions made the report, and when."""
    return {
        "mpamatch": _installed("mpamatch"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # run from its folder
        return "not installed"


def _data(run: Path, prepared: Prepared, config: Config) -> dict[str, Any]:
    parts = {part: _counted(prepared, prepared.parts[part]) for part in PARTS}
    for part in PARTS:
        parts[part]["labelled"] = len(prepared.labelled(part))
    return {
        "name": prepared.name,
        "source": prepared.source,
        "licence": prepared.licence,
        "microns_per_pixel": prepared.microns_per_pixel,
        "note": prepared.note,
        "parts": parts,
        "split": config.data.split,
        "learns_from": "image-level labels" if config.trains.image_labels else "masks",
        "trained_on": _trained_on(run, prepared, config),
    }


def _trained_on(run: Path, prepared: Prepared, config: Config) -> dict[str, Any] | None:
    """Counts the training images of a run; None if no set at hand is the one that it was trained on."""
    wanted = read_about(last_checkpoint(run)).get("images") if last_checkpoint(run).is_file() else None
    lists = weak_training_lists if config.trains.image_labels else training_lists
    for root in dict.fromkeys([Path(load_saved(run / "config.yaml").data.root), prepared.root]):
        try:
            there = load_prepared(root)
            labelled, unlabelled = lists(there, config.data.split)
        except InputError:  # moved or changed since
            continue
        if wanted in (None, images_digest(labelled, unlabelled, there.class_names)):
            uses = unlabelled if config.trains.strong_views else ()
            return {"labelled": _counted(there, labelled), "unlabelled": _counted(there, uses)}
    return None


def _counted(prepared: Prepared, names: Sequence[str]) -> dict[str, int]:
    return {"images": len(names), "groups": len({prepared.groups[name] for name in names})}


def _weights(config: Config) -> list[dict[str, str | None]]:
    """Lists the weights that training started from or looked through, each with its terms."""
    model, method = config.model, config.method
    preset = preset_of(model.encoder)
    line = weights_line(model.encoder, _bare(model.encoder_weights)).removeprefix("encoder: ")
    terms = licence_of_encoder(preset, model.encoder_weights)
    found = [{"part": "encoder", "name": model.encoder, "from": line.partition(";")[0], "terms": terms}]
    for tower in config.trains.towers:
        if name := tower.encoder(method):
            weights = _bare(tower.weights_given(method))
            terms = licence_of(name) or text_licences().get(name)
            found.append(
                {
                    "part": f"{tower.name} encoder, frozen",
                    "name": name,
                    "from": weights or "as it was published",
                    "terms": terms,
                }
            )
    return found


def _bare(value: Any) -> Any:
    """Returns the name of a file in place of its path, and any other value as it is."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _settings(config: Config) -> dict[str, Any]:
    """Returns "key", the settings that matter most, and "all"."""
    every = {
        f"{section}.{name}": _bare(value)
        for section in SECTIONS
        for name, value in dataclasses.asdict(getattr(config, section)).items()
    }
    key = {f"{section}.{name}" for section, names in KEY.items() for name in names}
    return {"key": {name: value for name, value in every.items() if name in key}, "all": every}


def _threshold(config: Config) -> float | str | None:
    """The run's own threshold of pseudo-labels: a number, the name of the rule that sets it, or None without any."""
    return dataclasses.asdict(config.method).get("threshold")


def _training(run: Path, config: Config, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    steps = [line for line in lines if "seconds" in line]
    scored = [line for line in lines if "validation" in line]
    best = max(scored, key=lambda line: line["validation"]["mdice"] or 0.0, default=None)
    memory = [line["memory_mb"] for line in steps if "memory_mb" in line]
    written = datetime.fromtimestamp(best_checkpoint(run).stat().st_mtime, UTC)
    return {
        "steps": max((line["step"] for line in lines), default=None),
        "planned_steps": config.engine.steps,
        "best_step": best["step"] if best else None,
        "best_validation_mdice": best["validation"]["mdice"] if best else None,
        "seconds_per_step": float(np.median([line["seconds"] for line in steps])) if steps else None,
        "data_seconds_per_step": float(np.median([line["data_seconds"] for line in steps])) if steps else None,
        "memory_mb": max(memory) if memory else None,
        "written": written.date().isoformat(),
    }


def _curves(config: Config, lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[list[float]]]]:
    """Returns kind → name → [steps, values] of what was logged: losses, shares, prototypes, validation."""
    method = config.trains
    wanted = {"losses": ("loss", *method.losses), "shares": method.shares, "prototypes": HEALTH}
    found: dict[str, dict[str, list[list[float]]]] = {
        kind: {name: series for name in names if (series := _series(lines, name))[0]} for kind, names in wanted.items()
    }
    scored = [{"step": line["step"], **line["validation"]} for line in lines if "validation" in line]
    found["validation"] = {name: series for name in ("mdice", "miou") if (series := _series(scored, name))[0]}
    return found


def _series(lines: Sequence[Mapping[str, Any]], name: str) -> list[list[float]]:
    chosen = [line for line in lines if line.get(name) is not None]
    return [[line["step"] for line in chosen], [line[name] for line in chosen]]


def _first_sentence(docstring: str) -> str:
    first = " ".join(docstring.split("\n\n")[0].split())
    return first.partition(": ")[0].rstrip(".")
