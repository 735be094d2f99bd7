"""Masks that somebody made or corrected for images of a prepared set, taken into it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mpamatch.console import with_progress
from mpamatch.data.prepared import Prepared, check_label
from mpamatch.data.sources.layout import by_key
from mpamatch.errors import InputError
from mpamatch.images import IGNORE, IGNORE_COLOUR, Colour, read_image, read_mask, read_stored_mask, write_png
from mpamatch.names import same
from mpamatch.stored import MOST_PREPARED


def find_masks(prepared: Prepared, folder: Path) -> dict[str, Path]:
    """Finds the masks in a folder by the names of the set's training images, and checks each.

    Args:
        prepared: the set.
        folder: holds masks, named as their images are, whatever their endings.

    Returns:
        Image → mask, of those that the set does not have yet.

    Raises:
        InputError: there is no such folder or it holds no mask; or a mask has no training image, cannot be read, has
            another size than its image, holds what is no class, or differs from the mask that the set has.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of masks.")
    masks = by_key(folder)
    if not masks:
        raise InputError(f"{folder}: holds no mask (PNG, TIFF, …).")
    images = {same(Path(name).stem): name for name in prepared.parts["train"]}
    found = {}
    for stem, path in with_progress(masks.items(), "reading masks", len(masks)):
        if stem not in images:
            raise InputError(f"{path}: no training image of {prepared.root} is called so: rename or remove it.")
        name = images[stem]
        label = label_of(prepared, path)
        check_label(path, read_image(prepared.image_path(name), MOST_PREPARED), label, len(prepared.classes))
        there = prepared.mask_path(name)
        if there is None:
            found[name] = path
        elif not np.array_equal(read_mask(there, MOST_PREPARED), label):
            raise InputError(f"{path}: differs from {there}, which the set has: remove one of the two.")
    return found


def take_masks(prepared: Prepared, masks: Mapping[str, Path]) -> None:
    """Writes masks that `find_masks` found into the set. Raises InputError if one cannot be read or written."""
    for name, path in masks.items():
        write_png(prepared.root / "masks" / f"{Path(name).stem}.png", label_of(prepared, path).astype(np.uint8))


def label_of(prepared: Prepared, path: Path) -> NDArray[np.integer]:  # (H, W)
    """Reads a mask as class indices: by the colours of the set's classes if it has no others, else by its numbers.

    So a mask stays right in an editor that saves colours, or sorts a palette anew.

    Raises InputError if it cannot be read, or has colours that no class has.
    """
    stored = read_stored_mask(path, MOST_PREPARED)
    values, palette = stored.values, stored.palette
    if values.ndim == 3:
        colours = values
    elif palette is not None:
        colours = palette[np.minimum(values, len(palette) - 1)]
    else:
        _check_greys(prepared, path, values)
        return values
    index = {IGNORE_COLOUR: IGNORE} | {colour: number for number, colour in enumerate(prepared.colours)}
    codes = colours.astype(np.int64) @ (1 << 16, 1 << 8, 1)
    shown, place = np.unique(codes, return_inverse=True)
    used = [(int(code) >> 16, int(code) >> 8 & 255, int(code) & 255) for code in shown]
    unknown = [colour for colour in used if colour not in index]
    if len(set(prepared.colours)) == len(prepared.colours) and not unknown:
        return np.array([index[colour] for colour in used], dtype=np.uint8)[place].reshape(codes.shape)
    if values.ndim == 2:
        return values
    known = ", ".join(f"{one.name} {_written(one.colour)}" for one in prepared.classes)
    told = _written((unknown or used)[0])
    raise InputError(f"{path}: holds the colour {told}, which no class has ({known}): paint without soft edges.")


def _check_greys(prepared: Prepared, path: Path, values: NDArray[np.integer]) -> None:
    """Raises InputError if a number that is no class is the grey that a class is painted in: either may be meant."""
    for one in prepared.classes:
        grey = one.colour[0]
        if len(set(one.colour)) == 1 and grey >= len(prepared.classes) and (values == grey).any():
            raise InputError(
                f"{path}: holds {grey}, the grey of the class {one.name}: save it with its palette, or the classes' "
                f"numbers 0 to {len(prepared.classes) - 1}."
            )


def _written(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
