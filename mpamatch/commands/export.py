"""`mpamatch export RUN --out FILE`: the trained network as an ONNX file or a bioimage.io package."""

import argparse
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mpamatch import ranks
from mpamatch.console import new_console, say
from mpamatch.data.prepared import Prepared, load_prepared
from mpamatch.data.synthetic import synthesize
from mpamatch.engine.config import Config, load_saved
from mpamatch.errors import InputError, unknown
from mpamatch.images import read_image
from mpamatch.inference.checkpoint import load_segmenter
from mpamatch.inference.export.bioimage import Facts, export_bioimage
from mpamatch.inference.export.graph import frame_for
from mpamatch.inference.export.onnx_file import MOST_DIFFERENCE, Checked, check_libraries, export_onnx
from mpamatch.inference.files import list_images
from mpamatch.inference.segmenter import Segmenter
from mpamatch.models.licences import short, terms_of_encoder

SUFFIXES = {"onnx": ".onnx", "bioimageio": ".zip"}
WINDOWS = 8  # are compared with torch


def run(arguments: argparse.Namespace) -> int:
    """Exports the network of the run `arguments.run` to `arguments.out`; returns 0.

    Raises InputError if the run, the place or an image cannot be used, a library is missing, or the result differs from
    torch.
    """
    if ranks.started() > 1:
        raise InputError("export: works in one process; leave out torchrun.")
    run, out = Path(arguments.run), Path(arguments.out)
    kind = _kind(arguments.format, out)
    check_libraries()
    config = load_saved(run / "config.yaml")
    segmenter, console = load_segmenter(run, "cpu"), new_console()
    prepared = _data(config)
    windows, where = windows_of(segmenter, prepared, arguments.images)
    facts = facts_of(run, config, segmenter, prepared)
    if facts.terms:
        say(console, f"terms of the weights: {facts.terms}")
    if kind == "onnx":
        checked = export_onnx(segmenter, out, windows, facts.record())
    else:
        checked = export_bioimage(segmenter, out, windows, facts)
    if segmenter.tells_objects_apart:
        say(console, "left out: the border of objects; the file gives the probabilities of classes.")
    for line in told(checked, where):
        say(console, line)
    return 0


def _kind(wish: str | None, out: Path) -> str:
    """Finds the format, by the name of the file if none is named. Raises InputError if they do not fit, or it is there.

    An existing file is not replaced: a model may be in use by its name.
    """
    if wish is not None and wish not in SUFFIXES:
        raise unknown("format", wish, SUFFIXES)
    fitting = [name for name, suffix in SUFFIXES.items() if out.suffix == suffix and wish in (None, name)]
    if not fitting:
        ends = SUFFIXES[wish] if wish else " or ".join(SUFFIXES.values())
        raise InputError(f"--out {out}: must end in {ends}.")
    if out.exists():
        raise InputError(f"--out {out}: is there already: choose another name, or remove it first.")
    return fitting[0]


def _data(config: Config) -> Prepared | None:
    """Loads the set that the run was trained on; None if it is not there any more."""
    root = Path(config.data.root or "")
    return load_prepared(root) if config.data.root and (root / "dataset.json").is_file() else None


def windows_of(
    segmenter: Segmenter, prepared: Prepared | None, inputs: Sequence[str] | None, most: int = WINDOWS
) -> tuple[list[np.ndarray], str]:
    """Cuts windows, (window, window, 3) uint8 each, to compare on, one from each of up to `most` images.

    Returns them and what they are of: the images named, else the run's own, else made-up tissue.
    """
    side = frame_for(segmenter).window
    if inputs:
        files, where = list_images([Path(given) for given in inputs]), "the images given"
    elif prepared is not None:
        part = next(part for part in ("test", "validation", "train") if prepared.parts[part])
        files = [prepared.image_path(name) for name in prepared.parts[part]]
        where = f"the {part} images of {prepared.root}"
    else:
        made = [synthesize(4 * index, 0, max(16, side))[0] for index in range(most)]
        return [_window(image, side) for image in made], "made-up tissue, as the run's data are not there"
    chosen = [files[at] for at in np.unique(np.linspace(0, len(files) - 1, most).round().astype(int))]
    return list(_cut(chosen, side)), where


def _cut(files: Sequence[Path], side: int) -> Iterator[np.ndarray]:
    for file in files:
        yield _window(read_image(file), side)


def _window(image: np.ndarray, side: int) -> np.ndarray:
    """Cuts the middle of an image; a smaller one is mirrored at its right and lower edge."""
    height, width = image.shape[:2]
    image = np.pad(image, ((0, max(0, side - height)), (0, max(0, side - width)), (0, 0)), mode="symmetric")
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return np.ascontiguousarray(image[top : top + side, left : left + side])


def facts_of(run: Path, config: Config, segmenter: Segmenter, prepared: Prepared | None) -> Facts:
    """Collects what the file tells of the run."""
    model = config.model
    terms = terms_of_encoder(segmenter.model.encoder.preset, model.encoder_weights)  # type: ignore[union-attr, arg-type]
    weights = model.encoder_weights or "from scratch"
    of_file = Path(weights).name if Path(weights).is_file() else weights
    return Facts(
        name=run.resolve().name,
        method=config.method.name,
        data=f"{prepared.name} ({prepared.source}; {prepared.licence})" if prepared else "",
        encoder=f"{model.encoder}, {of_file}",
        terms=terms,
        licence=short(terms) if terms else "",
        version=importlib.import_module("mpamatch").__version__,
    )


def told(checked: Checked, where: str) -> list[str]:
    """Says what was written and how it compares with torch."""
    frame = checked.frame
    sizes = (
        f"windows of {frame.window}×{frame.window} pixels"
        if frame.step is None
        else f"images of any size whose sides are multiples of {frame.step}, windows of {frame.window}"
    )
    note = f" ({checked.note})" if checked.note else ""
    compared = f"compared with torch on {checked.windows} window{'s' if checked.windows != 1 else ''} of {where}"
    return [
        f"takes {sizes}{note}, 8-bit RGB; gives class probabilities",
        f"{compared}: largest difference {checked.difference:.2g} (allowed {MOST_DIFFERENCE:g}), "
        f"{checked.labels_alike:.2%} of pixels with the label of mpamatch predict RUN",
        f"wrote {checked.file}",
    ]
