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
LAYER = r"(?:encoder\.layer|layers)\.(\d+)\."
# transformers' name of a part → timm's, for its ViTModel and Dinov2Model, with or without registers. Files have the
# names of transformers 4, which save_pretrained still writes; modules of transformers 5 have q_proj, o_proj, ….
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
    "mlp.weights_in.": "mlp.fc1.",  # SwiGLU, whose first half is the gate as in timm's SwiGLUPacked
    "mlp.weights_out.": "mlp.fc2.",
    "attention.o_proj.": "attn.proj.",
    "mlp.down_proj.": "mlp.fc2.",
}
# Parts of which timm's tensor consists, in its order.
PIECES = {
    "attn.qkv": (
        ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
        ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    ),
    "mlp.fc1": (("mlp.gate_proj", "mlp.up_proj"),),
}
PIECE_OF = {part: (whole, parts) for whole, choices in PIECES.items() for parts in choices for part in parts}
UNUSED = ("embeddings.mask_token", "pooler.", "classifier.")  # of training by masks, and behind the last norm


def fitted(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Renames and resamples a published state dict for `model`, without its classifier.

    Args:
        state: tensors under timm's names, those of DINOv2, or those of transformers' ViTModel or Dinov2Model.
        model: a whole model of timm without a classifier.

    Returns:
        The tensors by the names of `model`; what does not fit is left for a strict loader to name.
    """
    if any(name.endswith(PATCHES) for name in state):
        state = from_transformers(state)
        if getattr(model, "no_embed_class", False):
            state = without_class_position(state)
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
    """Renames the tensors of transformers' ViTModel or Dinov2Model; query, key and value become timm's `qkv`.

    Pieces that do not make a whole keep their names, for a strict loader to name them.
    """
    first = next(name for name in state if name.endswith(PATCHES))
    prefix = first.removesuffix(PATCHES)
    own = {name.removeprefix(prefix): value for name, value in state.items()}
    found: dict[str, Tensor] = {}
    for name, value in own.items():
        layer = re.match(LAYER, name)
        if layer is None:
            found[_renamed(name, OUTSIDE)] = value
            continue
        block, inside = f"blocks.{layer[1]}.", name[layer.end() :]
        module, _, kind = inside.rpartition(".")
        if module not in PIECE_OF:
            found[block + _renamed(inside, INSIDE)] = value
            continue
        whole, parts = PIECE_OF[module]
        pieces = [own.get(f"{layer[0]}{part}.{kind}") for part in parts]
        if all(piece is not None and piece.shape == value.shape for piece in pieces):
            if module == parts[0]:
                found[f"{block}{whole}.{kind}"] = torch.cat([piece for piece in pieces if piece is not None])
        else:
            found[name] = value
    return {name: value for name, value in found.items() if not name.startswith(UNUSED)}


def without_class_position(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Adds the class token's position to the token, for models of timm whose position table has places alone."""
    state = dict(state)
    token, table = state.get("cls_token"), state.get("pos_embed")
    if token is not None and table is not None and token.shape[-1] == table.shape[-1]:
        state |= {"cls_token": token + table[:, :1], "pos_embed": table[:, 1:]}
    return state


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
