"""Semi- and weakly-supervised segmentation of tissue images with image and text prototypes.

`load(run)` loads a trained model with `predict(image)`; `mpamatch.ops`, `.models` and `.methods` are usable alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mpamatch.environment import name_user

if TYPE_CHECKING:
    from mpamatch.inference.segmenter import Segmenter

    __version__: str
    """The installed version, such as "0.1.0"."""

__all__ = ["__version__", "load"]

name_user()  # before torch is imported, which asks who that is


def load(run: str | Path, device: str = "auto") -> Segmenter:
    """Loads the trained model of a run folder, or of an ONNX file that was made of it, ready to predict.

    Args:
        run: the folder that `mpamatch train` wrote, or a file of `mpamatch export`, which runs on the CPU.
        device: auto (the GPU if there is one), cpu or cuda.

    Returns:
        A Segmenter: `predict(image)` takes a file or (H, W, 3) uint8 and returns the label, (H, W) uint8.

    Raises:
        InputError: `run` is no run folder with a trained model, a frozen encoder's file has changed or gone, or cuda
            was asked for and torch sees no GPU.
    """
    from mpamatch.inference.checkpoint import load_segmenter  # torch comes with it; the command line's help needs none

    return load_segmenter(Path(run), device)


def _version() -> str:
    """Returns the installed version; of a checkout that nobody installed, the one in its pyproject.toml."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("mpamatch")
    except PackageNotFoundError:
        import tomllib

        pyproject = Path(__file__).resolve().parent.parent / "pyproject.toml"
        return str(tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["version"])


if not TYPE_CHECKING:  # a type checker would take any name for one of this module's

    def __getattr__(name: str) -> str:
        """`__version__`, looked up when it is asked for: that takes twice as long as the rest of `import mpamatch`."""
        if name == "__version__":
            return _version()
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
