"""The pipeline that bench_feed compares with: PIL and a DataLoader, the operations in the order of UniMatch's loader.

Every file is opened with PIL, resized as a whole, padded to the crop, cropped, flipped; strong views are jittered,
greyed and blurred as PIL images; ToTensor and Normalize come last. Python's and torch's global generators draw, so no
step can be repeated. It hands over the same Batch as the feeds of the package, and boxes where UniMatch makes maps.
"""

import random
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms

from mpamatch.batch import Batch, Labelled, Unlabelled
from mpamatch.data.config import DataConfig
from mpamatch.data.prepared import Prepared

IGNORE = 255
PADDED = 254  # stands for padding until the valid map is made
JITTER = transforms.ColorJitter(0.5, 0.5, 0.5, 0.25)
GREY = transforms.RandomGrayscale(0.2)


class PilFeed:
    """Batches as the configuration says: labelled images, and a weak and two strong views of unlabelled ones."""

    def __init__(
        self,
        prepared: Prepared,
        labelled: tuple[str, ...],
        unlabelled: tuple[str, ...],
        config: DataConfig,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ):
        self.config = config
        self.labelled = LabelledImages(prepared, labelled, config, mean, std)
        self.unlabelled = UnlabelledImages(prepared, unlabelled, config, mean, std)

    def batches(self, stop: int) -> Iterator[Batch]:
        """As many workers for each of the two loaders as `data.workers` says; 0 loads in this process."""
        of_labelled = _loader(self.labelled, self.config.batch, stop, self.config.workers)
        of_unlabelled = _loader(self.unlabelled, self.config.unlabelled_batch, stop, self.config.workers)
        for labelled, unlabelled in zip(of_labelled, of_unlabelled, strict=True):
            weak, strong1, strong2, valid, box1, box2 = unlabelled
            yield Batch(Labelled(*labelled), Unlabelled(weak, strong1, strong2, valid, box1, box2, None))


class Images(Dataset):
    """What both kinds of image have in common."""

    def __init__(
        self,
        prepared: Prepared,
        names: tuple[str, ...],
        config: DataConfig,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ):
        self.prepared, self.names, self.config = prepared, names, config
        self.to_tensor = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])

    def __len__(self) -> int:
        return len(self.names)

    def placed(self, image: Image.Image, label: Image.Image, padding: int) -> tuple[Image.Image, Image.Image]:
        """Both resized, padded to the right and below (the label with `padding`), cropped and flipped alike."""
        low, high = (self.config.scale * zoom for zoom in self.config.zoom)
        long_side = random.randint(int(low * max(image.size)), int(high * max(image.size)))
        factor = long_side / max(image.size)
        size = (round(factor * image.width), round(factor * image.height))
        image, label = image.resize(size, Image.Resampling.BILINEAR), label.resize(size, Image.Resampling.NEAREST)
        crop = self.config.crop
        missing = (0, 0, max(0, crop - size[0]), max(0, crop - size[1]))
        image, label = ImageOps.expand(image, missing, fill=0), ImageOps.expand(label, missing, fill=padding)
        left, top = random.randint(0, image.width - crop), random.randint(0, image.height - crop)
        box = (left, top, left + crop, top + crop)
        image, label = image.crop(box), label.crop(box)
        if random.random() < 0.5:
            image, label = ImageOps.mirror(image), ImageOps.mirror(label)
        return image, label


class LabelledImages(Images):
    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:  # (3, crop, crop) f32, (crop, crop) u8
        name = self.names[index]
        mask = self.prepared.mask_path(name)
        assert mask is not None
        image = Image.open(self.prepared.image_path(name)).convert("RGB")
        image, label = self.placed(image, Image.open(mask), IGNORE)
        return self.to_tensor(image), torch.from_numpy(np.array(label))


class UnlabelledImages(Images):
    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        """weak, strong1, strong2 (3, crop, crop) f32, valid (crop, crop) bool, box1, box2 (4,) i32."""
        image = Image.open(self.prepared.image_path(self.names[index])).convert("RGB")
        weak, label = self.placed(image, Image.new("L", image.size), PADDED)
        strong = (self.to_tensor(strongly_coloured(weak)) for _ in range(2))
        valid = torch.from_numpy(np.array(label)) != PADDED
        boxes = (torch.tensor(cutmix_box(self.config.crop), dtype=torch.int32) for _ in range(2))
        return (self.to_tensor(weak), *strong, valid, *boxes)


def strongly_coloured(image: Image.Image) -> Image.Image:
    """Jitter with p .8, grey with p .2, blur of σ U(.1, 2) with p .5."""
    if random.random() < 0.8:
        image = JITTER(image)
    image = GREY(image)
    if random.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(np.random.uniform(0.1, 2.0)))
    return image


def cutmix_box(crop: int) -> tuple[int, int, int, int]:
    """top, left, bottom, right with p .5, area 2–40 %, ratio .3–3.3; else an empty box."""
    if random.random() > 0.5:
        return (0, 0, 0, 0)
    area = np.random.uniform(0.02, 0.4) * crop * crop
    while True:
        ratio = np.random.uniform(0.3, 1 / 0.3)
        height, width = int(np.sqrt(area * ratio)), int(np.sqrt(area / ratio))
        top, left = np.random.randint(0, crop), np.random.randint(0, crop)
        if top + height <= crop and left + width <= crop:
            return (top, left, top + height, left + width)


def _loader(images: Images, batch: int, batches: int, workers: int) -> DataLoader:
    sampler = RandomSampler(images, replacement=True, num_samples=batch * batches)
    return DataLoader(images, batch_size=batch, sampler=sampler, num_workers=workers, drop_last=True)
