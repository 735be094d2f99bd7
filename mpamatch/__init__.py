"""Semi- and weakly-supervised segmentation of tissue images with image and text prototypes.

`load(run)` gives a trained model with `predict(image)`; `mpamatch.ops`, `.models` and `.methods` are usable alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpamatch.inference.segmenter import Segmenter

__all__ = ["__version__", "load"]
__version__ = "0.1.0"


def load(run: str | Path, device: str = "auto") -> Segmenter:
    """The trained model of a run folder: `predict(image)` takes a file or (H, W, 3) uint8 and gives (H, W) uint8.

    Raises InputError where `run` is no run folder with a trained model.
    """
    from mpamatch.inference.checkpoint import load_segmenter  # torch comes with it; the command line's help needs none

    return load_segmenter(Path(run), device)
