"""timm's ViTs on a ResNet."""

from collections.abc import Mapping

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mpamatch.errors import InputError
from mpamatch.models.encoders.base import Encoder
from mpamatch.models.encoders.timm_state import fitted
from mpamatch.models.weights import load_checked


class HybridViTEncoder(Encoder):
    """timm's R50+ViT hybrid as in TransUNet (arXiv 2102.04306): ResNet maps at strides 2, 4, 8, the ViT's at 16.

    Raises InputError for a hybrid with other stages.
    """

    def __init__(self, vit: VisionTransformer):
        super().__init__()
        self.vit = vit
        backbone = vit.patch_embed.backbone
        if len(getattr(backbone, "stages", ())) != 3 or vit.patch_embed.patch_size[0] != 1:
            raise InputError("model.encoder: of timm's hybrids only those with a three-stage ResNet at stride 16 fit.")
        widths = [stage.blocks[-1].conv3.out_channels for stage in backbone.stages]
        stem = next(layer.out_channels for layer in backbone.stem if isinstance(layer, nn.Conv2d))
        self.channels, self.strides, self.multiple = (stem, *widths[:2], vit.embed_dim), (2, 4, 8, 16), 16

    @property
    def backbone(self) -> nn.Module:
        return self.vit

    def load(self, state: Mapping[str, Tensor], source: str) -> None:
        load_checked(self.vit, fitted(state, self.vit), source)

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
