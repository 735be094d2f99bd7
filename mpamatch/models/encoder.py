"""Encoders, from image to feature maps, shallow to deep: timm's ViTs and R50+ViT hybrid, MiT, a small one for CPUs."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import SwiGLUPacked
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from mpamatch.errors import InputError, unknown
from mpamatch.models.recompute import recomputed
from mpamatch.models.weights import load_checked, read_state_dict

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

# Gated foundation models by their published timm arguments (model cards of MahmoodLab/UNI and MahmoodLab/UNI2-h).
PRESETS: dict[str, dict[str, Any]] = {
    "uni": {"model_name": "vit_large_patch16_224", "init_values": 1e-5},
    "uni2-h": {
        "model_name": "vit_giant_patch14_224",
        "patch_size": 14,
        "depth": 24,
        "num_heads": 24,
        "init_values": 1e-5,
        "embed_dim": 1536,
        "mlp_ratio": 2.66667 * 2,
        "no_embed_class": True,
        "mlp_layer": SwiGLUPacked,
        "act_layer": nn.SiLU,
        "reg_tokens": 8,
    },
}
HUB = {"uni": "hf-hub:MahmoodLab/UNI", "uni2-h": "hf-hub:MahmoodLab/UNI2-h"}
MIT = tuple(f"mit_b{size}" for size in range(6))
SMALL = {"small_hybrid": 2, "small_conv": 0}  # name → transformer blocks at stride 16


class Encoder(nn.Module):
    """image (B,3,H,W), H and W multiples of `multiple` → tuple of maps, shallow to deep; the last feeds the decoder.

    `channels` and `strides` describe the maps; `mean` and `std` (RGB, images in 0..1) the normalisation it wants.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    multiple: int
    mean, std = IMAGENET
    checkpointing = False

    def recompute(self) -> None:
        """From now on backward computes the blocks' activations again instead of keeping them."""
        self.checkpointing = True

    def through(self, blocks: Iterable[nn.Module], x: Tensor) -> Tensor:
        """x through one block after the other."""
        for block in blocks:
            x = recomputed(block, x) if self.checkpointing else block(x)
        return x


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


class HybridViTEncoder(Encoder):
    """timm's R50+ViT hybrid as in TransUNet (arXiv 2102.04306): ResNet skips at strides 2, 4, 8, ViT map at 16."""

    def __init__(self, vit: VisionTransformer):
        super().__init__()
        self.vit = vit
        backbone = vit.patch_embed.backbone
        if len(getattr(backbone, "stages", ())) != 3 or vit.patch_embed.patch_size[0] != 1:
            raise InputError("model.encoder: of timm's hybrids only those with a three-stage ResNet at stride 16 fit.")
        widths = [stage.blocks[-1].conv3.out_channels for stage in backbone.stages]
        stem = next(layer.out_channels for layer in backbone.stem if isinstance(layer, nn.Conv2d))
        self.channels, self.strides, self.multiple = (stem, *widths[:2], vit.embed_dim), (2, 4, 8, 16), 16

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        vit, backbone = self.vit, self.vit.patch_embed.backbone
        *before_pool, pool = backbone.stem
        x = image
        for layer in before_pool:
            x = layer(x)
        maps = [x]
        x = pool(x)
        for stage in backbone.stages:
            x = self.through([stage], x)
            maps.append(x)
        x = vit.patch_embed.proj(maps.pop())
        height, width = x.shape[-2:]
        tokens = self.through(vit.blocks, vit.norm_pre(vit._pos_embed(x.permute(0, 2, 3, 1))))
        tokens = vit.norm(tokens)[:, vit.num_prefix_tokens :]
        return (*maps, tokens.transpose(1, 2).reshape(image.shape[0], -1, height, width))


class MiTEncoder(Encoder):
    """SegFormer's Mix Transformer (arXiv 2105.15203) with strides 4, 2, 2, 1: maps at strides 4, 8, 16 and 16 (LPD).

    segmentation_models_pytorch's, with the last patch embedding moving one step at a time, and no stochastic depth: a
    step is to depend on its batch alone.
    """

    def __init__(self, mit: Any):
        super().__init__()
        self.mit = mit
        mit.patch_embed4.proj.stride = (1, 1)
        mit.reset_drop_path(0.0)
        self.channels, self.strides, self.multiple = tuple(mit.out_channels[2:]), (4, 8, 16, 16), 16

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        maps, x = [], image
        for number in range(1, 5):
            x = getattr(self.mit, f"patch_embed{number}")(x)
            x = self.through(getattr(self.mit, f"block{number}"), x)
            x = getattr(self.mit, f"norm{number}")(x).contiguous()
            maps.append(x)
        return tuple(maps)


class SmallEncoder(Encoder):
    """Convolutions down to stride 16, then `blocks` transformer blocks: for CPUs and training from scratch."""

    def __init__(self, blocks: int, norm: str, widths: tuple[int, ...] = (16, 32, 64, 128)):
        super().__init__()
        self.channels, self.strides, self.multiple = widths, (2, 4, 8, 16), 16
        inputs = (3, *widths[:-1])
        self.stages = nn.ModuleList(
            nn.Sequential(conv_norm(i, o, norm, stride=2), conv_norm(o, o, norm))
            for i, o in zip(inputs, widths, strict=True)
        )
        # Position comes from the zero padding of the convolutions and this depth-wise one (CPVT, arXiv 2102.10882),
        # so that any input size works without resampling a table.
        self.position = nn.Conv2d(widths[-1], widths[-1], 3, padding=1, groups=widths[-1]) if blocks else None
        self.blocks = nn.Sequential(
            *(Block(widths[-1], num_heads=4, mlp_ratio=2, qkv_bias=True) for _ in range(blocks))
        )

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        maps, x = [], image
        for stage in self.stages:
            x = self.through([stage], x)
            maps.append(x)
        if self.position is not None:
            x = x + self.position(x)
            tokens = self.through(self.blocks, x.flatten(2).transpose(1, 2))
            maps[-1] = tokens.transpose(1, 2).reshape(x.shape)
        return tuple(maps)


