"""What each prototype of a run stands for: the real patches nearest to it, its share of its class, its neighbours."""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpamatch.data.prepared import Prepared
from mpamatch.engine.prototype_pictures import Look, NoPrototypesError, PrototypeViewer
from mpamatch.errors import InputError
from mpamatch.images import read_image
from mpamatch.ops.unit import unit
from mpamatch.stored import MOST_PREPARED

MOST_IMAGES = 48  # that are looked at
NEAREST = 4  # patches of a prototype, each of another image
PATCH = 40  # side of a patch, in pixels as the network sees them: ten cells of the embedding


@dataclass(frozen=True)
class Patch:
    """A patch of a real image around the pixel that is nearest to a prototype among those of its class.

    Attributes:
        image: the name of the image.
        cosine: of that pixel with the prototype.
        pixels: (side, side, 3) u8.
    """

    image: str
    cosine: float
    pixels: NDArray[np.uint8]


@dataclass(frozen=True)
class Gallery:
    """The prototypes of a run: K of each of the last F of its C classes.

    Attributes:
        classes: names of the F classes.
        images: how many images were looked at, and of how many groups.
        groups: see `images`.
        pixels: (F, K), how many pixels predicted as the class are nearest to each prototype.
        patches: F × K lists of at most NEAREST patches, nearest first.
        similarity: (F·K, F·K) cosines of the prototypes with each other.
        text: (F, K, C) cosines with the text prototypes; None without any.
        why_no_text: why there is no `text` although the run was trained with text prototypes; else "".
        example: what they see in one image.
        example_name: the name of that image.
    """

    classes: tuple[str, ...]
    images: int
    groups: int
    pixels: NDArray[np.int64]
    patches: list[list[list[Patch]]]
    similarity: NDArray[np.float64]
    text: NDArray[np.float64] | None
    why_no_text: str
    example: Look
    example_name: str

    @property
    def shares(self) -> NDArray[np.float64]:  # (F, K)
        """The share of its class's pixels that each prototype is nearest to; 0 for a class that was not predicted."""
        return self.pixels / np.maximum(self.pixels.sum(1, keepdims=True), 1)


@dataclass
class _Counts:
    """What is added up over images, for F·K prototypes."""

    pixels: NDArray[np.int64]
    patches: dict[tuple[int, int], list[Patch]] = field(default_factory=lambda: defaultdict(list))


def gather_prototypes(
    run: Path, prepared: Prepared, example: str, *, device: str = "auto", most: int = MOST_IMAGES
) -> Gallery | None:
    """Looks at training images with the prototypes of a run's last checkpoint.

    Args:
        run: the run folder.
        prepared: the set whose training images are looked at, `most` of them, of as many groups as can be.
        example: the name of the image that `Gallery.example` is about.
        device: auto, cpu or cuda.
        most: how many images.

    Returns:
        The gallery; None if the method has no image prototypes.

    Raises:
        InputError: the checkpoint or an image cannot be read.
    """
    opened = _viewer(run, device)
    if opened is None:
        return None
    viewer, why = opened
    vectors = viewer.method.prototype_vectors()
    assert vectors is not None  # it has cosines with them
    names = spread_over_groups(prepared, most)
    counts = _Counts(np.zeros(vectors.shape[:2], dtype=np.int64))
    for name in names:
        _add(counts, name, viewer.look(read_image(prepared.image_path(name), MOST_PREPARED)), viewer)
    with torch.inference_mode():
        text = viewer.method.prototype_text_cosines()
    classes, per_class = vectors.shape[:2]
    return Gallery(
        classes=viewer.settings.class_names[-classes:],
        images=len(names),
        groups=len({prepared.groups[name] for name in names}),
        pixels=counts.pixels,
        patches=[[counts.patches[c, k] for k in range(per_class)] for c in range(classes)],
        similarity=_cosines(vectors),
        text=None if text is None else text.double().cpu().numpy(),
        why_no_text=why,
        example=viewer.look(read_image(prepared.image_path(example), MOST_PREPARED)),
        example_name=example,
    )


def spread_over_groups(prepared: Prepared, most: int) -> list[str]:
    """Chooses training images: the first of every group, then the second of every group, and so on."""
    by_group: dict[str, list[str]] = defaultdict(list)
    for name in prepared.parts["train"]:
        by_group[prepared.groups[name]].append(name)
    place = {name: (number, group) for group, names in by_group.items() for number, name in enumerate(names)}
    return sorted(sorted(place, key=lambda name: place[name])[:most])


def _viewer(run: Path, device: str) -> tuple[PrototypeViewer, str] | None:
    """Opens the prototypes, with text if that can be had, and says why not; None if there are no image prototypes."""
    try:
        return PrototypeViewer(run, device, text=True), ""
    except NoPrototypesError:
        return None
    except InputError as error:  # the text encoder may be missing here; anything else is met again
        return PrototypeViewer(run, device), str(error)


def _add(counts: _Counts, name: str, look: Look, viewer: PrototypeViewer) -> None:
    """Counts the pixels of an image by prototype and keeps its nearest patch of each."""
    classes = len(viewer.settings.class_names)
    features, per_class = look.cosine.shape[:2]
    side = round(PATCH / viewer.settings.scale)
    for c in range(features):
        of_class = look.label == classes - features + c
        for k in range(per_class):
            mine = of_class & (look.nearest == k)
            pixels = int(mine.sum())
            if not pixels:
                continue
            counts.pixels[c, k] += pixels
            cosine = np.where(mine, look.cosine[c, k], -np.inf)
            row, column = np.unravel_index(int(cosine.argmax()), cosine.shape)
            patch = Patch(name, float(cosine.max()), _cut(look.image, int(row), int(column), side))
            kept = sorted([*counts.patches[c, k], patch], key=lambda one: -one.cosine)
            counts.patches[c, k] = kept[:NEAREST]


def _cut(image: NDArray[np.uint8], row: int, column: int, side: int) -> NDArray[np.uint8]:
    """Cuts a square of `side` around a pixel, moved to lie inside of the image; smaller if the image is."""
    height, width = image.shape[:2]
    top = min(max(0, row - side // 2), max(0, height - side))
    left = min(max(0, column - side // 2), max(0, width - side))
    return image[top : top + side, left : left + side].copy()


def _cosines(vectors: Tensor) -> NDArray[np.float64]:  # (F, K, D) -> (F·K, F·K)
    flat = unit(vectors.detach().double().flatten(0, 1))
    return (flat @ flat.T).cpu().numpy()


def summarised(gallery: Gallery) -> dict[str, Any]:
    """Returns the numbers of a gallery, ready for JSON."""
    return {
        "classes": list(gallery.classes),
        "per_class": gallery.pixels.shape[1],
        "images": gallery.images,
        "groups": gallery.groups,
        "share": dict(zip(gallery.classes, gallery.shares.tolist(), strict=True)),
        "patches": {
            name: [[{"image": one.image, "cosine": one.cosine} for one in nearest] for nearest in of_class]
            for name, of_class in zip(gallery.classes, gallery.patches, strict=True)
        },
        "similarity": gallery.similarity.tolist(),
        "text_similarity": None if gallery.text is None else gallery.text.tolist(),
        "why_no_text": gallery.why_no_text,
        "example": gallery.example_name,
    }
