"""Where a slide shows tissue, at about 8 µm per pixel and without any weights.

A pixel's stain is its optical density against the glass of the same slide, in the channel that loses most, less three
quarters of what all channels lose alike, since shadows and dust are grey and stains are not. Otsu's threshold on that
separates tissue from glass, but never above a low fixed level: beside dark tissue it would count the pale one as glass.
It rather takes too much than too little.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu

from mpamatch.slides.reader import Box, Slide, View
from mpamatch.slides.sources.base import Pixels

Flags = NDArray[np.bool_]

MICRONS = 8.0  # per pixel of the mask
DENSITY = (0.015, 0.03)  # the threshold's range: 8 and 16 of 255 levels below glass of 245, in one channel alone
CLOSED_MICRONS = 40.0  # gaps as wide as this are closed
SMALLEST_MM2 = 0.02  # pieces and holes below this are dropped and filled: 160 µm across
BLACK = 8  # scanners fill what they did not scan with black; no stain is so dark in all channels at 8 µm
BRIGHT, GREY = 200, 10  # glass is at least as bright, and its channels differ by no more
LEAST_GLASS = 0.002  # of the slide; of less nothing is learned
USUAL_GLASS = 245
SHARED = 0.75  # of the density that all channels have is taken off
_ROWS = 256  # of the mask whose densities are computed at once
_STEPS = 255.0  # in a density of 1; densities are kept in 8 bits


@dataclass(frozen=True)
class Tissue:
    """Where there is tissue.

    Attributes:
        mask: (H, W), True for tissue; its first pixel has its corner at the slide's origin.
        mpp: µm per pixel of the mask.
        scale: pixels of level 0 per pixel of the mask.
    """

    mask: Flags
    mpp: float
    scale: float

    @property
    def square_millimetres(self) -> float:
        """The area of the tissue in mm²."""
        return float(np.count_nonzero(self.mask)) * (self.mpp / 1000) ** 2

    def touches(self, box: Box) -> bool:
        """Tells whether a box, in pixels of level 0, touches tissue."""
        return bool(self.mask[self._covered(box)].any())

    def share(self, box: Box) -> float:
        """Computes which share of a box, in pixels of level 0, is tissue: 0 to 1; outside of the slide nothing is."""
        rows, columns = self._covered(box)
        area = max(1, round(box.width / self.scale) * round(box.height / self.scale))
        return min(1.0, np.count_nonzero(self.mask[rows, columns]) / area)

    def grown(self, microns: float) -> "Tissue":
        """Returns it with every pixel that is no more than `microns` away from tissue along both axes."""
        reach = math.ceil(microns / self.mpp)
        if reach <= 0:
            return self
        return Tissue(ndimage.maximum_filter(self.mask, size=2 * reach + 1, mode="constant"), self.mpp, self.scale)

    def _covered(self, box: Box) -> tuple[slice, slice]:
        """Returns the rows and columns of the mask that a box touches."""
        ends = []
        for start, length in ((box.y, box.height), (box.x, box.width)):
            first = math.floor(start / self.scale)
            ends.append(slice(max(0, first), max(0, math.ceil((start + length) / self.scale))))
        return ends[0], ends[1]


def find_tissue(slide: Slide, grow: float = 0.0) -> Tissue:
    """Finds the tissue of a slide.

    Memory is some ten bytes per pixel of the mask; a glass of 25×75 mm has 29 million of them. Transparent, pure
    black and pure white pixels are glass.

    Args:
        slide: it must know its µm per pixel.
        grow: µm by which the tissue is made larger all around, such as the side of a window.

    Raises:
        InputError: the slide does not know its µm per pixel.
    """
    view = _view(slide)
    density = _densities(view.read(0, 0, *view.size))
    mask = _cleaned(density > _threshold(density), view.mpp)
    return Tissue(mask, view.mpp, view.scale).grown(grow)


def all_tissue(slide: Slide) -> Tissue:
    """Counts all of a slide as tissue. Raises InputError if the slide does not know its µm per pixel."""
    view = _view(slide)
    return Tissue(np.ones(view.size[::-1], dtype=bool), view.mpp, view.scale)


def _view(slide: Slide) -> View:
    return slide.at(max(MICRONS, slide.mpp or 0.0))


def _densities(pixels: Pixels) -> NDArray[np.uint8]:  # (H, W), in 255 steps up to a density of 1
    """Computes the density of stain; what was not scanned has none."""
    table = _density_table(_glass(pixels))
    density = np.empty(pixels.shape[:2], dtype=np.uint8)
    for row in range(0, len(pixels), _ROWS):
        rows = pixels[row : row + _ROWS]
        losses = np.stack([table[channel][rows[..., channel]] for channel in range(3)])
        stain = np.clip(losses.max(axis=0) - SHARED * losses.min(axis=0), 0, 1)
        density[row : row + _ROWS] = np.rint(stain * _STEPS)
    density[(pixels == 255).all(axis=2)] = 0
    # Between black and glass there are greys, a pixel or two wide.
    density[ndimage.binary_dilation((pixels <= BLACK).all(axis=2), iterations=2)] = 0
    return density


def _glass(pixels: Pixels) -> tuple[int, int, int]:
    """Finds the colour of glass: what most bright, grey pixels have; the usual one if there are hardly any."""
    least, most = pixels.min(axis=2), pixels.max(axis=2)
    glass = pixels[(least >= BRIGHT) & (most - least <= GREY) & (least < 255)]
    if len(glass) < LEAST_GLASS * least.size:
        return USUAL_GLASS, USUAL_GLASS, USUAL_GLASS
    red, green, blue = (int(np.argmax(np.bincount(glass[:, channel]))) for channel in range(3))
    return red, green, blue


def _density_table(glass: tuple[int, int, int]) -> NDArray[np.float32]:  # (3, 256)
    """Computes the optical density of each value of each channel; what is brighter than glass has none."""
    light = (np.arange(256) + 1) / (np.array(glass)[:, None] + 1)
    return np.maximum(-np.log10(light), 0).astype(np.float32)


def _threshold(density: NDArray[np.uint8]) -> float:
    """Chooses the density, in steps, above which there is tissue."""
    seen = density[density > 0]
    otsu = threshold_otsu(density) if seen.size and density.min() < density.max() else 0.0
    return float(np.clip(otsu, DENSITY[0] * _STEPS, DENSITY[1] * _STEPS))


def _cleaned(mask: Flags, mpp: float) -> Flags:
    """Closes gaps, drops small pieces and fills small holes."""
    reach = CLOSED_MICRONS / 2 / mpp
    edge = math.ceil(reach)
    along = np.arange(-edge, edge + 1)
    disc = np.hypot(along, along[:, None]) <= reach
    # Padded, since closing would take from tissue at the slide's rim.
    closed = ndimage.binary_closing(np.pad(mask, edge), disc)[edge:-edge, edge:-edge] if edge else mask
    smallest = SMALLEST_MM2 / (mpp / 1000) ** 2
    return ~_without_small(~_without_small(closed, smallest), smallest)


def _without_small(mask: Flags, smallest: float) -> Flags:
    """Drops the connected pieces of fewer than `smallest` pixels."""
    pieces, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    large = np.bincount(pieces.ravel()) >= smallest
    large[0] = False
    return large[pieces]
