"""Synthetic tissue, for a first run without any data."""

from collections.abc import Iterator

from mpamatch.data.kinds import Kind, Option
from mpamatch.data.prepared import Class, Item, RawSet
from mpamatch.data.synthetic import group_of, synthesize
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
    ),
    recipes={"synthetic": "demo"},
    takes_source=False,
)


def raw_set(images: int = 200, size: int = 128, seed: int = 0) -> RawSet:
    """Makes `images` squares of `size` pixels of background and gland, the same for the same `seed`.

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
        items=_items(images, size, seed),
        count=images,
        microns_per_pixel=None,
        source=f"mpamatch prepare synthetic --images {images} --size {size} --seed {seed}",
        licence="none needed: computed, not photographed",
    )


def _items(images: int, size: int, seed: int) -> Iterator[Item]:
    for index in range(images):
        image, label = synthesize(index, seed, size)
        yield Item(f"tissue-{index:05d}", group_of(index), None, image, label)
