"""The DALI graph of a list of images: file names and draws in, views and labels out.

Every random number comes in as an argument and the graph only applies it, on the CPU and on a GPU alike. Images are
(H, W, 3) and labels (H, W, 1) u8; views are f32 in [0, 1] until they are normalised.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali import math as dali_math
from nvidia.dali.pipeline import Pipeline

from mpamatch.data.augment import DENSITY_FLOOR, STAINS, UNMIX, blur_radius
from mpamatch.data.draws import ColourDraw, Geometry
from mpamatch.images import IGNORE

GREY = np.array([0.2989, 0.587, 0.114])  # torchvision's weights
SAME, ALONG = np.eye(3), np.full((3, 3), 1 / 3)  # of colours; ALONG is the projection to the grey axis
ACROSS = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)  # and around it, a quarter turn
STAIN_ROWS, UNMIX_ROWS = STAINS.numpy().astype(np.float64), UNMIX.numpy().astype(np.float64)
BARE = 10.0  # exp(−BARE · concentration) is how bare of a stain a pixel is, as in augment

Inputs = dict[str, tuple[Any, int]]  # name of an input → its dtype and the dimensions of one sample
IMAGE: Inputs = {
    "path": (types.UINT8, 1),
    "raw": (types.UINT8, 3),  # the region itself, if the ordinary reader has decoded the image
    "is_raw": (types.BOOL, 0),
    "start": (types.INT32, 1),  # top and left of the region
    "inside": (types.INT32, 1),  # height and width of its part inside the image
    "padded": (types.BOOL, 0),  # whether a part lies outside
    "rows_from": (types.INT32, 0),  # from here on the rows are reflected below the image
    "columns_from": (types.INT32, 0),
    "mirrored": (types.INT32, 0),
}
QUARTERS: Inputs = {"transposed": (types.BOOL, 0), "upended": (types.INT32, 0)}  # of quarter turns, natural has none
LABEL: Inputs = {
    "mask_path": (types.UINT8, 1),
    "raw_mask": (types.UINT8, 3),
    "side": (types.INT32, 1),  # of the region, twice
}
_EVERY: Inputs = {
    "mix": (types.FLOAT, 2),
    "of_mean": (types.FLOAT, 1),
    "blurred": (types.BOOL, 0),
    "sigma": (types.FLOAT, 0),
    "window": (types.INT32, 0),
}
COLOUR: dict[str, Inputs] = {
    "natural": _EVERY,
    "histology": {
        **_EVERY,
        "offset": (types.FLOAT, 1),
        "white": (types.FLOAT, 0),
        "contrast": (types.FLOAT, 0),
        "compressed": (types.BOOL, 0),
        "quality": (types.INT32, 0),
    },
}


def inputs_of(labelled: bool, views: Mapping[str, bool], augment: str) -> Inputs:
    """Lists the inputs of a pipeline of these views; that of a view is called "view.input"."""
    inputs = {**IMAGE, **(LABEL if labelled else {}), **(QUARTERS if augment == "histology" else {})}
    for view, changed in views.items():
        inputs |= {f"{view}.{name}": kind for name, kind in COLOUR[augment].items() if changed}
    return inputs


def build_pipeline(
    *,
    batch: int,
    threads: int,
    device_id: int | None,  # None: all of it on the CPU
    crop: int,
    augment: str,
    labelled: bool,
    views: Mapping[str, bool],  # name → whether its colours change
    mean: Sequence[float],
    std: Sequence[float],
) -> Pipeline:
    """Builds the pipeline. A run takes one `feed_input` of each of `inputs_of`.

    Its outputs are the views (3, crop, crop) f32, normalised, and if `labelled` the label (crop, crop, 1) u8. Their
    memory is allocated anew in every run, so that they may be kept.
    """
    gpu, quarters = device_id is not None, augment == "histology"

    @pipeline_def(
        batch_size=batch,
        num_threads=threads,
        device_id=device_id,
        prefetch_queue_depth=1,  # how far to run ahead is the feed's business
        exec_dynamic=True,
        enable_conditionals=True,
    )
    def graph() -> tuple[Any, ...]:
        given = {
            name: fn.external_source(name=name, dtype=dtype, ndim=ndim, layout="HWC" if ndim == 3 else None)
            for name, (dtype, ndim) in inputs_of(labelled, views, augment).items()
        }
        image = _reflected(_image(given, gpu), given)
        crops = fn.resize(image, size=(crop, crop), interp_type=types.INTERP_LINEAR, antialias=True)
        crops = _turned(crops, given, quarters)
        base = _base(crops, augment) if any(views.values()) else None
        made = []
        for view, changed in views.items():
            if changed:
                of_view = {name: given[f"{view}.{name}"] for name in COLOUR[augment]}
                made.append(_normalised(_recolour(base, of_view, augment, gpu), 1, mean, std))
            else:
                made.append(_normalised(crops, 255, mean, std))
        if not labelled:
            return tuple(made)
        labels = _nearest(_ignored(_label(given, gpu), given), given["side"], crop)
        return (*made, _turned(labels, given, quarters))

    pipeline = graph()
    pipeline.build()
    return pipeline


def _image(given: dict[str, Any], gpu: bool) -> Any:
    """Reads the part of the region that lies in the image."""
    if given["is_raw"]:
        image = given["raw"].gpu() if gpu else given["raw"]
    else:
        image = _decoded(given["path"], given, types.RGB, "mixed" if gpu else "cpu")
    return image


def _label(given: dict[str, Any], gpu: bool) -> Any:
    """Reads the same part of the label. PNGs are decoded on the CPU in any case."""
    if given["is_raw"]:
        label = given["raw_mask"]
    else:
        label = _decoded(given["mask_path"], given, types.GRAY, "cpu")
    return label.gpu() if gpu else label


def _decoded(path: Any, given: dict[str, Any], kind: Any, device: str) -> Any:
    return fn.decoders.image_slice(
        fn.io.file.read(path),
        device=device,
        output_type=kind,
        start=given["start"],
        shape=given["inside"],
        axes=(0, 1),
        jpeg_fancy_upsampling=True,  # as on the CPU, and as the ordinary reader
    )


def _reflected(image: Any, given: dict[str, Any]) -> Any:
    """Completes the region: outside the image with its reflection."""
    if given["padded"]:
        image = fn.cat(image, fn.flip(image[given["rows_from"] :], horizontal=0, vertical=1), axis=0)
        image = fn.cat(image, fn.flip(image[:, given["columns_from"] :], horizontal=1), axis=1)
    return image


def _ignored(label: Any, given: dict[str, Any]) -> Any:
    """Completes the label of the region: outside the image with ignore."""
    if given["padded"]:
        whole = {"start": (0, 0), "shape": given["side"], "axes": (0, 1)}
        label = fn.slice(label, **whole, out_of_bounds_policy="pad", fill_values=IGNORE)
    return label


def _nearest(label: Any, side: Any, crop: int) -> Any:
    """Resizes the label to the pixels of augment.nearest_pixels.

    Centres are multiples of 1 / (2 · crop): a shift by half of that moves one between two pixels safely to the second
    of them and changes nothing for the others.
    """
    shift = 0.25 / crop
    roi = {"roi_start": (shift, shift), "roi_end": side + np.float32(shift)}
    return fn.resize(label, size=(crop, crop), interp_type=types.INTERP_NN, **roi)


def _turned(image: Any, given: dict[str, Any], quarters: bool) -> Any:
    """Flips and turns as the draws say; `quarters`: whether there are quarter turns."""
    if quarters:
        if given["transposed"]:
            image = fn.transpose(image, perm=[1, 0, 2], transpose_layout=False)
        image = fn.flip(image, horizontal=0, vertical=given["upended"])
    return fn.flip(image, horizontal=given["mirrored"])


def _base(crops: Any, augment: str) -> Any:
    """Computes what the views of a crop share; for histology (H, W, 6): stains, and how bare of each a pixel is."""
    if augment == "natural":
        return crops
    table = -np.log(np.maximum(np.arange(256) / 255, DENSITY_FLOOR))
    density = fn.lookup_table(crops, keys=list(range(256)), values=table.tolist(), dtype=types.FLOAT)
    stain = fn.coord_transform(density, M=UNMIX_ROWS.T.ravel().tolist())
    return fn.cat(stain, dali_math.exp(dali_math.min(stain * -BARE, 0.0)), axis=2)  # (H, W, 6)


def _recolour(base: Any, given: dict[str, Any], augment: str, gpu: bool) -> Any:
    """Makes a view, f32 in [0, 1], in the colours of augment.recolour."""
    here = {name: node.gpu() if gpu else node for name, node in given.items() if name in _SCALES}
    if augment == "natural":
        light = fn.coord_transform(base, M=given["mix"])
        light = _within(light + _weighed(base, here["of_mean"]))
    else:
        light = dali_math.exp(fn.coord_transform(base, M=given["mix"], T=given["offset"]))
        light = dali_math.min(light, here["white"])
        light = _within(light * here["contrast"] + _weighed(light, here["of_mean"]))
    light = _blurred(fn.reshape(light, layout="HWC"), given)
    return _compressed(light, given) if augment == "histology" else light


def _blurred(light: Any, given: dict[str, Any]) -> Any:
    if given["blurred"]:
        light = fn.gaussian_blur(light, sigma=given["sigma"], window_size=given["window"])
    return light


def _compressed(light: Any, given: dict[str, Any]) -> Any:
    if given["compressed"]:
        eight_bit = fn.cast(light * 255, dtype=types.UINT8)
        light = fn.jpeg_compression_distortion(eight_bit, quality=given["quality"]) * np.float32(1 / 255)
    return light


_SCALES = {"of_mean", "white", "contrast"}  # used in arithmetic, so they must be on the device of the image


def _weighed(light: Any, weights: Any) -> Any:
    """Computes the weighted sum of the mean colour of each image: one number."""
    return fn.reductions.sum(fn.reductions.mean(light, axes=(0, 1)) * weights)


def _within(light: Any) -> Any:
    """Clamps to [0, 1]."""
    return dali_math.min(dali_math.max(light, 0.0), 1.0)  # half the time of dali_math.clamp on a CPU


def _normalised(image: Any, white: int, mean: Sequence[float], std: Sequence[float]) -> Any:
    return fn.crop_mirror_normalize(
        image,
        mean=[white * value for value in mean],
        std=[white * value for value in std],
        dtype=types.FLOAT,
        output_layout="CHW",
    )


def turn_arguments(geometry: Geometry) -> dict[str, Any]:
    """Turns a flip and then quarter turns into a transposition and then flips."""
    turns, flip = geometry.quarter_turns % 4, geometry.flip
    return {
        "transposed": turns % 2 == 1,
        "mirrored": {0: flip, 1: False, 2: not flip, 3: True}[turns],
        "upended": {0: False, 1: not flip, 2: True, 3: flip}[turns],
    }


def colour_arguments(augment: str, colour: ColourDraw) -> dict[str, Any]:
    """Computes a sample's values of the inputs COLOUR[augment]."""
    blur = {
        "blurred": colour.blur > 0,
        "sigma": colour.blur,
        "window": 2 * blur_radius(colour.blur) + 1,
    }
    if augment == "natural":
        mix, of_mean = _composed(colour)
        return {"mix": mix / 255, "of_mean": of_mean / 255, **blur}
    alpha_h, beta_h, alpha_e, beta_e = colour.stain
    scaled = STAIN_ROWS.T * np.array([alpha_h, alpha_e, 1.0])
    shifted = STAIN_ROWS.T * np.array([beta_h, beta_e, 0.0])
    return {
        "mix": np.concatenate([-scaled, shifted], axis=1),
        "offset": math.log(colour.brightness) - shifted.sum(axis=1),  # light · brightness, before the exponential
        "white": min(colour.brightness, 1.0),  # light is at most 1 before it, and after it
        "of_mean": GREY * (1 - colour.contrast),
        "contrast": colour.contrast,
        "compressed": colour.jpeg > 0,
        "quality": colour.jpeg,
        **blur,
    }


