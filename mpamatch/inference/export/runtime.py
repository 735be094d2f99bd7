"""An exported ONNX file as a Segmenter: the same windows and blending, onnxruntime in place of torch."""

import hashlib
import importlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mpamatch.errors import InputError, reason
from mpamatch.inference.segmenter import Segmenter
from mpamatch.inference.settings import SegmenterSettings

SUFFIX = ".onnx"
IMAGE, PROBABILITIES = "image", "probabilities"
INSTALL = "pip install 'mpamatch[export]'"
LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
# What a file says about itself, each a JSON value, and a Segmenter needs to know.
NEEDED = ("class_names", "colours", "microns_per_pixel", "window", "overlap")
LEAST = 1e-38  # of a probability: its logarithm is finite in float32


def missing_libraries() -> list[str]:
    """Lists the libraries of the extra `export` that are not installed."""
    return [name for name in LIBRARIES if importlib.util.find_spec(name) is None]


def library(name: str, what: str) -> Any:
    """Imports a library of the extra. Raises InputError, which begins with `what`, if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"{what}: needs {name}, which is not installed: {INSTALL}.") from error


def open_session(path: Path) -> Any:
    """Opens an ONNX file on the CPU, one thread for each call.

    A Segmenter runs as many batches at a time as torch has threads; with one thread in each, sums have one order.
    Raises InputError if onnxruntime is missing or cannot open the file.
    """
    onnxruntime = library("onnxruntime", str(path))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what fails is raised, too
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # kinds of its own, one for each status
        raise InputError(f"{path}: cannot be opened as ONNX ({reason(error)}): export it anew.") from error


class Scores(NamedTuple):
    """What a Segmenter asks a network for."""

    logits: Tensor  # (B, C, H, W) float32


class OnnxNetwork(nn.Module):
    """An exported network that a Segmenter can run.

    Its only state is the SHA-256 of the file, by which a folder of results knows what it was made with.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._session = open_session(path)
        digest = hashlib.sha256(path.read_bytes()).digest()
        self.register_buffer("sha256", torch.frombuffer(bytearray(digest), dtype=torch.uint8))
        self.about: dict[str, Any] = _about(path, self._session)

    def forward(
        self,
        windows: Tensor,  # (B, 3, H, W) float32, whole numbers from 0 to 255
    ) -> Scores:
        """Runs a batch; the logits are logarithms of probabilities, whose softmax is the probabilities themselves."""
        pixels = windows.round().clamp(0, 255).to(torch.uint8).contiguous().cpu().numpy()
        found: np.ndarray = self._session.run([PROBABILITIES], {IMAGE: pixels})[0]
        return Scores(torch.from_numpy(found).clamp(min=LEAST).log())


def _about(path: Path, session: Any) -> dict[str, Any]:
    """Reads what the file says about itself. Raises InputError if `mpamatch export` did not write it."""
    stored = session.get_modelmeta().custom_metadata_map
    try:
        about = {name: json.loads(stored[name]) for name in NEEDED}
    except (KeyError, json.JSONDecodeError) as error:
        raise InputError(
            f"{path}: does not say its classes and window ({error} of its metadata): give a file of `mpamatch export`."
        ) from error
    ends = [one.name for one in (*session.get_inputs(), *session.get_outputs())]
    if ends != [IMAGE, PROBABILITIES]:
        raise InputError(f"{path}: has the ends {', '.join(ends)}, expected {IMAGE} and {PROBABILITIES}: export anew.")
    return about


def load_onnx(path: Path, device: str = "auto") -> Segmenter:
    """Loads an ONNX file of `mpamatch export`, ready to predict.

    Args:
        path: the file.
        device: auto or cpu.

    Raises:
        InputError: the file is missing, broken or not of `mpamatch export`, onnxruntime is not installed, or the device
            is cuda.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file.")
    if device == "cuda":
        raise InputError(f"{path}: an ONNX file runs on the CPU here: leave out --device, or predict with the run.")
    network = OnnxNetwork(path)
    about, unit = network.about, 1 / 255
    try:
        settings = SegmenterSettings(**about, mean=(0.0,) * 3, std=(unit,) * 3, scale=1.0)  # pixels stay 0 to 255
    except (TypeError, InputError) as error:
        raise InputError(f"{path}: says about itself what cannot be ({error}): export it anew.") from error
    return Segmenter(network.eval(), settings)
