"""A bioimage.io package (specification 0.5) of the deployed network: ONNX and TorchScript weights, test tensors, terms.

https://bioimage-io.github.io/spec-bioimage-io: what each field of rdf.yaml means.
"""

import dataclasses
import hashlib
import tempfile
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from mpamatch.files import replacing
from mpamatch.images import overlay
from mpamatch.inference.export.graph import Deployed
from mpamatch.inference.export.onnx_file import (
    OPSET,
    Checked,
    batches,
    check,
    check_close,
    check_libraries,
    described,
    example_for,
    made,
    save,
)
from mpamatch.inference.export.runtime import IMAGE, PROBABILITIES
from mpamatch.inference.segmenter import Segmenter
from mpamatch.names import visible

FORMAT = "0.5.12"
COVER_SIDE = 512
# The licences that published encoders have and bioimage.io knows by these words; any other stands in LICENCE.txt alone.
SPDX = {
    "CC BY-NC-ND 4.0": "CC-BY-NC-ND-4.0",
    "CC BY-NC-SA 4.0": "CC-BY-NC-SA-4.0",
    "CC BY-NC 4.0": "CC-BY-NC-4.0",
    "CC BY 4.0": "CC-BY-4.0",
}
PAPERS = {
    "transunet": ("TransUNet: Transformers Make Strong Encoders for Medical Image Segmentation (arXiv 2102.04306)",
                  "10.48550/arXiv.2102.04306"),
    "prototype_maps": ("LPD, maps of learnable prototypes (arXiv 2512.05922)", "10.48550/arXiv.2512.05922"),
}  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """What is known of a run, to be told beside its network.

    Attributes:
        name: of the run.
        method: that trained it.
        data: name of the prepared set, its source and its licence; "" if the set is not at hand.
        encoder: name of the encoder and its weights.
        terms: of these weights, in a sentence; None if they have none.
        licence: their short name, such as "CC BY-NC-ND 4.0"; "" if they have none.
        version: of mpamatch.
    """

    name: str
    method: str
    data: str
    encoder: str
    terms: str | None
    licence: str
    version: str

    def record(self) -> dict[str, Any]:
        """Returns what the metadata of a file holds of them."""
        return {
            "run": self.name,
            "method": self.method,
            "encoder": self.encoder,
            "data": self.data,
            "terms_of_weights": self.terms,
            "mpamatch": self.version,
        }


def export_bioimage(segmenter: Segmenter, path: Path, windows: Sequence[np.ndarray], facts: Facts) -> Checked:
    """Writes a package to `path`; on any error, also a difference from torch, no file is left there.

    Both kinds of weights are compared with torch on the windows. The arguments, and what is raised, are those of
    `export_onnx`.
    """
    check_libraries()
    deployed, program, note = made(segmenter)
    program.model.metadata_props.update(described(segmenter, deployed.frame, facts.record()))
    with replacing(path) as temporary, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save(program, folder / "model.onnx")
        checked = check(folder / "model.onnx", segmenter, deployed, windows)
        traced = _write_torchscript(folder / "model.pt", deployed, windows)
        checked = dataclasses.replace(checked, difference=max(checked.difference, traced), file=path, note=note)
        _write_tests(folder, deployed, windows[0])
        _write_cover(folder / "cover.png", segmenter, windows[0], np.load(folder / "test_output.npy")[0])
        (folder / "LICENCE.txt").write_text(_licence(facts), encoding="utf-8")
        (folder / "README.md").write_text(_readme(segmenter, checked, facts), encoding="utf-8")
        content = _rdf(segmenter, deployed, facts, folder)
        (folder / "rdf.yaml").write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in visible(folder):
                archive.write(file, file.name)
    return checked


def _write_torchscript(path: Path, deployed: Deployed, windows: Sequence[np.ndarray]) -> float:
    """Traces the graph, compares it with torch, and writes it without what it says of this machine's files.

    Returns the largest difference of a probability. Raises InputError if it is above 1e-4.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # sizes that tracing takes for constants: the comparison tells of those
        traced = torch.jit.trace(deployed, example_for(deployed.frame), check_trace=False)
        whole = path.with_suffix(".whole")
        torch.jit.save(traced, str(whole))
        _without_places(whole, path)
        loaded = torch.jit.load(str(path))
        found = 0.0
        for batch in batches(windows, deployed.frame):
            x = torch.from_numpy(batch)
            expected, result = deployed(x).numpy(), loaded(x).numpy()
            check_close(result, expected, "TorchScript")
            found = max(found, float(np.abs(result - expected).max()))
    return found


def _without_places(source: Path, dest: Path) -> None:
    """Copies TorchScript without the tables of places in the sources, which name folders of this machine."""
    with zipfile.ZipFile(source) as whole, zipfile.ZipFile(dest, "w", zipfile.ZIP_STORED) as kept:
        for entry in whole.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                kept.writestr(entry.filename, whole.read(entry))
    source.unlink()


def _write_tests(folder: Path, deployed: Deployed, window: np.ndarray) -> None:
    """Writes the window and torch's probabilities of it."""
    given = np.ascontiguousarray(window.transpose(2, 0, 1))[None]
    with torch.inference_mode():
        expected = deployed(torch.from_numpy(given)).numpy()
    np.save(folder / "test_input.npy", given)
    np.save(folder / "test_output.npy", expected)


