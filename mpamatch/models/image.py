"""Frozen image encoders: what an image or a part of it shows, as one vector (for LPD's contrast)."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mpamatch.errors import InputError, unknown
from mpamatch.models.weights import load_checked, read_state_dict, sha256

OPEN_CLIP = "open_clip:"


class ImageEncoder(nn.Module):
    """A frozen image tower, always in eval mode: image (B,3,H,W) in 0..1, RGB → (B, width), not normalised.

    The image is resized to the tower's side and normalised as the tower wants it; the gradient reaches the image and
    nothing of the tower. `identity`: name, source and sha256 of the weights, which is all that a run keeps of it.
    """

    def __init__(
        self,
        tower: nn.Module,  # (B, 3, side, side) -> (B, width)
        *,
        side: int,
        width: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        identity: dict[str, str],
    ):
        super().__init__()
        self.tower, self.side, self.width, self.identity = tower, side, width, identity
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "ImageEncoder":
        return super().train(False)

    def forward(self, image: Tensor) -> Tensor:
        size = (self.side, self.side)
        x = functional.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=False)
        return self.tower((x - self.mean) / self.std)


def build_image_encoder(name: str, weights: str | None) -> ImageEncoder:
    """The frozen image tower called `name`, "open_clip:MODEL"; `weights` is a local checkpoint (whole CLIP or image
    tower) or a pretrained tag of the model.

    Raises InputError for an unknown name, missing weights or weights that do not fit (the first differences are
    listed). A tower with random weights is never returned.
    """
    import open_clip
    from open_clip.model import _build_vision_tower

    if not name.startswith(OPEN_CLIP):
        raise unknown("image encoder", name, ("none", f"{OPEN_CLIP}ViT-B-32"))
    model = name.removeprefix(OPEN_CLIP)
    if model not in open_clip.list_models():
        raise unknown("open_clip model", model, open_clip.list_models())
    file, tag = _weights(model, weights)
    config: Any = open_clip.get_model_config(model)
    vision = {**config["vision_cfg"], "timm_model_pretrained": False, "output_tokens": False}
    quick_gelu = bool(tag.get("quick_gelu", config.get("quick_gelu", False)))
    with torch.random.fork_rng(devices=[]):  # its random start is replaced, and must not move the run's generator
        tower = _build_vision_tower(config["embed_dim"], vision, quick_gelu)
    load_checked(tower, image_part(read_state_dict(file)), str(file))
    side = tower.image_size
    return ImageEncoder(
        tower,
        side=side if isinstance(side, int) else side[0],
        width=config["embed_dim"],
        mean=tuple(tag.get("mean") or open_clip.OPENAI_DATASET_MEAN),
        std=tuple(tag.get("std") or open_clip.OPENAI_DATASET_STD),
        identity={"name": name, "source": str(weights), "sha256": sha256(file)},
    )


def image_part(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The image tower's weights in a checkpoint: what stands under `visual.`, else all of it."""
    part = {name.removeprefix("visual."): value for name, value in state.items() if name.startswith("visual.")}
    return part or state


def _weights(model: str, weights: str | None) -> tuple[Path, dict[str, Any]]:
    """The checkpoint file, downloaded where it must be, and what open_clip knows about its tag."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(model)
    if weights is None:
        raise InputError(
            f"method.image_weights: {OPEN_CLIP}{model} needs weights: give a local checkpoint file"
            + (f" or one of the tags {', '.join(tags)}." if tags else ".")
        )
    if Path(weights).is_file() or not tags or "/" in weights:
        return Path(weights), {}
    if not open_clip.is_pretrained_cfg(model, weights):
        raise unknown(f"checkpoint file or tag of {model}", weights, tags)
    tag = open_clip.get_pretrained_cfg(model, weights)
    try:
        return Path(open_clip.download_pretrained(tag)), tag
    except Exception as error:  # no network, no access: the hub's client raises many kinds
        raise InputError(
            f"method.image_weights: {weights!r} cannot be downloaded ({type(error).__name__}); give a local checkpoint "
            "file."
        ) from error
