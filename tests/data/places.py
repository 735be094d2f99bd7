"""Small sets whose images tell where each of their pixels comes from, feeds on them, and files to stumble over."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mpamatch.batch import Batch
from mpamatch.data.config import DataConfig
from mpamatch.data.feeds import Feed
from mpamatch.data.feeds.torchvision import TorchvisionFeed
from mpamatch.data.prepared import Class, Prepared
from mpamatch.errors import InputError

HEIGHT, WIDTH, CROP = 40, 56, 32
NAMES = tuple(f"{letter}.png" for letter in "abcdefghijk")
SHARED = DataConfig(crop=CROP, batch=4, unlabelled_batch=8, zoom=[1.0, 1.0], cache_mb=16)


def write(root: Path, name: str, image: np.ndarray, label: np.ndarray | None) -> None:
    for folder in ("images", "masks"):
        (root / folder).mkdir(exist_ok=True)
    Image.fromarray(image).save(root / "images" / name)
    if label is not None:
        Image.fromarray(label).save(root / "masks" / name)


def prepared_at(root: Path, classes: int = 5) -> Prepared:
    return Prepared(
        root=root,
        name="set",
        classes=tuple(Class(f"class {index}", (index, 0, 0)) for index in range(classes)),
        microns_per_pixel=None,
        source="",
        licence="",
        parts={"train": NAMES, "validation": (), "test": ()},
        groups={name: name for name in NAMES},
        note="",
    )


def label_of(rows: np.ndarray, columns: np.ndarray, number: np.ndarray | int) -> np.ndarray:
    """The class that stands at a place of image `number`: five classes and some ignored pixels."""
    value = (rows * 7 + columns * 3 + number) % 11
    return np.where(value < 5, value, np.where(value < 9, value - 4, 255)).astype(np.uint8)


def make_places(root: Path) -> Prepared:
    """Red tells the row, green the column, blue ten times the number of the image; the label follows from them."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    for number, name in enumerate(NAMES):
        image = np.stack([rows, columns, np.full_like(rows, 10 * number)], axis=-1).astype(np.uint8)
        write(root, name, image, label_of(rows, columns, number))
    return prepared_at(root)


def feed_of(prepared: Prepared, config: DataConfig = SHARED, kind: type[Feed] = TorchvisionFeed, **changes: Any) -> Any:
    usual: dict[str, Any] = {
        "labelled": NAMES[:5],
        "unlabelled": NAMES[5:],
        "seed": 0,
        "strong_views": 2,
        "channels": 6,
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
    }
    return kind(prepared, config=config, **(usual | changes))


def tensors(batch: Batch) -> list[Tensor]:
    assert batch.unlabelled is not None
    return [t for t in (*batch.labelled, *batch.unlabelled) if t is not None]


def assert_same(a: Batch, b: Batch) -> None:
    assert len(tensors(a)) == len(tensors(b))
    for one, other in zip(tensors(a), tensors(b), strict=True):
        assert torch.equal(one, other)


def told(image: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, column and number of the image that the colours of `places` tell."""
    values = (image * 255).round().numpy().astype(int)
    return values[0], values[1], values[2] // 10


def assert_one_sentence(error: InputError, words: Sequence[str]) -> None:
    for word in words:
        assert word in str(error)
    assert "\n" not in str(error)
    assert str(error).endswith((".", "?"))


def spoil(root: Path, what: str) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    label = np.zeros((64, 64), dtype=np.uint8)
    if what == "index":
        label[5, 5] = 5
    write(root, "bad.png", image, label[:50] if what == "size" else None if what == "no mask" else label)
    if what == "truncated":
        path = root / "images" / "bad.png"
        path.write_bytes(path.read_bytes()[:3000])
