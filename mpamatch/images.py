"""Reading and writing of images and masks, and labels in colour."""

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mpamatch.errors import InputError
from mpamatch.files import replacing

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})
IGNORE = 255
SMALLEST_SIDE = 16

Colour = tuple[int, int, int]

# H&E is pink, purple and near-white: green, blue, yellow and orange come first, light and dark in turn.
DEFAULT_COLOURS: tuple[Colour, ...] = (
    (0, 0, 0),  # class 0, the background
    (0, 200, 83),
    (0, 128, 255),
    (255, 214, 0),
    (255, 109, 0),
    (0, 229, 255),
    (174, 234, 0),
    (26, 35, 126),
    (213, 0, 0),
    (0, 105, 92),
    (240, 244, 195),
    (121, 85, 72),
    (128, 216, 255),
    (51, 105, 30),
)
IGNORE_COLOUR: Colour = (128, 128, 128)

_TO_RGB = {"RGB", "L", "P", "1", "LA", "PA", "RGBA"}
_REFUSED = {
    "CMYK": "is a CMYK image: convert it to 8-bit RGB first",
    "I": "holds 16- or 32-bit greys: scale it to 8 bits first",
    "F": "holds floating-point values: scale it to 8 bits first",
}


def default_colour(index: int) -> Colour:
    """Returns the colour of a class that has none of its own; after the last one they start over with class 1's."""
    return DEFAULT_COLOURS[0] if index == 0 else DEFAULT_COLOURS[1 + (index - 1) % (len(DEFAULT_COLOURS) - 1)]


def read_image(path: Path) -> NDArray[np.uint8]:
    """Reads an image, turned as its EXIF orientation says.

    Greyscale, palette and 1-bit images are converted to RGB; transparency is laid on white, the slide's background.

    Returns:
        (H, W, 3) uint8 RGB, 0 to 255.

    Raises:
        InputError: the file is missing, broken, CMYK, deeper than 8 bits, a stack of pages, or under 16 pixels on a
            side; the sentence names it.
    """
    image = _decoded(path)
    if image.mode not in _TO_RGB:
        raise InputError(f"{path}: {_refusal(image.mode)}.")
    if _bits(image) > 8:
        raise InputError(f"{path}: holds {_bits(image)} bits per channel: scale it to 8 bits first.")
    if min(image.size) < SMALLEST_SIDE:
        raise InputError(
            f"{path}: is {image.width}×{image.height} pixels and the least is "
            f"{SMALLEST_SIDE}×{SMALLEST_SIDE}: take it out of the data."
        )
    if image.mode in {"LA", "PA", "RGBA"} or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def read_mask(path: Path) -> NDArray[np.uint8] | NDArray[np.int32]:
    """Reads the values stored in a mask.

    A palette mask gives its indices, a 1-bit mask 0 and 1, an RGB mask with equal channels one of them.

    Returns:
        (H, W) uint8, or int32 if the file is deeper than 8 bits.

    Raises:
        InputError: the mask is coloured, half-transparent, of floating-point numbers or broken; the sentence names it.
    """
    image = _decoded(path)
    values = np.asarray(image)
    if image.mode == "1":
        return values.astype(np.uint8)
    if image.mode in {"L", "P"}:
        return values.astype(np.uint8)
    if image.mode == "I" or image.mode.startswith("I;16"):
        return values.astype(np.int32)
    if image.mode in {"LA", "PA", "RGBA"} and (values[..., -1] != values[0, 0, -1]).any():
        raise InputError(f"{path}: is a mask with transparency: save one channel with a number per class.")
    if image.mode in {"LA", "PA"}:
        return np.array(values[..., 0])
    if image.mode not in {"RGB", "RGBA"} or _bits(image) > 8:
        raise InputError(f"{path}: is a mask of kind {image.mode}: save one 8-bit channel with a number per class.")
    colour = values[..., :3]
    if (colour != colour[..., :1]).any():
        raise InputError(f"{path}: is a coloured mask: save one channel with a number per class (0, 1, …).")
    return np.array(colour[..., 0])


def can_copy(path: Path) -> bool:
    """Tells whether a file that `read_image` accepts is an 8-bit RGB PNG or JPEG without an EXIF turn."""
    if path.suffix.lower() not in {".png", ".jpg", ".jpeg"}:
        return False
    with Image.open(path) as image:
        turned = image.getexif().get(0x0112, 1) != 1
        right_kind = image.format == ("PNG" if path.suffix.lower() == ".png" else "JPEG")
        return right_kind and image.mode == "RGB" and "transparency" not in image.info and not turned


def plain_size(path: Path, mode: str) -> tuple[int, int] | None:
    """Reads (H, W) from the header of an 8-bit PNG or JPEG of `mode` (RGB or L), without EXIF turn or transparency.

    None for any other file: only `read_image` or `read_mask` can tell what it is.
    """
    try:
        with Image.open(path) as image:
            turned = "exif" in image.info and image.getexif().get(0x0112, 1) != 1
            plain = image.format in {"PNG", "JPEG"} and image.mode == mode and not turned
            if plain and _stored_bits(image, path) == 8 and "transparency" not in image.info:
                return (image.height, image.width) if min(image.size) >= SMALLEST_SIDE else None
    except Exception:  # Pillow raises a dozen kinds for broken files; the readers find the words for them
        return None
    return None


