"""Files of small made-up raw sets, and what `prepare` is given for them."""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from mpamatch.data.kinds import every_option
from mpamatch.data.prepared import RawSet

SIZE = (24, 18)  # width, height


def image(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def mask(path: Path, values: list[int], dtype=np.uint8) -> Path:
    """A mask whose columns take `values` in turn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    row = np.resize(np.array(values, dtype=dtype), SIZE[0])
    Image.fromarray(np.repeat(row[None], SIZE[1], axis=0)).save(path)
    return path


def labels(raw: RawSet) -> dict[str, list[int] | None]:
    return {one.stem: None if one.label is None else np.unique(one.label).tolist() for one in raw.items}


def arguments(**given) -> argparse.Namespace:
    """What `prepare` is given: `given`, and no other option of any kind."""
    nothing = {option.keyword: False if option.type is bool else None for option in every_option()}
    return argparse.Namespace(**({"source": None, "microns_per_pixel": None, "parts_of": None} | nothing | given))
