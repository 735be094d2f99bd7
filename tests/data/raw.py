"""Files of small made-up raw sets, and what `prepare` is given for them."""

import argparse
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from mpamatch.data.prepared import RawSet

SIZE = (24, 18)  # width, height


def image(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def mask(path: Path, values: list[int], dtype=np.uint8) -> Path:
    """A mask whose columns take `values` in turn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    row = np.resize(np.array(values, dtype=dtype), SIZE[0])
    Image.fromarray(np.repeat(row[None], SIZE[1], axis=0)).save(path)
    return path


def labels(raw: RawSet) -> dict[str, list[int] | None]:
    return {one.stem: None if one.label is None else np.unique(one.label).tolist() for one in raw.items}


def arguments(**given) -> argparse.Namespace:
    names = ["source", "task", "mask_values", "group_regex", "images", "size", "seed", "microns_per_pixel"]
    nothing = dict.fromkeys(names) | {"instances": False, "regroup": False}
    return argparse.Namespace(**(nothing | given))


def busi_folder(root: Path) -> Path:
    """BUSI as the archive unpacks: six images of each kind, one with two masks."""
    source = root / "Dataset_BUSI_with_GT"
    for k, kind in enumerate(("benign", "malignant", "normal")):
        for i in range(1, 7):
            image(source / kind / f"{kind} ({i}).png", 10 * k + i)
            mask(source / kind / f"{kind} ({i})_mask.png", [0] if kind == "normal" else [0, 0, 255])
    mask(source / "benign" / "benign (1)_mask_1.png", [255, 0, 0])
    return source


def kpi_drawn(seed: int) -> np.ndarray:
    """(H, W) bool: a block at a place of the seed's."""
    label = np.zeros((SIZE[1], SIZE[0]), dtype=bool)
    label[4:13, 3 + seed % 8 : 13 + seed % 8] = True
    return label


def kpi_case(folder: Path, names: list[str], ending: str = "_mask") -> None:
    for i, name in enumerate(names):
        image(folder / "img" / f"{name}_img.jpg", zlib.crc32(name.encode()))
        (folder / "mask").mkdir(exist_ok=True)
        Image.fromarray(np.uint8(255) * kpi_drawn(i)).save(folder / "mask" / f"{name}{ending}.jpg", quality=70)


def kpi_folder(root: Path) -> Path:
    """KPIs: five training cases of two groups and a test case, and a folder of slides that is not read."""
    source = root / "KPIs24"
    training = source / "KPIs24 Training Data" / "Task1_patch_level" / "data"
    for number in (116, 117, 118):
        kpi_case(training / "56Nx" / f"12_{number}", [f"56Nx_12_{number}_{i}_4096_0" for i in range(2)])
    for number in (361, 362):
        kpi_case(training / "DN" / f"11-{number}", [f"11-{number}_{i}_0_0" for i in range(2)], ending="_img")
    test = source / "KPIs24 Testing Data" / "Task1_patch_level" / "test"
    kpi_case(test / "56Nx" / "12-299", ["12-299_37_11264_1024", "12-299_38_0_0"])
    (source / "KPIs24 Training Data" / "Task2_WSI_level" / "56Nx").mkdir(parents=True)
    (source / "KPIs24 Training Data" / "Task2_WSI_level" / "56Nx" / "12-116_wsi.tiff").write_bytes(b"a slide")
    return source
