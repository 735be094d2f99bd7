"""What the prototypes of a trained run see in an image: how near each pixel is to each of them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mpamatch.device import choose_device
from mpamatch.engine.checkpoints import METHOD, encoder_built_from
from mpamatch.engine.config import load_saved
from mpamatch.engine.loop import last_checkpoint
from mpamatch.errors import InputError
from mpamatch.inference.checkpoint import load_segmenter
from mpamatch.inference.segmenter import prepare_image
from mpamatch.inference.settings import SegmenterSettings
from mpamatch.inference.tiles import Canvas, most_probable
from mpamatch.methods import Method, build_method
from mpamatch.methods.towers import TEXT
from mpamatch.models.build import build_model
from mpamatch.models.learned import check_identity, learned_state, load_learned
from mpamatch.tensors import read_tensors

MOST = 1024  # side of the part of an image that is looked at, in pixels of the scaled image: F·K floats for each


class NoPrototypesError(InputError):
    """The method of the run has no image prototypes."""


@dataclass(frozen=True)
class Look:
    """What the prototypes see in an image, at its own size.

    Attributes:
        image: (H, W, 3) u8: the image, or its middle if it is very large.
        label: (H, W) u8, class index predicted.
        cosine: (F, K, H, W) f32, of each pixel with each prototype of the last F of the classes.
        nearest: (H, W) i16, k of the nearest prototype of the predicted class; −1 if that has no prototypes.
    """

    image: np.ndarray
    label: np.ndarray
    cosine: np.ndarray
    nearest: np.ndarray


class PrototypeViewer:
    """Looks at images with network and prototypes of a run's last checkpoint, in which they belong together.

    Args:
        run: the run folder.
        device: auto (the GPU if there is one), cpu or cuda.
        text: whether the text prototypes are built too, if the method has some.

    Attributes:
        method: the trained method, without its frozen towers.
        settings: how images are scaled, normalised and cut into windows, and the names of the classes.

    Raises:
        InputError: `run` is no run folder or has no checkpoint, a frozen encoder's file has changed or gone, the method
            has no prototypes to look at, or the text encoder cannot be built or is another one than in training.
    """

    def __init__(self, run: Path, device: str = "auto", *, text: bool = False):
        self.settings: SegmenterSettings = load_segmenter(run, "cpu").settings
        self.method = _last_method(run, self.settings.class_names, text)
        self.device = choose_device(device)
        self.method.to(self.device).eval()

    def look(self, image: np.ndarray) -> Look:  # (H, W, 3) u8
        """Predicts the image and compares its pixels with the prototypes, window by window as in prediction."""
        settings = self.settings
        image = _middle(image, round(MOST / settings.scale))
        x = prepare_image(image, settings.scale, settings.mean, settings.std)
        canvas = Canvas(x, settings.window, max(1, int(settings.window * (1 - settings.overlap))))
        with torch.inference_mode():
            for at in canvas.windows:
                found, shape = self._of_window(canvas.cut(at))
                canvas.add(at, found.cpu())
            whole = canvas.result()[None]
            resized = functional.interpolate(whole, size=image.shape[:2], mode="bilinear", align_corners=False)[0]
        classes = len(settings.class_names)
        label = most_probable(resized[:classes]).numpy()
        cosine = resized[classes:].unflatten(0, shape).numpy()
        return Look(image, label, cosine, nearest_of_class(label, cosine, classes))

    def _of_window(self, window: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Computes class probabilities and cosines of a window, (C + F·K, side, side), and (F, K)."""
        x = window[None].to(self.device, next(self.method.model.parameters()).dtype)
        probability = self.method.deployed(x).logits.softmax(1)
        cosine = self.method.prototype_cosines(x)
        assert cosine is not None  # `_last_method` has looked
        flat = functional.interpolate(cosine.flatten(1, 2), size=x.shape[-2:], mode="bilinear", align_corners=False)
        return torch.cat([probability, flat], 1)[0].float(), (cosine.shape[1], cosine.shape[2])


def nearest_of_class(
    label: np.ndarray,  # (H, W) u8, class index
    cosine: np.ndarray,  # (F, K, H, W), of the last F classes
    classes: int,
) -> np.ndarray:  # (H, W) i16
    """Finds k of the prototype, among those of the pixel's class, that is nearest; −1 if the class has none."""
    first = classes - len(cosine)
    nearest = cosine.argmax(1)  # (F, H, W)
    found = np.take_along_axis(nearest, np.maximum(label.astype(np.int64) - first, 0)[None], 0)[0]
    return np.where(label < first, -1, found).astype(np.int16)


def _last_method(run: Path, class_names: tuple[str, ...], text: bool) -> Method:
    """Builds the method of a run as its last checkpoint left it, with `text` alone of its frozen towers, if that."""
    config = load_saved(run / "config.yaml")
    path = last_checkpoint(run)
    tensors, about = read_tensors(path)
    if "encoder" in about["frozen"]:
        check_identity(about["frozen"]["encoder"], path)
    brought = encoder_built_from(path) if config.model.tuning == "full" else None
    unwanted = [tower for tower in config.trains.towers if not (text and tower is TEXT)]
    off: dict[str, Any] = {tower.field: "none" for tower in unwanted if tower.encoder(config.method)}
    if hasattr(config.method, "second_opinion"):  # which may be one of a tower's; no pseudo-label is made here
        off |= {"second_opinion": "none", "opinion_of": []}
    nothing = NoPrototypesError(f"{run}: its {config.method.name} has no image prototypes to draw.")
    try:
        settings = replace(config.method, **off)
    except InputError:  # text prototypes were all it had
        raise nothing from None
    method = build_method(settings, build_model(config.model, len(class_names), brought), class_names)
    if config.engine.precision == "64":
        method.double()
    for name, identity in method.identities.items():
        if about["frozen"].get(name, identity) != identity:
            raise InputError(f"{path}: was trained on other weights of its {name} encoder than those that are here.")
    wanted = learned_state(method)
    load_learned(method, {name: tensors[METHOD + name] for name in wanted if METHOD + name in tensors}, path)
    side = 2 * method.model.encoder.multiple
    with torch.inference_mode():
        blank = torch.zeros(1, 3, side, side, dtype=next(method.model.parameters()).dtype)
        if method.eval().prototype_cosines(blank) is None:
            raise nothing
    return method


def _middle(image: np.ndarray, side: int) -> np.ndarray:
    """Cuts the middle out of an image whose sides are larger than `side`."""
    top, left = (max(0, (length - side) // 2) for length in image.shape[:2])
    return image[top : top + side, left : left + side]
