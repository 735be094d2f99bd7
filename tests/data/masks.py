"""Masks of one disc, drawn as programs store them: numbers, palettes, soft edges, a JPEG."""

from pathlib import Path

import numpy as np
from PIL import Image

RED, BLACK, WHITE = (255, 0, 0), (0, 0, 0), (255, 255, 255)
SIDE = 64


def drawn(seed: int = 0) -> np.ndarray:
    """(SIDE, SIDE) bool: a disc at a place of the seed's."""
    y, x = np.mgrid[:SIDE, :SIDE]
    return (x - 24 - 4 * seed) ** 2 + (y - 30) ** 2 < 15**2


def saved(array: np.ndarray, path: Path, **options) -> None:
    Image.fromarray(array).save(path, **options)


def paletted(indices: np.ndarray, colours: list[tuple[int, int, int]], path: Path) -> None:
    image = Image.fromarray(indices.astype(np.uint8), mode="P")
    image.putpalette([channel for colour in colours for channel in colour])
    image.save(path)


def soft(seed: int) -> np.ndarray:
    """The disc, halved and doubled again."""
    image = Image.fromarray(drawn(seed).astype(np.uint8) * 255)
    return np.asarray(image.resize((SIDE // 2, SIDE // 2), Image.BILINEAR).resize((SIDE, SIDE), Image.BILINEAR))


def jpeg_named_png(seed: int, path: Path) -> None:
    with path.with_suffix(".png").open("wb") as file:
        Image.fromarray(drawn(seed).astype(np.uint8) * 255).save(file, "JPEG", quality=60)


def halo_alone(seed: int, path: Path) -> None:
    """0 and 255; of seed 3 nothing but what the disc of a neighbouring tile leaves at the rim after JPEG."""
    values = drawn(seed).astype(np.uint8) * 255
    if seed == 3:
        values = np.zeros_like(values)
        values[:, -3:] = np.random.default_rng(0).integers(0, 9, (SIDE, 3))
    saved(values, path.with_suffix(".png"))
