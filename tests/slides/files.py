"""Small slides for tests, each written in milliseconds: made-up tissue in tiled TIFFs of every kind that is read."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from mpamatch.data.synthetic import synthesize

TILE = 128


@functools.cache
def tissue(height: int = 512, width: int = 640) -> NDArray[np.uint8]:  # (height, width, 3)
    """Made-up tissue without two equal rows or tiles."""
    image, _ = synthesize(0, 7, max(height, width))
    image = image[:height, :width].copy()
    image.flags.writeable = False
    return image


def write_slide(
    path: Path,
    image: NDArray[Any] | None = None,  # (H, W, 3) or (H, W)
    levels: int = 3,
    mpp: float | None = 0.5,
    compression: str | None = "jpeg",
    unit: str = "CENTIMETER",
    **options: Any,
) -> Path:
    """Writes a pyramid, each level every second pixel of the one before it, as OpenSlide opens it (generic-tiff)."""
    image = tissue() if image is None else image
    path.parent.mkdir(parents=True, exist_ok=True)
    photometric = "rgb" if image.ndim == 3 else "minisblack"
    with tifffile.TiffWriter(path) as file:
        for level in range(levels):
            where: dict[str, Any] = {"subfiletype": 1 if level else 0}
            if mpp is not None:
                per_unit = (1e4 if unit == "CENTIMETER" else 25400) / (mpp * 2**level)
                where |= {"resolution": (per_unit, per_unit), "resolutionunit": unit}
            file.write(
                image[:: 2**level, :: 2**level],
                **{"tile": (TILE, TILE), "compression": compression, "photometric": photometric, "metadata": None}
                | where
                | options,
            )
    return path


def write_ome(path: Path, image: NDArray[Any] | None = None, levels: int = 3, **metadata: Any) -> Path:
    """Writes an OME-TIFF whose smaller levels lie in SubIFDs, at 0.5 µm per pixel unless `metadata` says else."""
    image = tissue() if image is None else image
    about = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm"} | metadata
    shared: dict[str, Any] = {"tile": (TILE, TILE), "compression": "deflate"}
    shared["photometric"] = "rgb" if about["axes"] == "YXS" else "minisblack"
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(image, subifds=levels - 1, metadata=about, **shared)
        for level in range(1, levels):
            smaller = (
                image[..., :: 2**level, :: 2**level] if about["axes"] != "YXS" else image[:: 2**level, :: 2**level]
            )
            file.write(smaller, subfiletype=1, **shared)
    return path


def corrupt_tile(path: Path, number: int, level: int = 0) -> None:
    """Overwrites the bytes of a tile, so that it cannot be decoded."""
    with tifffile.TiffFile(path) as file:
        page = file.series[0].levels[level].pages[0]
        offset, length = page.dataoffsets[number], page.databytecounts[number]
    with path.open("r+b") as raw:
        raw.seek(offset)
        raw.write(b"\0" * length)
