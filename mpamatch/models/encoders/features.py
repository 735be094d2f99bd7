"""Backbones of timm that give feature maps: EfficientNet, ResNet, ConvNeXt, Swin, RegNet, MobileNet and others."""

from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn

from mpamatch.errors import InputError
from mpamatch.models.encoders.base import Encoder, between, check_skips
from mpamatch.models.encoders.preset import Preset
from mpamatch.models.encoders.timm_state import fitted
from mpamatch.models.recompute import recomputed
from mpamatch.models.towers import first_line, without_draws
from mpamatch.models.weights import load_checked

LEAST_STRIDE = 2
# What a module of timm must be told so that its models take any image size.
ANY_SIZE: dict[str, dict[str, Any]] = {
    "swin_transformer": {"strict_img_size": False},
    "swin_transformer_v2": {"strict_img_size": False},
    "eva": {"dynamic_img_size": True},
}


class FeaturesEncoder(Encoder):
    """A backbone of timm with `features_only`: the last map at each stride from 2 to the decoder's first.

    Raises InputError for a backbone that takes one image size only, or has no map at a stride that fits.
    """

    def __init__(self, preset: Preset, deepest: int, skips: Sequence[int]):
        super().__init__()
        self.preset = preset
        chosen = _chosen(preset, deepest, skips)
        self.net: Any = _made(preset, features_only=True, out_indices=tuple(chosen))
        _without_random_depth(self.net)
        _without_deeper_blocks(self.net)
        self.channels = tuple(self.net.feature_info.channels())
        self.strides = tuple(self.net.feature_info.reduction())
        self.between = between(len(skips))
        self.multiple, self.transposed = self._tried()
        self._freeze_idle()

    @property
    def backbone(self) -> nn.Module:
        return self.net

    def load(self, state: Mapping[str, Tensor], source: str) -> None:
        """Loads a published state dict of the whole backbone; its layers behind the last map are checked and dropped.

        Raises InputError with the first differences if names or shapes do not fit.
        """
        whole = without_draws(lambda: _made(self.preset, num_classes=0))
        load_checked(whole, fitted(state, whole), source)
        names = set(self.net.state_dict())
        renamed = {_name_within(name, names): value for name, value in whole.state_dict().items()}
        self.net.load_state_dict({name: renamed[name] for name in names})

    def layers_by_map(self) -> list[list[nn.Module]]:
        modules = list(self.net.named_modules())
        found, start = [], 0
        ends = [self._last_module(name, modules) for name in self.net.feature_info.module_name()]
        for end in ends if min(ends) >= 0 else ():
            owners = [module for _, module in modules[start : end + 1] if any(True for _ in module.parameters(False))]
            found.append(owners)
            start = max(start, end + 1)
        return found

    def _last_module(self, name: str, modules: list[tuple[str, nn.Module]]) -> int:
        """Finds the place in `modules` of the last one within the module that timm calls `name`."""
        known = (name, name.replace(".", "_", 1), f"model.{name}")
        within = [i for i, (one, _) in enumerate(modules) if any(f"{one}.".startswith(f"{k}.") for k in known)]
        return max(within, default=-1)

    def recompute(self) -> None:
        self.checkpointing = True
        if not self.norms():
            self.net.set_grad_checkpointing(True)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        # timm's own checkpointing would count the batch of a batch norm twice
        whole = self.checkpointing and bool(self.norms())
        maps = recomputed(self.net, image) if whole else self.net(image)
        return tuple(x.permute(0, 3, 1, 2).contiguous() for x in maps) if self.transposed else tuple(maps)

    def _tried(self) -> tuple[int, bool]:
        """Runs small images; returns what sides must be multiples of, and whether maps come as (B, H, W, C).

        Raises InputError if maps have other sizes than their strides say, or no size but one is taken.
        """
        why = ""
        for multiple in (self.strides[-1], 32):
            sizes = [(3 * multiple // stride, 5 * multiple // stride) for stride in self.strides]
            plain = [(c, *size) for c, size in zip(self.channels, sizes, strict=True)]
            try:
                found = [tuple(x.shape[1:]) for x in self._maps_of(3 * multiple, 5 * multiple)]
            except (AssertionError, RuntimeError, ValueError) as error:
                why = first_line(error)
                continue
            if found == plain:
                return multiple, False
            if found == [(*size, c) for c, *size in plain]:
                return multiple, True
            why = f"its maps are {found}, expected {plain}"
        raise InputError(f"model.encoder: {self.preset.name!r} takes no other image size than its own ({why}).")

    def _freeze_idle(self) -> None:
        """Freezes parameters that no map depends on (HRNet has some): several ranks would wait for their gradients."""
        parameters = list(self.net.parameters())
        with torch.enable_grad():  # whoever loads a run to predict may have switched gradients off
            maps = self.net.eval()(torch.zeros(1, 3, 3 * self.multiple, 5 * self.multiple))
            gradients = torch.autograd.grad(sum(x.sum() for x in maps), parameters, allow_unused=True)
        self.net.train()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)

    def _maps_of(self, height: int, width: int) -> list[Tensor]:
        mode = self.net.training
        try:
            with torch.no_grad():
                return list(self.net.eval()(torch.zeros(1, 3, height, width)))
        finally:
            self.net.train(mode)


def build_features(preset: Preset, _norm: str, skips: Sequence[int], deepest: int) -> Encoder:
    """Builds a backbone with random weights. Raises InputError as FeaturesEncoder does."""
    return FeaturesEncoder(preset, deepest, skips)


def _made(preset: Preset, **how: Any) -> Any:
    """Makes timm's model. Raises InputError if timm does not make it with these arguments."""
    arguments = dict(preset.arguments)
    model_name = arguments.pop("model_name")
    module = timm.model_entrypoint(timm.models.split_model_name_tag(model_name)[0]).__module__.rpartition(".")[-1]
    try:
        return timm.create_model(model_name, pretrained=False, **{**ANY_SIZE.get(module, {}), **arguments, **how})
    except (TypeError, AssertionError, RuntimeError, AttributeError) as error:
        raise InputError(f"model.encoder: {preset.name!r} gives no feature maps ({first_line(error)}).") from error


def _chosen(preset: Preset, deepest: int, skips: Sequence[int]) -> list[int]:
    """Chooses the outputs: the last of each stride up to `deepest`; of a ViT, whose strides are equal, the last."""
    probe = without_draws(lambda: _made(preset, features_only=True))
    strides = list(probe.feature_info.reduction())
    first = probe.feature_info.out_indices[0]
    if len(set(strides)) == 1:
        count = first + len(strides)
        check_skips(preset, skips, count)
        return [*skips, count - 1]
    if skips:
        raise InputError(f"model.skips: {preset.name} has maps at several strides, which are skips as they are.")
    chosen = {stride: first + index for index, stride in enumerate(strides) if LEAST_STRIDE <= stride <= deepest}
    if not chosen or max(chosen) != deepest:
        least = f"strides {strides}, none of them {deepest}"
        raise InputError(f"model.encoder: {preset.name!r} gives maps at {least}, which the decoder begins with.")
    return list(chosen.values())


def _without_deeper_blocks(net: Any) -> None:
    """Drops the blocks behind the last map, which timm's EfficientNets and MobileNets run for nothing."""
    name, _, index = net.feature_info.module_name()[-1].rpartition(".")
    if name == "blocks" and isinstance(getattr(net, name, None), nn.Sequential):
        net.blocks = net.blocks[: int(index) + 1]


def _without_random_depth(net: nn.Module) -> None:
    """Switches dropout and stochastic depth off, so that a step depends on its batch alone."""
    module: Any
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0


def _name_within(name: str, names: set[str]) -> str:
    """Finds the name that a parameter of the whole model has in its feature extractor."""
    head, _, rest = name.partition(".")
    index, _, inner = rest.partition(".")
    known = (name, f"{head}_{index}.{inner}", f"model.{name}")
    return next((one for one in known if one in names), name)
