"""Reading and writing of images and masks, and labels in colour."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mpamatch.errors import InputError
from mpamatch.files import replacing
from mpamatch.stored import Stored, any_size, decoded, stored_bits

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".j2k", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
    | {".tga", ".ppm", ".pgm", ".pnm"}
)
IGNORE = 255
SMALLEST_SIDE = 16
MOST_OBJECTS = 65_535  # of an image, as files number them by 16 bits; 0 is none

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
_LARGEST_VALUE = 2**31 - 1  # of a mask


@dataclass(frozen=True)
class Facts:
    """What `read_image` did to a picture that its user may not expect.

    Attributes:
        turn: EXIF orientation that was applied; 1 is none.
        dropped: whether a fourth channel that is no transparency was left out.
        never_opaque: whether its transparency leaves no pixel as it is, so that all were whitened.
        grey_end: whether a JPEG ends in even grey, which decoders put where data are missing.
    """

    turn: int = 1
    dropped: bool = False
    never_opaque: bool = False
    grey_end: bool = False


@dataclass(frozen=True)
class StoredMask:
    """A mask as it is stored.

    Attributes:
        values: (H, W) uint8 or int32: numbers, or places in `palette`; (H, W, 3) uint8 for a coloured mask.
        palette: (N, 3) uint8: the colours in which the numbers are shown; None without a palette.
        format: PNG, JPEG, TIFF, …, whatever the file's name says.
        one_bit: whether it holds one bit per pixel, so that 1 is shown white.
        turn: EXIF orientation that was applied; 1 is none.
        white_is_zero: whether viewers show it inverted (TIFF's WhiteIsZero); `values` are not.
    """

    values: NDArray[Any]
    palette: NDArray[np.uint8] | None
    format: str
    one_bit: bool
    turn: int
    white_is_zero: bool


def default_colour(index: int) -> Colour:
    """Returns the colour of a class that has none of its own; after the last one they start over with class 1's."""
    return DEFAULT_COLOURS[0] if index == 0 else DEFAULT_COLOURS[1 + (index - 1) % (len(DEFAULT_COLOURS) - 1)]


def read_image(path: Path, most_megapixels: float | None = None) -> NDArray[np.uint8]:
    """Reads an image, turned as its EXIF orientation says.

    Greyscale, palette and 1-bit images are converted to RGB; transparency is laid on white, the slide's background. Of
    four channels without transparency, near-infrared beside RGB for example, the first three are taken.

    Args:
        path: the file.
        most_megapixels: the largest that is read; None: as `mpamatch.stored.allow_megapixels` says, else 300.

    Returns:
        (H, W, 3) uint8 RGB, 0 to 255.

    Raises:
        InputError: the file is missing, broken, too large, CMYK, deeper than 8 bits, a stack of pages, or under 16
            pixels on a side; the sentence names it.
    """
    return read_image_and_facts(path, most_megapixels)[0]


def read_image_and_facts(path: Path, most_megapixels: float | None = None) -> tuple[NDArray[np.uint8], Facts]:
    """Reads an image as `read_image` does, and tells what was done to it. Raises InputError as it does."""
    stored = decoded(path, most_megapixels)
    image = _shown(path, stored)
    if image.mode not in _TO_RGB:
        raise InputError(f"{path}: {_refusal(image.mode)}.")
    if stored.bits > 8:
        raise InputError(f"{path}: holds {stored.bits} bits per channel: scale it to 8 bits first.")
    if min(image.size) < SMALLEST_SIDE:
        raise InputError(
            f"{path}: is {image.width}×{image.height} pixels and the least is "
            f"{SMALLEST_SIDE}×{SMALLEST_SIDE}: take it out of the data."
        )
    if stored.without_alpha:
        return np.array(image.convert("RGB")), Facts(stored.turn, dropped=True)
    pixels, opaque = _on_white(image)
    return pixels, Facts(stored.turn, never_opaque=not opaque, grey_end=stored.grey_end)


def pixels_of(image: Image.Image) -> NDArray[np.uint8]:
    """Converts a picture of Pillow as `read_image` converts files: turned as EXIF says, on white, RGB.

    Returns:
        (H, W, 3) uint8.

    Raises:
        InputError: its mode cannot be converted without loss, such as CMYK, I or F.
    """
    if image.mode not in _TO_RGB:
        raise InputError(f"the picture of mode {image.mode}: {_refusal(image.mode)}.")
    return _on_white(ImageOps.exif_transpose(image))[0]


def pixels_from(image: NDArray[np.uint8] | Image.Image | str | Path) -> NDArray[np.uint8]:
    """Returns the pixels (H, W, 3) of an array, a picture of Pillow or a file. Raises InputError for anything else."""
    if isinstance(image, Image.Image):
        return pixels_of(image)
    if isinstance(image, str | Path):
        return read_image(Path(image))
    if isinstance(image, np.ndarray):
        return image
    raise InputError(
        f"image of type {type(image).__name__}: give an array (H, W, 3) uint8, a picture of Pillow or a path."
    )


def read_mask(path: Path, most_megapixels: float | None = None) -> NDArray[np.uint8] | NDArray[np.int32]:
    """Reads the values stored in a mask.

    A palette mask gives its indices, a 1-bit mask 0 and 1, an RGB mask with equal channels one of them, a TIFF in which
    0 is white (WhiteIsZero) its numbers, not their complement.

    Args:
        path: the file.
        most_megapixels: as `read_image` takes it.

    Returns:
        (H, W) uint8, or int32 if the file is deeper than 8 bits.

    Raises:
        InputError: the mask is coloured, half-transparent, of negative or broken numbers, too large or broken; the
            sentence names it.
    """
    return read_numbered_mask(path, most_megapixels).values


def read_numbered_mask(path: Path, most_megapixels: float | None = None) -> StoredMask:
    """Reads a mask of numbers, and how it is stored. Raises InputError as `read_mask` does."""
    mask = read_stored_mask(path, most_megapixels)
    if mask.values.ndim == 3:
        raise InputError(f"{path}: is a coloured mask: save one channel with a number per class (0, 1, …).")
    return mask


def read_stored_mask(path: Path, most_megapixels: float | None = None) -> StoredMask:
    """Reads a mask of numbers or of colours, and how it is stored.

    Raises InputError as `read_mask` does, but not for colours.
    """
    stored = decoded(path, most_megapixels)
    values, palette = _mask_values(path, stored)
    one_bit = stored.image is not None and stored.image.mode == "1"
    return StoredMask(values, palette, stored.format, one_bit, stored.turn, stored.white_is_zero)


def can_copy(path: Path) -> bool:
    """Tells whether a file that `read_image` accepts is an 8-bit RGB PNG or JPEG without an EXIF turn."""
    if path.suffix.lower() not in {".png", ".jpg", ".jpeg"}:
        return False
    with any_size(), Image.open(path) as image:
        turned = image.getexif().get(0x0112, 1) != 1
        right_kind = image.format == ("PNG" if path.suffix.lower() == ".png" else "JPEG")
        return right_kind and image.mode == "RGB" and "transparency" not in image.info and not turned


def plain_size(path: Path, mode: str) -> tuple[int, int] | None:
    """Reads (H, W) from the header of an 8-bit PNG or JPEG of `mode` (RGB or L), without EXIF turn or transparency.

    None for any other file: only `read_image` or `read_mask` can tell what it is.
    """
    try:
        with any_size(), Image.open(path) as image:
            turned = "exif" in image.info and image.getexif().get(0x0112, 1) != 1
            plain = image.format in {"PNG", "JPEG"} and image.mode == mode and not turned
            if plain and stored_bits(image, path) == 8 and "transparency" not in image.info:
                return (image.height, image.width) if min(image.size) >= SMALLEST_SIDE else None
    except Exception:  # Pillow raises a dozen kinds for broken files; the readers find the words for them
        return None
    return None


def write_png(
    path: Path,
    array: NDArray[np.uint8] | NDArray[np.uint16],  # (H, W), or (H, W, 3) uint8
) -> None:
    """Writes `array` as PNG, whole or not at all.

    Raises:
        InputError: the file cannot be written.
        TypeError: `array` is neither uint8 nor greys of uint16.
    """
    if array.dtype != np.uint8 and not (array.dtype == np.uint16 and array.ndim == 2):
        raise TypeError(f"a PNG is written from uint8, or greys of uint16, not from {array.dtype}.")
    # zlib finds no repetitions in tissue: runs alone (Z_RLE) take 4.2 instead of 9.7 ms for 224² pixels, 110 KB both.
    how: dict[str, int] = {"compress_level": 1, "compress_type": zlib.Z_RLE} if array.ndim == 3 else {}
    with replacing(path) as temporary:
        Image.fromarray(array).save(temporary, format="PNG", **how)


def write_painted_mask(
    path: Path,
    label: NDArray[np.uint8],  # (H, W)
    colours: Sequence[Colour],
) -> None:
    """Writes a label as PNG with a palette, whole or not at all: numbers that any program shows in the class's colour.

    Raises InputError if the file cannot be written.
    """
    image = Image.fromarray(label)
    image.putpalette(_colour_table(colours).ravel().tolist())
    with replacing(path) as temporary:
        image.save(temporary, format="PNG")


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


def _shown(path: Path, stored: Stored) -> Image.Image:
    """Returns the picture, as Pillow's if only tifffile could decode it."""
    if stored.image is not None:
        return stored.image
    array = stored.array
    assert array is not None
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise InputError(f"{path}: holds {array.dtype} of shape {array.shape}: convert it to 8-bit RGB first.")
    return Image.fromarray(255 - array if stored.white_is_zero else array[..., :3] if array.ndim == 3 else array)


def _on_white(image: Image.Image) -> tuple[NDArray[np.uint8], bool]:
    """Converts to RGB, transparency laid on white; tells whether a pixel is opaque."""
    opaque = True
    if image.mode in {"LA", "PA", "RGBA"} or "transparency" in image.info:
        image = image.convert("RGBA")
        opaque = image.getchannel("A").getextrema()[1] == 255
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB")), opaque


def _mask_values(path: Path, stored: Stored) -> tuple[NDArray[np.uint8] | NDArray[np.int32], NDArray[np.uint8] | None]:
    """Reads the numbers or colours of a mask, and the palette if it has one."""
    image = stored.image
    if image is None:
        assert stored.array is not None
        return _whole(path, stored.array), None
    values = np.asarray(image)
    if image.mode == "1":
        return (values ^ stored.white_is_zero).astype(np.uint8), None
    if image.mode == "L":
        return 255 - values if stored.white_is_zero else np.array(values), None
    if image.mode == "P":
        return np.array(values), _palette(image)
    if image.mode in {"I", "F"} or image.mode.startswith("I;16"):
        return _whole(path, values), None
    if image.mode in {"LA", "PA", "RGBA"} and (values[..., -1] != values[0, 0, -1]).any():
        raise InputError(f"{path}: is a mask with transparency: save one channel with a number per class.")
    if image.mode in {"LA", "PA"}:
        return np.array(values[..., 0]), _palette(image) if image.mode == "PA" else None
    if image.mode not in {"RGB", "RGBA"} or stored.bits > 8:
        raise InputError(f"{path}: is a mask of kind {image.mode}: save one 8-bit channel with a number per class.")
    colour = values[..., :3]
    return np.array(colour if (colour != colour[..., :1]).any() else colour[..., 0]), None


def _palette(image: Image.Image) -> NDArray[np.uint8]:  # (N, 3)
    return np.array(image.getpalette("RGB") or [], dtype=np.uint8).reshape(-1, 3)


def _whole(path: Path, values: NDArray[Any]) -> NDArray[np.int32]:
    """Returns numbers as int32. Raises InputError unless they are whole and from 0 to 2³¹ − 1, one per pixel."""
    if values.ndim != 2 or values.dtype.kind not in "biuf":
        raise InputError(f"{path}: is a mask of {values.dtype} and shape {values.shape}: save one number per pixel.")
    wrong = ~np.isfinite(values) | (values < 0) | (values > _LARGEST_VALUE)
    if values.dtype.kind == "f":
        wrong |= values != np.floor(values)
    if wrong.any():
        raise InputError(
            f"{path}: holds the value {values[wrong][0]:g}: a mask has whole numbers from 0 to {_LARGEST_VALUE}, one "
            "per class or object: save it so."
        )
    return values.astype(np.int32)


def _refusal(mode: str) -> str:
    return _REFUSED.get("I" if mode.startswith("I") else mode, f"is of kind {mode}: convert it to 8-bit RGB first")