def conv_norm(inputs: int, outputs: int, norm: str, *, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    """Convolution, norm (`batch` or `group`), ReLU."""
    layer: nn.Module
    if norm == "batch":
        layer = nn.BatchNorm2d(outputs)
    elif norm == "group":
        layer = nn.GroupNorm(groups_of(outputs), outputs)
    else:
        raise unknown("model.norm", norm, ("batch", "group"))
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), layer, nn.ReLU(inplace=True)
    )


def groups_of(channels: int) -> int:
    """Groups of a group norm: 8, or the next divisor. At least 4 channels a group cost supervised training 1.8 and
    UniMatch 2.8 validation mDice (EBHI-Seg gland, four labelled patients, one seed)."""
    return next(groups for groups in (8, 4, 2, 1) if channels % groups == 0)


def build_encoder(name: str, weights: str | None, norm: str) -> Encoder:
    """The encoder called `name`: small_hybrid, small_conv, uni, uni2-h, mit_b0 to mit_b5, or any ViT of timm by name.

    `weights`: None (random), "timm" (the weights timm publishes for the name), "smp" (mit_b*, ImageNet, published by
    segmentation_models_pytorch), "hub" (UNI and UNI2-h, gated), an "hf-hub:…" id, or a local checkpoint. Raises
    InputError for an unknown name and for weights that do not fit.
    """
    if name in MIT:
        return _mit(name, weights)
    if name in SMALL:
        encoder: Encoder = SmallEncoder(SMALL[name], norm)
        if weights in ("timm", "hub", "smp"):
            raise InputError(
                f"model.encoder_weights: nobody publishes weights of {name!r}; give a file or leave it out."
            )
        if weights is not None:
            load_checked(encoder, read_state_dict(Path(weights)), weights)
        return encoder
    vit = _timm_vit(name, weights)
    encoder = HybridViTEncoder(vit) if hasattr(vit.patch_embed, "backbone") else ViTEncoder(vit)
    if weights and (weights == "timm" or weights.startswith("hf-hub:")):  # the publisher's own; UNI's is ImageNet's
        published: Any = vit.pretrained_cfg
        encoder.mean, encoder.std = tuple(published["mean"]), tuple(published["std"])
    return encoder


def _mit(name: str, weights: str | None) -> MiTEncoder:
    from segmentation_models_pytorch.encoders import get_encoder

    if weights in ("timm", "hub"):
        raise InputError(f"model.encoder_weights: {weights!r} has no weights of {name!r}; give a file or 'smp'.")
    try:
        mit: Any = get_encoder(name, weights="imagenet" if weights == "smp" else None)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"model.encoder_weights: 'smp' could not be fetched for {name!r} ({type(error).__name__}); download the "
            "file and give its path."
        ) from error
    if weights and weights != "smp":
        state = {k: v for k, v in read_state_dict(Path(weights)).items() if not k.startswith("head.")}
        load_checked(mit, state, weights)
    return MiTEncoder(mit)


def _timm_vit(name: str, weights: str | None) -> VisionTransformer:
    arguments: dict[str, Any] = {
        "num_classes": 0,
        "dynamic_img_size": True,
        "img_size": 224,
        **PRESETS.get(name, {"model_name": name}),
    }
    model_name = arguments.pop("model_name")
    if not timm.is_model(model_name):
        raise unknown("model.encoder", name, [*PRESETS, *SMALL, *MIT, *timm.list_models("vit_*")])
    hub = HUB.get(name) if weights == "hub" else weights if weights and weights.startswith("hf-hub:") else None
    if weights == "hub" and hub is None:
        raise InputError(
            f"model.encoder_weights: 'hub' goes with {' and '.join(HUB)}; for {name!r} give a file or 'timm'."
        )
    try:
        if hub:
            vit = timm.create_model(hub, pretrained=True, **arguments)
        else:
            vit = timm.create_model(model_name, pretrained=weights == "timm", **arguments)
    except (TypeError, AssertionError) as error:
        raise InputError(f"model.encoder: {name!r} is no ViT that takes any image size ({error}).") from error
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"model.encoder_weights: {weights!r} could not be fetched for {name!r} ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}); download the file and give its path."
        ) from error
    if not isinstance(vit, VisionTransformer):
        raise InputError(f"model.encoder: {name!r} is a {type(vit).__name__}, expected a ViT.")
    if weights and weights not in ("timm", "hub") and not hub:
        state = {k: v for k, v in read_state_dict(Path(weights)).items() if not k.startswith("head.")}
        load_checked(vit, state, weights)
    return vit


class ChannelDropout(nn.Module):
    """Drops whole channels of all maps by given uniform draws: the feature perturbation of UniMatch (CVPR 2023)."""

    def __init__(self, channels: tuple[int, ...], p: float):
        super().__init__()
        self.channels, self.p = channels, p

    def forward(
        self,
        maps: tuple[Tensor, ...],  # each (B, channels[i], h, w)
        noise: Tensor,  # (B, sum(channels)) uniform in [0, 1)
    ) -> tuple[Tensor, ...]:
        keep = (noise >= self.p).to(maps[0].dtype) / (1 - self.p)
        parts = torch.split(keep, list(self.channels), dim=1)
        return tuple(x * part[:, :, None, None] for x, part in zip(maps, parts, strict=True))
