"""Writes the deployed network as ONNX, and proves on windows that it computes what torch does."""

import dataclasses
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpamatch.errors import InputError
from mpamatch.files import replacing
from mpamatch.inference.export.graph import Deployed, Frame, frame_for
from mpamatch.inference.export.runtime import IMAGE, PROBABILITIES, library, missing_libraries, open_session
from mpamatch.inference.segmenter import Segmenter

OPSET = 18  # the first whose Resize takes antialiasing
MOST_DIFFERENCE = 1e-4  # of a probability, from torch
MOST_BYTES = 2**31 - 2**20  # one protobuf holds less than 2 GiB
BATCHES = (2, 1, 3)  # sizes that windows are compared in, one after the other


@dataclass(frozen=True)
class Checked:
    """What was written, and how it compares with torch.

    Attributes:
        file: of the result.
        frame: which sizes it takes.
        windows: how many windows were compared.
        difference: the largest of a probability from torch's.
        labels_alike: the share of their pixels that have the label which `mpamatch predict` gives them with the run.
        note: what is to be said about sizes; empty if nothing.
    """

    file: Path
    frame: Frame
    windows: int
    difference: float
    labels_alike: float
    note: str = ""


def check_libraries() -> None:
    """Raises InputError if one of the libraries that writing takes is not installed."""
    for name in missing_libraries():
        library(name, "mpamatch export")


def export_onnx(segmenter: Segmenter, path: Path, windows: Sequence[np.ndarray], about: dict[str, Any]) -> Checked:
    """Writes the network of a Segmenter to `path`; on any error, also a difference from torch, no file is left there.

    Args:
        segmenter: of a run.
        path: of the file.
        windows: (window, window, 3) uint8 each, of the frame's window, which it is compared on.
        about: what else the file is to say about itself, by name: values that JSON has.

    Raises:
        InputError: a library is missing, the exporter refuses the network, it is too large for one file, a probability
            is more than 1e-4 from torch's, or the file cannot be written.
    """
    check_libraries()
    deployed, program, note = made(segmenter)
    program.model.metadata_props.update(described(segmenter, deployed.frame, about))
    with replacing(path) as temporary:
        save(program, temporary)
        checked = check(temporary, segmenter, deployed, windows)
    return dataclasses.replace(checked, file=path, note=note)


def made(segmenter: Segmenter) -> tuple[Deployed, Any, str]:
    """Exports the graph; returns the module, the program, and why its size is fixed if it could have been free."""
    frame = frame_for(segmenter)
    deployed = Deployed(segmenter, frame)
    size = sum(tensor.numel() * tensor.element_size() for tensor in deployed.state_dict().values())
    if size > MOST_BYTES:
        raise InputError(f"the network has {size / 2**30:.1f} GiB of weights, and an ONNX file holds 2: use the run.")
    if frame.step is not None:
        try:
            return deployed, program_of(deployed), ""
        except torch.onnx.OnnxExporterError:  # such as Swin, whose windows of attention are cut for one size
            deployed = Deployed(segmenter, dataclasses.replace(frame, step=None))
    why = "the exporter takes this encoder at one size only" if frame.step else ""
    try:
        return deployed, program_of(deployed), why
    except torch.onnx.OnnxExporterError as error:
        told = next((line for line in reversed(str(error).splitlines()) if line.strip()), "no reason given")
        raise InputError(f"model: torch cannot export this network ({told.strip()[:200]}): use the run.") from error


def program_of(deployed: Deployed) -> Any:
    """Runs torch's exporter, with any number of images in a batch and the sizes of the frame."""
    frame = deployed.frame
    sizes: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=4096)}
    if frame.step is not None:
        sizes |= {axis: frame.step * torch.export.Dim(name, min=2, max=4096) for axis, name in ((2, "h"), (3, "w"))}
    example = example_for(frame)
    with _quiet(), torch.no_grad():
        program: Any = torch.onnx.export(
            deployed, (example,), dynamo=True, dynamic_shapes=(sizes,), opset_version=OPSET, verbose=False,
            input_names=[IMAGE], output_names=[PROBABILITIES],
        )  # fmt: skip
    return program


def example_for(frame: Frame) -> Tensor:  # (2, 3, H, W) uint8
    """Makes an example for tracing: two images, as a batch of one would pass for a constant; unlike sides, if free."""
    height, width = (frame.window, frame.window) if frame.step is None else (2 * frame.step, 3 * frame.step)
    return torch.arange(2 * 3 * height * width).remainder(251).to(torch.uint8).view(2, 3, height, width)


