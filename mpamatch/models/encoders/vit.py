"""timm's ViTs, plain or on a ResNet, and their weights."""

from collections.abc import Callable
from typing import Any

import timm
from timm.layers import SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mpamatch.errors import InputError
from mpamatch.models.encoders.base import Encoder
from mpamatch.models.encoders.hybrid import HybridViTEncoder
from mpamatch.models.encoders.preset import Preset, presets
from mpamatch.models.weights import load_backbone

HUB = "hf-hub:"
# Layers that timm takes as a class and presets.yaml can only name.
LAYERS: dict[str, Callable[..., nn.Module]] = {"SwiGLUPacked": SwiGLUPacked, "SiLU": nn.SiLU}


class ViTEncoder(Encoder):
    """A plain timm ViT: one map at the stride of its patch, prefix tokens dropped. No skips."""

    def __init__(self, vit: VisionTransformer):
        super().__init__()
        self.vit = vit
        self.multiple = int(vit.patch_embed.patch_size[0])
        self.channels, self.strides = (vit.embed_dim,), (self.multiple,)

    def recompute(self) -> None:
        self.vit.set_grad_checkpointing()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        tokens = self.vit.forward_features(image)[:, self.vit.num_prefix_tokens :]
        height, width = image.shape[-2] // self.multiple, image.shape[-1] // self.multiple
        return (tokens.transpose(1, 2).reshape(image.shape[0], -1, height, width),)


def build_vit(preset: Preset, weights: str | None, _norm: str) -> Encoder:
    """Builds a ViT with random weights, timm's ("timm"), those of a hub ("hub", "hf-hub:…") or a checkpoint file's.

    Weights of timm or of an hf-hub id bring their publisher's mean and std; others take the preset's. Raises InputError
    if the name is no ViT that takes any image size, and for weights that do not fit or cannot be fetched.
    """
    vit = _timm_vit(preset, weights)
    encoder = HybridViTEncoder(vit) if hasattr(vit.patch_embed, "backbone") else ViTEncoder(vit)
    encoder.mean, encoder.std = preset.mean, preset.std
    if weights and (weights == "timm" or weights.startswith(HUB)):
        published: Any = vit.pretrained_cfg
        encoder.mean, encoder.std = tuple(published["mean"]), tuple(published["std"])
    return encoder


def _timm_vit(preset: Preset, weights: str | None) -> VisionTransformer:
    arguments: dict[str, Any] = {
        "num_classes": 0,
        "dynamic_img_size": True,
        "img_size": 224,
        **{key: LAYERS[value] if key.endswith("_layer") else value for key, value in preset.arguments.items()},
    }
    model_name = arguments.pop("model_name")
    hub = _hub(preset, weights)
    try:
        if hub:
            vit = timm.create_model(hub, pretrained=True, **arguments)
        else:
            vit = timm.create_model(model_name, pretrained=weights == "timm", **arguments)
    except (TypeError, AssertionError) as error:
        raise InputError(f"model.encoder: {preset.name!r} is no ViT that takes any image size ({error}).") from error
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"model.encoder_weights: {weights!r} could not be fetched for {preset.name!r} ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}); download the file and give its path."
        ) from error
    if not isinstance(vit, VisionTransformer):
        raise InputError(f"model.encoder: {preset.name!r} is a {type(vit).__name__}, expected a ViT.")
    if weights and weights != "timm" and not hub:
        load_backbone(vit, weights)
    return vit


def _hub(preset: Preset, weights: str | None) -> str | None:
    """Returns the hf-hub id that `weights` stand for, if any. Raises InputError if "hub" has none for this preset."""
    if weights == "hub" and preset.hub is None:
        there = " and ".join(one.name for one in presets().values() if one.hub)
        raise InputError(f"model.encoder_weights: 'hub' goes with {there}; for {preset.name!r} give a file or 'timm'.")
    if weights == "hub":
        return preset.hub
    return weights if weights and weights.startswith(HUB) else None
