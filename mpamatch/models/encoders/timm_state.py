"""Fits published state dicts onto backbones of timm: names of other libraries, position tables of other sizes."""

import contextlib
import re
import sys
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

Renaming = Callable[[Mapping[str, Tensor], nn.Module], dict[str, Tensor]]

COUNTS = ".num_batches_tracked"  # older files lack these; a batch norm with momentum never reads them
PATCHES = "embeddings.patch_embeddings.projection.weight"  # of transformers' ViT and Dinov2
# transformers' name of a part → timm's, for its ViTModel and Dinov2Model.
OUTSIDE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.register_tokens": "reg_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.": "patch_embed.proj.",
    "layernorm.": "norm.",
}
INSIDE = {
    "attention.output.dense.": "attn.proj.",
    "layernorm_before.": "norm1.",
    "layernorm_after.": "norm2.",
    "intermediate.dense.": "mlp.fc1.",
    "output.dense.": "mlp.fc2.",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "mlp.weights_in.": "mlp.fc1.",  # SwiGLU
    "mlp.weights_out.": "mlp.fc2.",
}
UNUSED = ("embeddings.mask_token", "pooler.")  # of training by masks, and of ViTModel's pooling


def fitted(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Renames and resamples a published state dict for `model`, without its classifier.

    Args:
        state: tensors under timm's names, or those of transformers' ViTModel or Dinov2Model.
        model: a whole model of timm without a classifier.

    Returns:
        The tensors by the names of `model`; what does not fit is left for a strict loader to name.
    """
    if any(name.endswith(PATCHES) for name in state):
        state = from_transformers(state)
    adapt = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if adapt is not None:  # timm's own, which also resamples position tables and patches
        with contextlib.suppress(
            RuntimeError, KeyError, ValueError, IndexError
        ):  # it does not fit, as the loader will say
            state = adapt(dict(state), model)
    heads = _classifiers(model)
    kept = {name: value for name, value in state.items() if not name.startswith(heads)}
    counts = {name: value for name, value in model.state_dict().items() if name.endswith(COUNTS)}
    return {**counts, **kept}


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the tensors of transformers' ViTModel or Dinov2Model; query, key and value become timm's `qkv`."""
    first = next(name for name in state if name.endswith(PATCHES))
    prefix = first.removesuffix(PATCHES)
    found: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        inner = name.removeprefix(prefix)
        if inner.startswith(UNUSED):
            continue
        if match := re.fullmatch(r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(\w+)", inner):
            parts.setdefault(f"blocks.{match[1]}.attn.qkv.{match[3]}", {})[match[2]] = value
        elif match := re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", inner):
            found[f"blocks.{match[1]}.{_renamed(match[2], INSIDE)}"] = value
        else:
            found[_renamed(inner, OUTSIDE)] = value
    for name, three in parts.items():
        if set(three) == {"query", "key", "value"}:
            found[name] = torch.cat([three["query"], three["key"], three["value"]])
    return found


def by_order(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Gives the tensors of `state` the names of `model`'s, one after the other, classifier and counts left out.

    For files whose SHA-256 is known and whose layers come in timm's order under other names, such as the TensorFlow
    ports of EfficientNet; shapes are checked where the result is loaded.
    """
    wanted = [name for name in model.state_dict() if not name.endswith(COUNTS)]
    given = [value for name, value in state.items() if not name.endswith(COUNTS)]
    return dict(zip(wanted, given, strict=False))


KEY_MAPS: dict[str, Renaming] = {"order": by_order}


def _renamed(name: str, table: Mapping[str, str]) -> str:
    for theirs, ours in table.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _classifiers(model: nn.Module) -> tuple[str, ...]:
    """Lists the beginnings of the names that belong to the model's classifier."""
    published = getattr(model, "pretrained_cfg", None) or {}
    named = published.get("classifier") or "head"
    return tuple(f"{one}." for one in ((named,) if isinstance(named, str) else named))
