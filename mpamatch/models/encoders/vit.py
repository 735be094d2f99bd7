"""timm's ViTs, plain or on a ResNet."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import timm
from timm.layers import SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mpamatch.errors import InputError
from mpamatch.models.encoders.base import Encoder, between, check_skips
from mpamatch.models.encoders.hybrid import HybridViTEncoder
from mpamatch.models.encoders.preset import Preset
from mpamatch.models.encoders.timm_state import fitted
from mpamatch.models.weights import load_checked

# Layers that timm takes as a class and presets.yaml can only name.
LAYERS: dict[str, Callable[..., nn.Module]] = {"SwiGLUPacked": SwiGLUPacked, "SiLU": nn.SiLU}


class ViTEncoder(Encoder):
    """A plain timm ViT: its last map, and before it those of the blocks `skips`, all at the stride of its patch.

    Prefix tokens are dropped, and every map is normalised by the ViT's last norm. Without skips it is TransUNi's
    encoder as published. Raises InputError if `skips` are no blocks of it.
    """

    def __init__(self, vit: VisionTransformer, preset: Preset, skips: Sequence[int] = ()):
        super().__init__()
        check_skips(preset, skips, len(vit.blocks))
        self.vit, self.taken = vit, tuple(skips)
        self.multiple = int(vit.patch_embed.patch_size[0])
        maps = len(skips) + 1
        self.channels, self.strides = (vit.embed_dim,) * maps, (self.multiple,) * maps
        self.between = between(len(skips))

    @property
    def backbone(self) -> nn.Module:
        return self.vit

    def load(self, state: Mapping[str, Tensor], source: str) -> None:
        load_checked(self.vit, fitted(state, self.vit), source)

    def recompute(self) -> None:
        self.vit.set_grad_checkpointing()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        if self.taken:
            found: Any = self.vit.forward_intermediates(image, indices=list(self.taken), norm=True)
            last, maps = found
        else:
            last, maps = self.vit.forward_features(image), []
        tokens = last[:, self.vit.num_prefix_tokens :]
        height, width = image.shape[-2] // self.multiple, image.shape[-1] // self.multiple
        return (*maps, tokens.transpose(1, 2).reshape(image.shape[0], -1, height, width))


def build_vit(preset: Preset, _norm: str, skips: Sequence[int], _deepest: int) -> Encoder:
    """Builds a ViT with random weights. Raises InputError if it does not take any image size, or for other `skips`."""
    arguments: dict[str, Any] = {
        "num_classes": 0,
        "dynamic_img_size": True,
        "img_size": 224,
        **{key: LAYERS[value] if key.endswith("_layer") else value for key, value in preset.arguments.items()},
    }
    model_name = arguments.pop("model_name")
    try:
        vit = timm.create_model(model_name, pretrained=False, **arguments)
    except (TypeError, AssertionError) as error:
        raise InputError(f"model.encoder: {preset.name!r} is no ViT that takes any image size ({error}).") from error
    if not isinstance(vit, VisionTransformer):
        raise InputError(f"model.encoder: {preset.name!r} is a {type(vit).__name__}, expected a ViT.")
    if not hasattr(vit.patch_embed, "backbone"):
        return ViTEncoder(vit, preset, skips)
    if skips:
        raise InputError(f"model.skips: {preset.name} has the maps of its ResNet as skips.")
    return HybridViTEncoder(vit)
