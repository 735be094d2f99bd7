"""A trained network on images of any size: scaling, normalisation, windows, precision."""

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from mpamatch.errors import InputError
from mpamatch.images import pixels_from
from mpamatch.inference.objects import label_and_objects
from mpamatch.inference.settings import SegmenterSettings
from mpamatch.inference.tiles import Canvas, Looked, in_threads, look_each, most_probable, pad_to_window, probabilities

if TYPE_CHECKING:
    from mpamatch.inference.slides import SlideResult

# Images stay in host memory, and only their windows visit the GPU, once their probabilities would take more
# floats than this: 2^28 are 1 GiB, with two classes a slide region of 11,500² pixels.
LARGEST_ON_DEVICE = 2**28

MOST_AT_A_TIME = 8  # batches on a CPU: each holds its activations, 370 MB for ViT-L and 8 windows of 256²


class Segmenter:
    """Predicts labels and class probabilities of images of any size.

    It runs on the device of the model's parameters, in evaluation mode; each submodule's mode is restored after a call,
    so that a model can be validated while it is being trained.

    Attributes:
        model: takes (B, 3, window, window) float32 and returns an object whose `logits` are (B, C, window, window).
        settings: how images are scaled, normalised and cut into windows, and the names of the classes.
    """

    def __init__(self, model: nn.Module, settings: SegmenterSettings) -> None:
        self.model, self.settings = model, settings

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes; the values of a label are indices into them."""
        return self.settings.class_names

    def with_overlap(self, overlap: float | None) -> "Segmenter":
        """Returns it with another overlap of windows.

        Args:
            overlap: share of a side that windows have in common, 0 <= overlap < 1; None: as it is.

        Returns:
            A Segmenter with the same model.
        """
        return self if overlap is None else Segmenter(self.model, replace(self.settings, overlap=overlap))

    @property
    def takes_image_labels(self) -> bool:
        """Whether the network can be told the image-level label of an image."""
        return bool(getattr(self.model, "takes_image_labels", False))

    @property
    def tells_objects_apart(self) -> bool:
        """Whether the network has learned the border of objects (`model.boundary`)."""
        return bool(getattr(self.model, "border_width", 0))

    @property
    def device(self) -> torch.device:
        """The device of the model's parameters; the CPU for a model without any."""
        parameter = next(self.model.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    @overload
    def probabilities(self, image: np.ndarray, present: np.ndarray | None = None) -> Tensor: ...

    @overload
    def probabilities(self, image: Sequence[np.ndarray], present: np.ndarray | None = None) -> list[Tensor]: ...

    def probabilities(
        self,
        image: np.ndarray | Sequence[np.ndarray],  # (H, W, 3) uint8, or several of any sizes
        present: np.ndarray | None = None,  # (C,) float32
    ) -> Tensor | list[Tensor]:
        """Computes class probabilities at the image's own size. Windows of several images share batches.

        Args:
            image: one image, or a list of them.
            present: the image-level label of all of them, 1 for the classes they are known to show; for a network that
                `takes_image_labels`.

        Returns:
            (C, H, W) float32 for one image, a list of these for several; on the model's device, or in host memory for
            very large images.

        Raises:
            InputError: an image is not (H, W, 3) uint8, or the model has another number of classes.
        """
        if isinstance(image, np.ndarray):
            return self.probabilities([image], present)[0]
        home = self._home(sum(math.prod(scaled(one.shape[:2], self.settings.scale)) for one in image))
        return list(self._each(image, home, present))

    def with_borders(
        self,
        images: Iterable[np.ndarray],  # each (H, W, 3) uint8, of any size
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Computes the probabilities of the classes and of the border in each image, as `labels` goes through them.

        Args:
            images: as `probabilities` takes them; for a network that `tells_objects_apart`.

        Yields:
            (C, H, W) and (H, W) float32, both 0 to 1.

        Raises:
            InputError: as `probabilities` does, or the network has learned no border.
        """
        if not self.tells_objects_apart:
            raise InputError("the model has learned no border of objects: train it with --model.boundary true.")
        return ((found[:-1], found[-1]) for found in self._each(images, border=True))

    def labels(
        self,
        images: Iterable[np.ndarray],  # each (H, W, 3) uint8, of any size
    ) -> Iterator[Tensor]:
        """Predicts the label of each image, in order, each as soon as it is done.

        Batches take the windows of one image after the other, so that small images fill them. Images are taken ahead of
        the labels, as many as fill the batches under way.

        Args:
            images: as `probabilities` takes them.

        Yields:
            (H, W) uint8 class index, on the model's device, or in host memory for very large images.

        Raises:
            InputError: as `probabilities` does.
        """
        return (most_probable(probability) for probability in self._each(images))

    def probabilities_and_features(
        self,
        images: Iterable[np.ndarray],  # each (H, W, 3) uint8, of any size
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Computes class probabilities of each image and what the encoder makes of it, in order, as `labels` does.

        Args:
            images: as `probabilities` takes them.

        Yields:
            (C, H, W) float32, and the encoder's deepest map averaged over the image, (D,) float32: in images that are
            larger than the window over all windows.

        Raises:
            InputError: as `probabilities` does, or the network has no encoder whose maps could be taken.
        """
        encoder = getattr(self.model, "encoder", None)
        if encoder is None:
            raise InputError("this network has no encoder whose maps could tell how alike images are: name a run.")
        own = threading.local()  # batches run in threads

        def keep(_module: nn.Module, _inputs: Any, maps: tuple[Tensor, ...]) -> None:
            own.deepest = maps[-1]

        def look(windows: Tensor) -> Looked:
            found = probabilities(self._scores, windows)
            return found, own.deepest.float().mean((2, 3)).to(windows.device)

        handle = encoder.register_forward_hook(keep)
        try:
            for canvas, probability in self._looked(look, images):
                assert canvas.feature is not None
                yield probability, canvas.feature / len(canvas.windows)
        finally:
            handle.remove()

    def _each(
        self,
        images: Iterable[np.ndarray],
        home: torch.device | None = None,
        present: np.ndarray | None = None,
        border: bool = False,
    ) -> Iterator[Tensor]:
        """Computes class probabilities of each image, summed up on `home` or, if that is None, where there is room.

        If `border`, the border's are the last channel.
        """
        told = () if present is None else (torch.from_numpy(present).to(self.device),)
        scores = partial(self._scores, told=told, border=border)
        looked = self._looked(lambda windows: (probabilities(scores, windows), None), images, home)
        return (probability for _, probability in looked)

    def _looked(
        self, look: Callable[[Tensor], Looked], images: Iterable[np.ndarray], home: torch.device | None = None
    ) -> Iterator[tuple[Canvas, Tensor]]:
        """Looks at the windows of each image; yields its canvas and its class probabilities."""
        sizes: deque[tuple[int, int]] = deque()

        def prepared() -> Iterator[Tensor]:
            for image in images:
                ready = prepare_image(image, self.settings.scale, self.settings.mean, self.settings.std)
                sizes.append((image.shape[0], image.shape[1]))
                yield ready.to(home or self._home(ready.shape[1] * ready.shape[2]))

        canvases = look_each(
            look,
            prepared(),
            window=self.settings.window,
            overlap=self.settings.overlap,
            batch=self.settings.batch,
            threads=self._threads,
        )
        with evaluating(self.model):
            for canvas in canvases:
                yield canvas, self._at_own_size(canvas.result(), *sizes.popleft())

    def predict(
        self,
        image: np.ndarray | Image.Image | str | Path,  # (H, W, 3) uint8, a picture of Pillow, or an image file
    ) -> np.ndarray:
        """Predicts the label of an image.

        Args:
            image: its pixels, a picture of Pillow (turned as its EXIF orientation says), or the path of a file, of any
                size.

        Returns:
            (H, W) uint8: the index of the most probable class of every pixel.

        Raises:
            InputError: a file or picture cannot be read as an image, `image` is none of these, or as `probabilities`
                does.
        """
        return most_probable(self.probabilities(pixels_from(image))).cpu().numpy()

    def predict_objects(
        self,
        image: np.ndarray | Image.Image | str | Path,  # as `predict` takes it
    ) -> tuple[np.ndarray, np.ndarray]:
        """Predicts the label of an image and numbers the objects in it.

        Args:
            image: as `predict` takes it.

        Returns:
            (H, W) uint8, the label as `predict` gives it, and (H, W) int32: 1, 2, 3, … in each object, 0 in the
            background and in specks (of fewer than 20 pixels of the scaled image).

        Raises:
            InputError: as `predict` does, or the network has learned no border.
        """
        probability, border = next(self.with_borders([pixels_from(image)]))
        return label_and_objects(probability, border, self.settings.scale)

    def predict_slide(
        self,
        path: str | Path,
        out: str | Path,
        *,
        mpp: float | None = None,
        model_mpp: float | None = None,
        tissue: str = "auto",
        overlap: float | None = None,
        origin: str = "qupath",
        simplify: float = 1.0,
    ) -> "SlideResult":
        """Predicts a whole slide: mask, regions for QuPath, tissue and a thumbnail.

        The same call goes on where one was stopped, to the same bytes.

        Args:
            path: the slide.
            out: folder for its results: new, empty, or that of the same call.
            mpp: µm per pixel of the slide, if its file names none.
            model_mpp: µm per pixel of the images that the model was trained on, if the run does not say it.
            tissue: auto, all, or a GeoJSON file of where to look.
            overlap: share of a window that neighbours have in common; None: as in the run's validation.
            origin: where coordinates of outlines begin: qupath (where QuPath shows the slide from) or slide.
            simplify: tolerance of outlines in pixels of the mask; 0 keeps every corner.

        Returns:
            A SlideResult: `label` reads the mask lazily (`result.label[1000:2000, :512]`), `mpp` is its µm per pixel,
            `origin` where outlines count from.

        Raises:
            InputError: the slide or an option cannot be used, or `out` holds something else.
        """
        from mpamatch.inference.slides import SlideOptions, predict_slide  # it needs the extra `slides`

        options = SlideOptions(mpp, model_mpp, tissue, overlap, origin, simplify)
        return predict_slide(self, Path(path), Path(out), options)

    def window_probabilities(
        self,
        batches: Iterable[Sequence[np.ndarray]],  # of each batch the windows, (window, window, 3) uint8
    ) -> Iterator[Tensor]:  # (B, C, window, window) float32 each
        """Computes class probabilities of windows that were cut already, in batches as they are given, in order.

        Windows are taken as they are, without scaling; if they are smaller, they are padded as images are.

        Args:
            batches: lists of windows of one size.

        Yields:
            The probabilities of each batch, on the model's device.

        Raises:
            InputError: the model has another number of classes.
        """
        settings = self.settings

        def run(windows: Sequence[np.ndarray]) -> Tensor:
            pixels = torch.from_numpy(np.stack(windows)).permute(0, 3, 1, 2).to(self.device).contiguous()
            ready = normalised(pixels, settings.mean, settings.std)
            if min(ready.shape[2:]) < settings.window:
                ready = torch.stack([pad_to_window(one, settings.window) for one in ready])
            return probabilities(self._scores, ready)

        with evaluating(self.model):
            yield from in_threads(run, iter(batches), self._threads, always=True)

    def _scores(
        self, windows: Tensor, told: tuple[Tensor, ...] = (), border: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Runs the model on its device, in the precision of the settings.

        Returns its logits, with the border's if `border`; `told`: the image-level label, if any.
        """
        device = self.device
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.settings.precision == "bf16"):
            x = windows.to(device, torch.float64 if self.settings.precision == "64" else windows.dtype)
            found = self.model(x, *told)
        logits = found.logits
        if logits.shape[1] != len(self.class_names):
            raise InputError(
                f"the model gives {logits.shape[1]} classes, but {len(self.class_names)} are named: "
                f"{', '.join(self.class_names)}."
            )
        return (logits, found.border) if border else logits

    @property
    def _threads(self) -> int:
        """How many batches run at a time: on a CPU one per thread, as threads that share a batch wait for each other.

        On two cores of an AMD EPYC with other work on them, ViT-L takes 1.7 s an image of 256² instead of 3.1, the
        small model 6 ms a window of 112² instead of 13.
        """
        return min(torch.get_num_threads(), MOST_AT_A_TIME) if self.device.type == "cpu" else 1

    def _home(self, pixels: int) -> torch.device:
        """Chooses the device that keeps images of so many pixels in all, and their probabilities."""
        return self.device if pixels * len(self.class_names) <= LARGEST_ON_DEVICE else torch.device("cpu")

    def _at_own_size(
        self,
        probability: Tensor,  # (C, h, w)
        height: int,
        width: int,
    ) -> Tensor:  # (C, height, width)
        """Resizes probabilities of the scaled image to the size of the image itself."""
        if probability.shape[1:] == (height, width):
            return probability
        probability = probability.to(self._home(height * width))
        shrinks = self.settings.scale > 1  # if it grows, antialiasing only takes twice as long
        return F.interpolate(probability[None], size=(height, width), mode="bilinear", antialias=shrinks)[0]


def scaled(size: Sequence[int], scale: float) -> list[int]:
    """Computes height and width of an image after scaling, at least one pixel each."""
    return [max(1, round(side * scale)) for side in size]


def prepare_image(
    image: np.ndarray,  # (H, W, 3) uint8
    scale: float,
    mean: Sequence[float],  # (3,) of RGB in 0..1
    std: Sequence[float],  # (3,)
) -> Tensor:  # (3, round(H·scale), round(W·scale)) float32
    """Makes an image what a model sees: resizes it by `scale` (bilinear, antialiased, 8 bits) and normalises it.

    Raises InputError for an image that is not (H, W, 3) uint8.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise InputError(
            f"image {image.shape} {image.dtype}: must be (H, W, 3) uint8 with at least one pixel, RGB from 0 to 255."
        )
    # Torch takes no read-only or negatively strided array (a flipped view): these alone are copied.
    writable = image if image.flags.writeable and min(image.strides) > 0 else image.copy()
    pixels = torch.from_numpy(writable).permute(2, 0, 1)
    size = scaled(image.shape[:2], scale)
    if size != list(image.shape[:2]):
        pixels = F.interpolate(pixels[None], size=size, mode="bilinear", antialias=True)[0]
    return normalised(pixels.contiguous(), mean, std)


def normalised(
    pixels: Tensor,  # (…, 3, H, W) uint8
    mean: Sequence[float],
    std: Sequence[float],
) -> Tensor:  # float32
    """Subtracts the mean and divides by the deviation, both of RGB in 0..1."""
    centre = 255 * torch.tensor(mean, device=pixels.device)[:, None, None]
    spread = 255 * torch.tensor(std, device=pixels.device)[:, None, None]
    return pixels.float().sub_(centre).div_(spread)


def to_predict(model: nn.Module, device: torch.device) -> nn.Module:
    """Moves `model` to `device`, in evaluation mode and channels-last; returns it.

    Channels-last, on one core of an AMD EPYC the small model takes 6.5 ms a window of 112² in batches of 8 instead of
    7.4 (in training it loses).
    """
    return model.to(device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]


def precision_on(device: torch.device, precision: str) -> str:
    """Returns `precision`, but 32 for bf16 on a CPU without AVX-512, which would imitate it.

    On one core of an AMD EPYC the small model takes 141 ms a window of 112² so instead of 9, ViT-L 53 s an image of
    256² instead of 2.3.
    """
    imitates = (
        precision == "bf16" and device.type == "cpu" and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")
    )
    return "32" if imitates else precision


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts the model into evaluation mode and afterwards each submodule back into its own (frozen ones may differ)."""
    modes = [(module, module.training) for module in model.modules()]
    if not any(training for _, training in modes):  # setting what is set already takes 2 ms, a small network's batch 50
        yield
        return
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