def write_png(
    path: Path,
    array: NDArray[np.uint8],  # (H, W) or (H, W, 3)
) -> None:
    """Writes `array` as PNG, whole or not at all.

    Raises:
        InputError: the file cannot be written.
        TypeError: `array` is not uint8.
    """
    if array.dtype != np.uint8:
        raise TypeError(f"a PNG is written from uint8, not from {array.dtype}.")
    # zlib finds no repetitions in tissue: runs alone (Z_RLE) take 4.2 instead of 9.7 ms for 224² pixels, 110 KB both.
    how: dict[str, int] = {"compress_level": 1, "compress_type": zlib.Z_RLE} if array.ndim == 3 else {}
    with replacing(path) as temporary:
        Image.fromarray(array).save(temporary, format="PNG", **how)


def colour_label(
    label: NDArray[np.uint8],  # (H, W)
    colours: Sequence[Colour],
) -> NDArray[np.uint8]:
    """Paints each pixel in the colour of its class, ignored ones (255) in grey; (H, W, 3) uint8."""
    return _colour_table(colours)[label]


def overlay(
    image: NDArray[np.uint8],  # (H, W, 3)
    label: NDArray[np.uint8],  # (H, W)
    colours: Sequence[Colour],
    opacity: float = 0.45,
) -> NDArray[np.uint8]:
    """Tints `image` by class and outlines each region.

    Class 0 stays as it is, ignored pixels (255) are hatched in grey.

    Args:
        colours: RGB by class index; classes beyond them have the default colours.
        opacity: of the tint, 0 to 1.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: image and label differ in size.
    """
    if image.shape[:2] != label.shape:
        raise ValueError(f"image {image.shape[:2]} and label {label.shape} differ in size.")
    colour = colour_label(label, colours)
    height, width = label.shape
    hatched = (np.arange(height)[:, None] + np.arange(width)) % 6 < 2
    weight = np.where(label == 0, 0.0, opacity)
    weight = np.where((label == IGNORE) & ~hatched, 0.0, weight)
    weight = np.where((label == IGNORE) & hatched, 0.8, weight)
    weight = np.where(_outline(label), 1.0, weight)[..., None].astype(np.float32)
    painted = np.empty_like(colour)
    for top in range(0, height, 64):  # in float32 all at once takes ten times the image
        rows = slice(top, top + 64)
        painted[rows] = np.rint(image[rows] * (1 - weight[rows]) + colour[rows].astype(np.float32) * weight[rows])
    return painted


def _outline(
    label: NDArray[np.uint8],  # (H, W)
) -> NDArray[np.bool_]:
    """Marks the rim inside every region but class 0 and the ignored: a pixel wide, or a 400th of the shorter side."""
    inner = np.ones(label.shape, dtype=bool)
    for distance in range(1, max(1, round(min(label.shape) / 400)) + 1):
        inner[distance:] &= label[distance:] == label[:-distance]
        inner[:-distance] &= label[:-distance] == label[distance:]
        inner[:, distance:] &= label[:, distance:] == label[:, :-distance]
        inner[:, :-distance] &= label[:, :-distance] == label[:, distance:]
    return ~inner & (label != 0) & (label != IGNORE)


def _colour_table(colours: Sequence[Colour]) -> NDArray[np.uint8]:
    """Builds the colours of all 256 indices, (256, 3); classes beyond `colours` have the default ones."""
    table = np.array([default_colour(index) for index in range(256)], dtype=np.uint8)
    table[: len(colours)] = np.array(colours, dtype=np.uint8).reshape(-1, 3)
    table[IGNORE] = IGNORE_COLOUR
    return table


def _decoded(path: Path) -> Image.Image:
    if not path.is_file():
        raise InputError(f"{path}: no such file.")
    try:
        with Image.open(path) as image:
            pages = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
            bits = _stored_bits(image, path)
            image.load()
            turned = ImageOps.exif_transpose(image)
    except Exception as error:  # Pillow raises a dozen kinds for broken files: OSError, SyntaxError, struct.error, …
        raise InputError(f"{path}: cannot be decoded ({error}): replace it or take it out of the data.") from error
    if pages > 1:
        raise InputError(f"{path}: holds {pages} pages: save the one that is meant as a file of its own.")
    turned.info["bits"] = bits
    return turned


def _stored_bits(image: Image.Image, path: Path) -> int:
    """Reads the bits per channel from the file itself: Pillow cuts 16-bit RGB down to 8 without a word."""
    if image.format == "PNG":
        with path.open("rb") as file:
            return file.read(25)[24]  # IHDR: width 16..19, height 20..23, bit depth 24
    if image.format == "TIFF":
        return max(image.tag_v2.get(258, (8,)))  # type: ignore[attr-defined]  # BitsPerSample
    return 8


def _bits(image: Image.Image) -> int:
    return int(image.info["bits"])


def _refusal(mode: str) -> str:
    return _REFUSED.get("I" if mode.startswith("I") else mode, f"is of kind {mode}: convert it to 8-bit RGB first")