def _write_cover(path: Path, segmenter: Segmenter, window: np.ndarray, probability: np.ndarray) -> None:
    """Draws the window beside its prediction, twice as wide as high."""
    label = probability.argmax(0).astype(np.uint8)
    painted = overlay(window, label, segmenter.settings.colours)
    pair = Image.fromarray(np.concatenate([window, painted], axis=1))
    side = min(COVER_SIDE, window.shape[0])
    pair.resize((2 * side, side)).save(path)


def _licence(facts: Facts) -> str:
    lines = [
        f"Encoder: {facts.encoder}.",
        f"Terms of its weights: {facts.terms or 'none'}",
        f"Training data: {facts.data or 'not at hand when this file was made'}",
        "What the run learnt beyond these is its owner's, who has not named terms here.",
    ]
    return "\n".join(lines) + "\n"


def _readme(segmenter: Segmenter, checked: Checked, facts: Facts) -> str:
    settings, frame = segmenter.settings, checked.frame
    microns = "not known" if settings.microns_per_pixel is None else f"{settings.microns_per_pixel:g} µm"
    sizes = f"{frame.window} pixels" if frame.step is None else f"multiples of {frame.step} pixels"
    return f"""# {facts.name}

Segments tissue into {", ".join(settings.class_names)}. Trained by mpamatch {facts.version}, method {facts.method},
encoder {facts.encoder}. Training data: {facts.data or "not named"}.

## Use

The input is 8-bit RGB from 0 to 255, (batch, 3, height, width), of the training images' pixel size ({microns}); height
and width are {sizes}. Scale and normalisation are inside. The output is the probability of each class (softmax).
Larger images: windows of {frame.window} that overlap by {settings.overlap:.0%}, blended.

## Validation

ONNX and TorchScript were compared with torch on {checked.windows} windows: the largest difference of a probability is
{checked.difference:.2g}. How well the run segments is in its evaluation files; this package does not repeat it.

## Terms

{_licence(facts)}"""


def _rdf(segmenter: Segmenter, deployed: Deployed, facts: Facts, folder: Path) -> dict[str, Any]:
    """Describes the package as the specification asks."""
    network: Any = segmenter.model
    paper, doi = PAPERS.get(network.name, PAPERS["transunet"])
    licence = SPDX.get(facts.licence)
    return {
        "format_version": FORMAT,
        "type": "model",
        "name": _plain(f"mpamatch {facts.name}"),
        "description": f"Segmentation of tissue images into {', '.join(segmenter.class_names)}"[:1000],
        "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
        "covers": [_file(folder, "cover.png")],
        "documentation": _file(folder, "README.md"),
        "attachments": [_file(folder, "LICENCE.txt")],
        "cite": [{"text": paper, "doi": doi}],
        **({"license": licence} if licence else {}),
        "tags": ["segmentation", "semantic-segmentation", "histopathology", "2d", "rgb"],
        "inputs": [_input(segmenter, deployed, folder)],
        "outputs": [_output(segmenter, deployed, folder)],
        "weights": {
            "onnx": {**_file(folder, "model.onnx"), "opset_version": OPSET, "parent": "torchscript"},
            "torchscript": {
                **_file(folder, "model.pt"),
                "pytorch_version": torch.__version__.partition("+")[0],
            },
        },
        "config": {
            "mpamatch": {
                **facts.record(),
                "window": deployed.frame.window,
                "overlap": segmenter.settings.overlap,
                "colours": [list(colour) for colour in segmenter.settings.colours],
            }
        },
    }


def _input(segmenter: Segmenter, deployed: Deployed, folder: Path) -> dict[str, Any]:
    frame = deployed.frame
    free = {} if frame.step is None else {"min": 2 * frame.step, "step": frame.step}
    return {
        "id": IMAGE,
        "description": "RGB from 0 to 255; scale and normalisation are inside the network",
        "axes": [
            {"type": "batch"},
            {"type": "channel", "channel_names": ["red", "green", "blue"]},
            *({"type": "space", "id": axis, "size": {**free} or frame.window, **_pixel(segmenter)} for axis in "yx"),
        ],
        "data": {"type": "uint8", "range": [0, 255]},
        "test_tensor": _file(folder, "test_input.npy"),
    }


def _output(segmenter: Segmenter, deployed: Deployed, folder: Path) -> dict[str, Any]:
    halo = int(deployed.frame.window * segmenter.settings.overlap / 2)  # what neighbours predict, too
    return {
        "id": PROBABILITIES,
        "description": "probability of each class, softmax",
        "axes": [
            {"type": "batch"},
            {"type": "channel", "channel_names": list(segmenter.class_names)},
            *(
                {"type": "space", "id": axis, "size": {"tensor_id": IMAGE, "axis_id": axis}, **_pixel(segmenter)}
                | ({"halo": halo} if halo else {})
                for axis in "yx"
            ),
        ],
        "data": {"type": "float32", "range": [0.0, 1.0]},
        "test_tensor": _file(folder, "test_output.npy"),
    }


def _pixel(segmenter: Segmenter) -> dict[str, Any]:
    microns = segmenter.settings.microns_per_pixel
    return {} if microns is None else {"scale": microns, "unit": "micrometer"}


def _file(folder: Path, name: str) -> dict[str, str]:
    return {"source": name, "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest()}


def _plain(name: str) -> str:
    """Keeps what bioimage.io takes in a name: letters, digits and a few signs."""
    return "".join(letter if letter.isalnum() or letter in "_+- ()" else "-" for letter in name)[:128]
