"""A reader of the images and labels of a prepared set that keeps as many as its memory holds."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mpamatch.data.instances import border_of, read_instances
from mpamatch.data.prepared import Prepared, check_label
from mpamatch.errors import InputError
from mpamatch.images import read_image, read_mask
from mpamatch.stored import MOST_PREPARED

Array = TypeVar("Array", bound=NDArray)


class ImageCache:
    """Reads images and labels by name and keeps them, decoded, until its memory is full.

    Args:
        prepared: the set.
        cache_mb: memory for decoded arrays, in MiB; 0 keeps none.
    """

    def __init__(self, prepared: Prepared, cache_mb: int):
        self.prepared, self.room = prepared, cache_mb << 20
        self.kept: dict[tuple[str, str], NDArray] = {}

    def image(self, name: str) -> NDArray[np.uint8]:  # (H, W, 3)
        """Reads an image. Raises InputError, as `read_image` does, if it cannot be read."""
        return self._remember(("image", name), lambda: read_image(self.prepared.image_path(name), MOST_PREPARED))

    def keeps(self, name: str, size: int) -> bool:
        """Tells whether an image of `size` bytes is in memory or will be once it is read."""
        return ("image", name) in self.kept or size <= self.room

    def labelled(self, name: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:  # (H, W, 3), (H, W)
        """Reads image and label. Raises InputError if there is no mask or it does not fit the image or the classes."""
        image = self.image(name)
        return image, self._remember(("label", name), lambda: self._label(name, image))

    def bordered(
        self, name: str, width: float
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:  # (H, W, 3), (H, W), (H, W)
        """Reads image and label, and marks the border of its objects as `border_of` does.

        Raises InputError as `labelled` does, or if it has no numbers of objects, or they do not fit the label.
        """
        image, label = self.labelled(name)
        border = self._remember((f"border {width}", name), lambda: border_of(self.instances(name, label), label, width))
        return image, label, border

    def instances(self, name: str, label: NDArray[np.uint8]) -> NDArray[np.uint16]:  # (H, W)
        """Reads the numbers of the objects in a label. Raises InputError if there are none or they do not fit it."""
        path = self.prepared.instances_path(name)
        if path is None:
            raise InputError(
                f"{self.prepared.image_path(name)}: has no numbers of objects (instances/{Path(name).stem}.png)."
            )
        return read_instances(path, label)

    def _label(self, name: str, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        mask = self.prepared.mask_path(name)
        if mask is None:
            raise InputError(f"{self.prepared.image_path(name)}: counts as labelled but has no mask.")
        label = read_mask(mask, MOST_PREPARED)
        check_label(mask, image, label, len(self.prepared.classes))
        return label.astype(np.uint8)

    def _remember(self, key: tuple[str, str], read: Callable[[], Array]) -> Array:
        if key in self.kept:
            return self.kept[key]  # type: ignore[return-value]
        array = read()
        if array.nbytes <= self.room:
            self.room -= array.nbytes
            self.kept[key] = array
        return array