def _composed(colour: ColourDraw) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Composes the parts of a natural view, in their order, into x → mix · x + of_mean · mean(x): (3, 3) and (3,).

    Two things differ from torchvision. Hue is a rotation around the grey axis, which is linear, while torchvision's
    moves along the hexagon of HSV: over draws of the recipe on colon tissue the views differ by 0.023 of the range on
    average, while leaving hue out moves them by 0.053. And values are clamped once, at the end, instead of after every
    part, which makes 0.002. In exchange the whole jitter is one product per pixel.
    """
    mix, of_mean = SAME, np.zeros(3)
    for part in (*colour.order, *((4,) if colour.grey else ())):
        if part == 0:
            mix, of_mean = mix * colour.brightness, of_mean * colour.brightness
        elif part == 1:
            mean = GREY @ mix + GREY.sum() * of_mean
            mix, of_mean = mix * colour.contrast, of_mean * colour.contrast + (1 - colour.contrast) * mean
        elif part == 2:
            mix = colour.saturation * mix + (1 - colour.saturation) * (GREY @ mix)
        elif part == 3:
            mix = _rotation(colour.hue) @ mix
        else:
            mix = np.stack([GREY @ mix] * 3)
    return mix, of_mean


def _rotation(turns: float) -> NDArray[np.float64]:
    """Builds the rotation around the grey axis, (3, 3), by Rodrigues' formula; a third of a turn makes red green."""
    angle = 2 * math.pi * turns
    return math.cos(angle) * (SAME - ALONG) + math.sin(angle) * ACROSS + ALONG