def described(segmenter: Segmenter, frame: Frame, about: dict[str, Any]) -> dict[str, str]:
    """Collects what the file says about itself; each value is JSON."""
    settings = segmenter.settings
    values = {
        "class_names": settings.class_names,
        "colours": settings.colours,
        "microns_per_pixel": settings.microns_per_pixel,
        "window": frame.window,
        "overlap": settings.overlap,
        "multiple": frame.step,
        "input": f"{IMAGE}: (batch, 3, height, width) uint8, RGB from 0 to 255; "
        + (
            f"height and width {frame.window}"
            if frame.step is None
            else f"height and width multiples of {frame.step}, at least {2 * frame.step}"
        )
        + ". Normalisation and scale are inside.",
        "output": f"{PROBABILITIES}: (batch, {len(settings.class_names)}, height, width) float32, softmax over classes",
        **about,
    }
    return {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}


def save(program: Any, path: Path) -> None:
    """Saves a program without what the exporter notes of this machine: the lines of code that nodes came from."""
    for graph in (program.model.graph, *(function.graph for function in program.model.functions.values())):
        graph.metadata_props.clear()
        for node in graph:
            node.metadata_props.clear()
            for value in node.outputs:
                value.metadata_props.clear()
        for value in (*graph.inputs, *graph.initializers.values()):
            value.metadata_props.clear()
    program.model.producer_name = "mpamatch"
    program.save(str(path), external_data=False)


def check(path: Path, segmenter: Segmenter, deployed: Deployed, windows: Sequence[np.ndarray]) -> Checked:
    """Compares an ONNX file with torch on windows, and where sizes are free on an image of another size, too.

    Raises InputError for no window, a file that onnx.checker refuses, or a difference above 1e-4.
    """
    if not windows:
        raise InputError("no window to compare with torch: give images that are at least one pixel large.")
    onnx, session = library("onnx", str(path)), open_session(path)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except onnx.checker.ValidationError as error:
        raise InputError(
            f"{path.name}: onnx.checker refuses it ({str(error).splitlines()[0]}): use the run."
        ) from error
    difference, alike = 0.0, []
    for batch in batches(windows, deployed.frame):
        with torch.inference_mode():
            expected = deployed(torch.from_numpy(batch)).numpy()
        found = session.run([PROBABILITIES], {IMAGE: batch})[0]
        check_close(found, expected, "onnxruntime")
        difference = max(difference, float(np.abs(found - expected).max()))
        if batch.shape[2:] == (deployed.frame.window,) * 2:
            own = segmenter.labels(np.ascontiguousarray(one.transpose(1, 2, 0)) for one in batch)
            alike += [
                float((label.cpu().numpy() == one.argmax(0)).mean()) for label, one in zip(own, found, strict=True)
            ]
    return Checked(path, deployed.frame, len(windows), difference, float(np.mean(alike)))


def check_close(found: np.ndarray, expected: np.ndarray, who: str) -> None:
    """Raises InputError if a result has another shape than torch's, or a probability is more than 1e-4 away."""
    if found.shape != expected.shape:
        raise InputError(f"{who} gives {found.shape}, torch {expected.shape}: not exported; use the run.")
    difference = float(np.abs(found - expected).max())
    if not difference <= MOST_DIFFERENCE:  # neither does NaN pass
        raise InputError(
            f"{who} differs from torch by {difference:.2g} in a probability, more than {MOST_DIFFERENCE:g}: not "
            "exported; use the run."
        )


def batches(windows: Sequence[np.ndarray], frame: Frame) -> Iterator[np.ndarray]:  # (B, 3, H, W) uint8
    """Puts windows into batches of different sizes, and then, if sizes are free, two beside each other into one."""
    stacked = [np.ascontiguousarray(one.transpose(2, 0, 1)) for one in windows]
    start, turn = 0, 0
    while start < len(stacked):
        yield np.stack(stacked[start : start + BATCHES[turn % len(BATCHES)]])
        start, turn = start + BATCHES[turn % len(BATCHES)], turn + 1
    if frame.step is not None:
        wide = np.concatenate([stacked[0], stacked[-1]], axis=2)
        yield np.ascontiguousarray(wide[None, :, :, : -frame.step])


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what torch and onnxscript log about their own work from the user."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
