"""Frozen image encoders: an image or a part of it as one vector, for the contrast of LPD."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from mpamatch.errors import InputError, unknown
from mpamatch.models.towers import CONCH, CONCH_NEEDED, OPEN_CLIP, open_clip_config, open_clip_weights, without_draws
from mpamatch.models.weights import load_checked, read_state_dict, sha256

KIND = "image encoder"


class ImageEncoder(nn.Module):
    """A frozen image tower behind its own resizing and normalisation; always in eval mode.

    Args:
        tower: the image tower; its parameters are frozen.
        side: height and width that the tower takes, in pixels.
        width: size of its vectors.
        mean: of R, G and B in 0..1, which the tower's images are normalised by.
        std: as `mean`.
        identity: name, source and sha256 of the weights, which is all that a checkpoint keeps of a frozen tower.
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
        """Keeps eval mode, whatever is asked for.

        Args:
            mode: ignored.

        Returns:
            The encoder itself.
        """
        return super().train(False)

    def forward(self, image: Tensor) -> Tensor:  # (B, 3, H, W) -> (B, width)
        """Embeds a batch of images.

        Args:
            image: RGB in 0..1, of any size; it is resized (bilinear) to the tower's side.

        Returns:
            One vector per image, (B, width), not of unit length. Its gradient reaches the image, not the tower.
        """
        size = (self.side, self.side)
        x = functional.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=False)
        return self.tower((x - self.mean) / self.std)


def build_image_encoder(name: str, weights: str | None) -> ImageEncoder:
    """Builds a frozen image encoder; never one with random weights.

    Args:
        name: "conch" (Nature Medicine 2024), "open_clip:MODEL", or "open_clip:hf-hub:ORG/REPO" and
            "open_clip:local-dir:FOLDER", which bring their weights.
        weights: the checkpoint file of CONCH; for a model of open_clip a checkpoint file (whole CLIP or image tower) or
            a pretrained tag.

    Returns:
        The encoder, on the CPU.

    Raises:
        InputError: an unknown name, missing weights, or weights that do not fit (the first differences are listed) or
            cannot be fetched.
    """
    if name == CONCH:
        return _conch(weights)
    if name.startswith(OPEN_CLIP):
        return _open_clip(name, weights)
    raise unknown(KIND, name, ("none", CONCH, f"{OPEN_CLIP}ViT-B-32"))


def image_part(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Picks the image tower's weights from a checkpoint: the entries under `visual.`, or all if there are none."""
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
