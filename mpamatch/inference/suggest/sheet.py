"""The contact sheet of what is suggested: image, prediction and uncertainty beside each other, with rank and score."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mpamatch.images import Colour, overlay, write_png
from mpamatch.inference.suggest.uncertainty import Look, Pixels
from mpamatch.names import readable

PANEL, CAPTION, GAP = 192, 18, 6  # pixels
COLUMNS = 2  # of suggestions
MOST = 60  # suggestions: 30 rows are 6,480 pixels
SHOWN = 60  # letters of a name
LEGEND = 150  # pixels of a class's name
HEAT = colormaps["inferno"]  # in even steps of lightness, so that greys tell the same


class Sheet:
    """Holds small pictures of the first suggestions until all are there.

    Args:
        names: of the classes.
        colours: of the classes.
    """

    def __init__(self, names: Sequence[str], colours: Sequence[Colour]) -> None:
        self._names, self._colours = names, colours
        self._tiles: list[Image.Image] = []

    def add(self, rank: int, name: str, image: Pixels, look: Look) -> None:
        """Adds the next suggestion; beyond the first 60 none is shown."""
        if len(self._tiles) == MOST:
            return
        panels = (image, overlay(image, look.label, self._colours), heat(look.uncertainty))
        tile = Image.new("RGB", (3 * PANEL + 4 * GAP, PANEL + CAPTION + GAP), "white")
        for place, panel in enumerate(panels):
            tile.paste(_fitted(panel), (GAP + place * (PANEL + GAP), CAPTION))
        shown = name if len(name) <= SHOWN else f"{name[: SHOWN - 3]}..."
        text = f"{rank}: {readable(shown)}   score {look.score:.4f}"
        ImageDraw.Draw(tile).text((GAP, 3), text, fill="black", font=_font())
        self._tiles.append(tile)

    def write(self, path: Path) -> None:
        """Writes the sheet as PNG. Raises InputError if it cannot be written."""
        columns = min(COLUMNS, len(self._tiles))
        rows = -(-len(self._tiles) // columns)
        width, height = self._tiles[0].size
        legend = self._legend(columns * width)
        sheet = Image.new("RGB", (columns * width, rows * height + GAP + legend.height), "white")
        for number, tile in enumerate(self._tiles):
            sheet.paste(tile, ((number % columns) * width, (number // columns) * height))
        sheet.paste(legend, (0, rows * height + GAP))
        write_png(path, np.array(sheet))

    def _legend(self, width: int) -> Image.Image:
        """Draws the classes, and what dark and light mean in the maps of uncertainty."""
        entries = [*zip(self._names, self._colours, strict=True), *_ENDS]
        per_row = width // LEGEND
        legend = Image.new("RGB", (width, -(-len(entries) // per_row) * CAPTION), "white")
        draw = ImageDraw.Draw(legend)
        for number, (name, colour) in enumerate(entries):
            left, top = GAP + number % per_row * LEGEND, number // per_row * CAPTION
            draw.rectangle((left, top, left + 12, top + 12), fill=tuple(colour), outline="black")
            draw.text((left + CAPTION, top - 1), readable(name)[:20], fill="black", font=_font())
        return legend


def heat(
    uncertainty: NDArray[np.float32],  # (H, W), 0 to 1
) -> Pixels:
    """Paints 0 black and 1 pale yellow."""
    return HEAT(uncertainty, bytes=True)[..., :3]


def _end(value: float) -> Colour:
    red, green, blue, _ = HEAT(value, bytes=True)
    return int(red), int(green), int(blue)


_ENDS: list[tuple[str, Colour]] = [("sure", _end(0.0)), ("unsure", _end(1.0))]


def _fitted(pixels: Pixels) -> Image.Image:
    image = Image.fromarray(pixels)
    scale = PANEL / max(image.size)
    return image.resize(tuple(max(1, round(side * scale)) for side in image.size), Image.Resampling.BOX)  # type: ignore[arg-type]


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=12)
