"""Frozen image encoders: what an image or a part of it shows, as one vector (for LPD's contrast)."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from mpamatch.errors import InputError, unknown
from mpamatch.models.towers import CONCH, CONCH_NEEDED, OPEN_CLIP, open_clip_config, open_clip_weights, without_draws
from mpamatch.models.weights import load_checked, read_state_dict, sha256

KIND = "image encoder"


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
    """The frozen image tower called `name`.

    "conch": `weights` is the checkpoint of CONCH. "open_clip:MODEL": `weights` is a local checkpoint (whole CLIP or
    image tower) or a pretrained tag of the model; "open_clip:hf-hub:ORG/REPO" and "open_clip:local-dir:FOLDER" bring
    theirs. Raises InputError for an unknown name, missing weights or weights that do not fit (the first differences
    are listed). A tower with random weights is never returned.
    """
    if name == CONCH:
        return _conch(weights)
    if name.startswith(OPEN_CLIP):
        return _open_clip(name, weights)
    raise unknown(KIND, name, ("none", CONCH, f"{OPEN_CLIP}ViT-B-32"))


def image_part(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The image tower's weights in a checkpoint: what stands under `visual.`, else all of it."""
    part = {name.removeprefix("visual."): value for name, value in state.items() if name.startswith("visual.")}
    return part or state


def _conch(weights: str | None) -> ImageEncoder:
    from mpamatch.models.conch_image import conch_image  # open_clip is slow to import

    if weights is None:
        raise InputError(f"image encoder 'conch' needs image_weights: {CONCH_NEEDED}")
    tower = conch_image(Path(weights))
    identity = {"name": CONCH, "source": weights, "sha256": sha256(Path(weights))}
    return ImageEncoder(tower, side=tower.side, width=tower.width, mean=tower.mean, std=tower.std, identity=identity)


def _open_clip(name: str, weights: str | None) -> ImageEncoder:
    import open_clip
    from open_clip.model import _build_vision_tower

    config = open_clip_config(name, KIND)
    file, tag = open_clip_weights(name, weights, KIND)
    state = image_part(read_state_dict(file))
    vision = {**config["vision_cfg"], "timm_model_pretrained": False, "output_tokens": False}
    quick_gelu = bool(tag.get("quick_gelu", config.get("quick_gelu", False)))
    tower = without_draws(lambda: _build_vision_tower(config["embed_dim"], vision, quick_gelu))
    load_checked(tower, state, str(file))
    side = tower.image_size
    return ImageEncoder(
        tower,
        side=side if isinstance(side, int) else side[0],
        width=config["embed_dim"],
        mean=tuple(tag.get("mean") or open_clip.OPENAI_DATASET_MEAN),
        std=tuple(tag.get("std") or open_clip.OPENAI_DATASET_STD),
        identity={"name": name, "source": str(weights or file), "sha256": sha256(file)},
    )
