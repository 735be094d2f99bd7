"""CONCH's image tower (Nature Medicine 2024): a ViT-B/16 whose tokens one learned query pools."""

from pathlib import Path
from typing import Any

import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.transformer import AttentionalPooler
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mpamatch.models.towers import without_draws
from mpamatch.models.weights import load_checked, read_state_dict

# CONCH's published model_configs/conch_ViT-B-16.json.
CONCH_IMAGE: dict[str, Any] = {"embed_dim": 768, "depth": 12, "num_heads": 12}
WIDTH = 512
POOL_HEADS = 8
POSITIONS = "trunk.pos_embed"
CAPTION = ("attn_pool_caption.", "ln_caption.")  # the other pooling, which only its captions need


class ConchImage(nn.Module):
    """CONCH's image tower. `side`: what it was trained at; at other sizes the position embeddings are resampled.

    `mean` and `std` (RGB, images in 0..1): the normalisation that it wants.
    """

    side, width = 448, WIDTH
    mean, std = OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    def __init__(self) -> None:
        super().__init__()
        self.trunk = VisionTransformer(
            img_size=self.side, patch_size=16, num_classes=0, dynamic_img_size=True, **CONCH_IMAGE
        )
        self.attn_pool_contrast = AttentionalPooler(
            WIDTH, self.trunk.embed_dim, n_head=POOL_HEADS, n_queries=1, norm_layer=nn.LayerNorm
        )
        self.ln_contrast = nn.LayerNorm(WIDTH)
        self.proj_contrast = nn.Parameter(torch.zeros(WIDTH, WIDTH))

    def forward(self, image: Tensor) -> Tensor:  # (B, 3, H, W) normalised, H and W multiples of 16 -> (B, width)
        """Embeds a batch of images; the vectors have no unit length."""
        tokens = self.trunk.forward_features(image)  # (B, 1 + h·w, embed_dim)
        return self.ln_contrast(self.attn_pool_contrast(tokens)[:, 0]) @ self.proj_contrast


def conch_image(file: Path) -> ConchImage:
    """Loads the image tower of a checkpoint of CONCH, frozen and in eval mode.

    Raises InputError if the file is missing or does not fit (the first differences are listed).
    """
    tower: ConchImage = without_draws(ConchImage)
    state = _image_part(read_state_dict(file))
    if POSITIONS in state:
        state[POSITIONS] = _positions(state[POSITIONS], tower.state_dict()[POSITIONS])
    load_checked(tower, state, str(file))
    return tower.requires_grad_(False).eval()


def _image_part(state: dict[str, Tensor]) -> dict[str, Tensor]:
    part = {name.removeprefix("visual."): value for name, value in state.items() if name.startswith("visual.")}
    return {name: value for name, value in part.items() if not name.startswith(CAPTION)}


def _positions(stored: Tensor, wanted: Tensor) -> Tensor:
    """Resamples the position embeddings of another square grid to ours, as CONCH's own loader does."""
    places = stored.shape[1] - 1 if stored.dim() == 3 else 0
    square = places > 0 and round(places**0.5) ** 2 == places and stored.shape[2] == wanted.shape[2]
    if not square or stored.shape == wanted.shape:
        return stored  # what is no square grid is refused by name when it is loaded
    side = round((wanted.shape[1] - 1) ** 0.5)
    return resample_abs_pos_embed(stored, [side, side], interpolation="bilinear", antialias=False)
