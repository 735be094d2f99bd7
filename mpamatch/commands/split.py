"""`mpamatch split DATA --labelled 10%|N`: chooses which training images count as labelled."""

import argparse
from collections import Counter
from pathlib import Path

from mpamatch.data.prepared import Prepared, load_prepared
from mpamatch.data.splits import draw_split, save_split


def run(arguments: argparse.Namespace) -> int:
    """Draws a split of `arguments.data` by `arguments.labelled` and `.seed`, and writes it; returns 0."""
    prepared = load_prepared(Path(arguments.data))
    split = draw_split(prepared, arguments.labelled, arguments.seed)
    path = save_split(prepared, split)
    print(
        f"{path}: {len(split.groups)} of {split.of_groups} patients, "
        f"{len(split.images)} of {split.of_images} images labelled"
    )
    if split.missing_classes:
        print(f"no labelled image shows: {', '.join(split.missing_classes)}")
    alone = _images_alone(prepared)
    if 2 * alone > len(prepared.groups):
        print(
            f"note: {alone} of {len(prepared.groups)} images each count as a patient of their own: where several come "
            "from one patient, they may be labelled, unlabelled and in the test part at once."
        )
    return 0


def _images_alone(prepared: Prepared) -> int:
    """Counts the images that are the only one of their group."""
    return sum(images == 1 for images in Counter(prepared.groups.values()).values())
