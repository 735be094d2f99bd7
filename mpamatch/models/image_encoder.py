"""Frozen image encoders: an image or a part of it as one vector, for the contrast of LPD."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from mpamatch.errors import InputError, unknown
from mpamatch.models.clip import OPEN_CLIP, image_part, open_clip_model
from mpamatch.models.published import CLIP_MEAN, CLIP_STD, CONCH, CONCH_NEEDED, PUBLISHED, fetched
from mpamatch.models.towers import without_draws
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
        name: "conch" (Nature Medicine 2024), "plip", "keep", "quiltnet", "biomedclip", "open_clip:MODEL", or
            "open_clip:hf-hub:ORG/REPO" and "open_clip:local-dir:FOLDER", which bring their weights.
        weights: the checkpoint file (whole or image tower); for a model of open_clip a file or a pretrained tag. None:
            plip, keep, quiltnet and biomedclip are fetched from Hugging Face once. A file with OpenAI's weights needs
            the model's -quickgelu name.

    Returns:
        The encoder, on the CPU.

    Raises:
        InputError: an unknown name, missing weights, or weights that do not fit (the first differences are listed),
            want another activation or cannot be fetched.
    """
    if name == CONCH:
        return _conch(weights)
    if name in PUBLISHED:
        return _published(name, weights)
    if name.startswith(OPEN_CLIP):
        return _open_clip(name, weights)
    raise unknown(KIND, name, ("none", CONCH, *PUBLISHED, f"{OPEN_CLIP}ViT-B-32"))


def _conch(weights: str | None) -> ImageEncoder:
    from mpamatch.models.conch_image import conch_image  # open_clip is slow to import

    if weights is None:
        raise InputError(f"image encoder 'conch' needs image_weights: {CONCH_NEEDED}")
    tower = conch_image(Path(weights))
    identity = {"name": CONCH, "source": weights, "sha256": sha256(Path(weights))}
    return ImageEncoder(tower, side=tower.side, width=tower.width, mean=tower.mean, std=tower.std, identity=identity)


def _published(name: str, weights: str | None) -> ImageEncoder:
    model = PUBLISHED[name]
    file = Path(weights) if weights else fetched(name, model.files, f"{KIND} {name!r}", "--method.image_weights")
    tower = without_draws(model.image.build)
    load_checked(tower, model.image.part(read_state_dict(file)), str(file))
    identity = {"name": name, "source": weights or model.hub, "sha256": sha256(file)}
    return ImageEncoder(tower, side=model.side, width=model.width, mean=model.mean, std=model.std, identity=identity)


def _open_clip(name: str, weights: str | None) -> ImageEncoder:
    from open_clip.model import _build_vision_tower

    model = open_clip_model(name, weights, KIND)
    width: int = model.config["embed_dim"]
    vision = {**model.config["vision_cfg"], "timm_model_pretrained": False, "output_tokens": False}
    tower = without_draws(lambda: _build_vision_tower(width, vision, model.quick_gelu))
    load_checked(tower, image_part(model.state), str(model.file))
    side = tower.image_size
    return ImageEncoder(
        tower,
        side=side if isinstance(side, int) else side[0],
        width=width,
        mean=tuple(model.tag.get("mean") or CLIP_MEAN),
        std=tuple(model.tag.get("std") or CLIP_STD),
        identity={"name": name, "source": str(weights or model.file), "sha256": sha256(model.file)},
    )
