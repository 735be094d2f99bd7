"""Synthetic tissue, for a first run without any data."""

from collections.abc import Iterator

from mpamatch.data.instances import numbered
from mpamatch.data.kinds import Kind, Option
from mpamatch.data.prepared import Class, Item, RawSet
from mpamatch.data.synthetic import group_of, synthesize_glands
from mpamatch.errors import InputError
from mpamatch.images import default_colour

KIND = Kind(
    name="synthetic",
    help="made-up H&E tissue; takes no SOURCE",
    module=__name__,
    options=(
        Option("--images", "how many (200)", int),
        Option("--size", "their side in pixels (128)", int),
        Option("--seed", "which tissue (0)", int),
        Option("--crowded", "glands touch, as they do in much of GlaS", bool),
    ),
    recipes={"synthetic": "demo"},
    takes_source=False,
)


def raw_set(images: int = 200, size: int = 128, seed: int = 0, crowded: bool = False) -> RawSet:
    """Makes `images` squares of `size` pixels of background and gland, with numbers, the same for the same `seed`.

    Glands are apart, or touch if `crowded`.

    Raises InputError for fewer than 12 images (three patients), or a size outside 32..4096.
    """
    if images < 12:
        raise InputError(f"--images {images}: at least 12 are needed, three patients of four images.")
    if not 32 <= size <= 4096:
        raise InputError(f"--size {size}: must be from 32 to 4096 pixels.")
    if seed < 0:
        raise InputError(f"--seed {seed}: must not be negative.")
    return RawSet(
        name="synthetic",
        classes=(Class("background", default_colour(0)), Class("gland", default_colour(1))),
        items=_items(images, size, seed, crowded),
        count=images,
        microns_per_pixel=None,
        source=f"mpamatch prepare synthetic --images {images} --size {size} --seed {seed}{' --crowded' * crowded}",
        licence="none needed: computed, not photographed",
    )


def _items(images: int, size: int, seed: int, crowded: bool) -> Iterator[Item]:
    for index in range(images):
        stem = f"tissue-{index:05d}"
        image, glands = synthesize_glands(index, seed, size, crowded=crowded)
        label, numbers = (glands > 0).astype("uint8"), numbered(glands, stem)
        yield Item(stem, group_of(index), None, image, label, instances=numbers)
