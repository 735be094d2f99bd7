"""`mpamatch split DATA --labelled 10%|N`: which training images count as labelled."""

import argparse
from pathlib import Path

from mpamatch.data.prepared import load_prepared
from mpamatch.data.splits import draw_split, save_split


def run(arguments: argparse.Namespace) -> int:
    """`arguments`: data, labelled, seed."""
    prepared = load_prepared(Path(arguments.data))
    split = draw_split(prepared, arguments.labelled, arguments.seed)
    path = save_split(prepared, split)
    print(
        f"{path}: {len(split.groups)} of {split.of_groups} patients, "
        f"{len(split.images)} of {split.of_images} images labelled"
    )
    if split.missing_classes:
        print(f"no labelled image shows: {', '.join(split.missing_classes)}")
    return 0
