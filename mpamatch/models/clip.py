"""CLIP's checkpoints: open_clip's configurations and weights, their activation, and the names of their entries."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mpamatch.errors import InputError, unknown
from mpamatch.models.towers import first_line
from mpamatch.models.weights import read_state_dict

OPEN_CLIP = "open_clip:"
# What a folder or repository in open_clip's own format calls its weights (open_clip 3, constants.py).
OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
# What only the state dicts of OpenAI's own archives hold beside the weights (github.com/openai/CLIP, clip/model.py).
OPENAI = frozenset({"input_resolution", "context_length", "vocab_size"})
# Entries of whole checkpoints that belong to neither tower, and buffers that older libraries stored.
NOT_WEIGHTS = OPENAI | {"logit_scale", "logit_bias", "attn_mask"}
# What a name of transformers' CLIPModel begins with → what open_clip calls it; below, parts of a block's.
TRANSFORMERS = ("text_model.", "vision_model.")
OPEN_CLIP_NAMES = {
    "text_model.embeddings.token_embedding.": "token_embedding.",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.encoder.layers.": "transformer.resblocks.",
    "text_model.final_layer_norm.": "ln_final.",
    "text_projection.weight": "text_projection",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.": "visual.conv1.",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.encoder.layers.": "visual.transformer.resblocks.",
    "vision_model.pre_layrnorm.": "visual.ln_pre.",  # spelt so
    "vision_model.post_layernorm.": "visual.ln_post.",
    "visual_projection.weight": "visual.proj",
}
OPEN_CLIP_BLOCK = {
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
    ".self_attn.": ".attn.",
}
TRANSPOSED = ("text_projection.weight", "visual_projection.weight")


@dataclass(frozen=True)
class OpenClipModel:
    """A model of open_clip with its weights.

    Attributes:
        config: open_clip's configuration of both towers.
        tag: open_clip's entry of the pretrained tag (activation, mean, std); empty for a file.
        file: the checkpoint.
        state: its entries.
    """

    config: dict[str, Any]
    tag: dict[str, Any]
    file: Path
    state: dict[str, Tensor]

    @property
    def quick_gelu(self) -> bool:
        """Whether the activation is QuickGELU: the tag or, for files and where the tag is silent, the model says so."""
        return bool(self.tag.get("quick_gelu") or self.config.get("quick_gelu"))


def open_clip_model(name: str, weights: str | None, kind: str) -> OpenClipModel:
    """Reads the configuration and the weights of "open_clip:MODEL".

    Args:
        name: "open_clip:MODEL", or "open_clip:hf-hub:ORG/REPO" and "open_clip:local-dir:FOLDER", which bring weights.
        weights: a checkpoint file or a pretrained tag.
        kind: "text encoder" or "image encoder", for messages.

    Returns:
        Both.

    Raises:
        InputError: an unknown model; weights that are missing, cannot be fetched, want another activation than the
            model has, or have names of transformers, which leave the activation open.
    """
    config = open_clip_config(name, kind)
    file, tag = open_clip_weights(name, weights, kind)
    model = OpenClipModel(config, tag, file, read_state_dict(file))
    if any(entry.startswith(TRANSFORMERS) for entry in model.state):
        raise InputError(
            f"{file}: has the names of transformers' CLIPModel, which leave the activation open: PLIP's file goes with "
            f"the {kind} plip, another model's must have open_clip's names."
        )
    if OPENAI & model.state.keys() and not model.quick_gelu:
        raise InputError(f"{file}: holds OpenAI's weights, whose activation is QuickGELU: {_with_quick_gelu(name)}")
    return model


def open_clip_config(name: str, kind: str) -> dict[str, Any]:
    """Returns open_clip's configuration of "open_clip:MODEL". `kind`: "text encoder" or "image encoder", for messages.

    Raises InputError for an unknown model (the nearest is named) or a configuration that cannot be fetched.
    """
    import open_clip

    model = name.removeprefix(OPEN_CLIP)
    if ":" not in model and model not in open_clip.list_models():
        raise unknown("open_clip model", model, open_clip.list_models())
    try:
        return open_clip.get_model_config(model)
    except Exception as error:  # the hub's client raises many kinds
        raise InputError(f"{kind} {name!r}: no configuration ({first_line(error)}).") from error


def open_clip_weights(name: str, weights: str | None, kind: str) -> tuple[Path, dict[str, Any]]:
    """Finds or downloads the checkpoint file; returns it with open_clip's entry of its tag (QuickGELU, mean, std).

    "open_clip:hf-hub:ORG/REPO" and "open_clip:local-dir:FOLDER" bring their weights. Raises InputError if weights are
    missing, unknown or cannot be fetched.
    """
    import open_clip
    from open_clip.pretrained import download_pretrained_from_hf

    model = name.removeprefix(OPEN_CLIP)
    form, _, place = model.partition(":")
    tags = open_clip.list_pretrained_tags_by_model(model)
    if weights is None and form == "local-dir":
        return next(
            (file for name in OPEN_CLIP_FILES if (file := Path(place) / name).is_file()),
            Path(place) / OPEN_CLIP_FILES[0],
        ), {}
    if weights is None and form != "hf-hub":
        raise InputError(
            f"{kind} {name!r} needs weights: give a local checkpoint file"
            + (f" or one of the tags {', '.join(tags)}." if tags else ".")
        )
    if weights is not None and (Path(weights).is_file() or not tags or "/" in weights):
        return Path(weights), {}
    if weights is not None and not open_clip.is_pretrained_cfg(model, weights):
        raise unknown(f"checkpoint file or tag of {model}", weights, tags)
    tag = open_clip.get_pretrained_cfg(model, weights) if weights is not None else {}
    try:
        file = open_clip.download_pretrained(tag) if tag else download_pretrained_from_hf(place)
    except Exception as error:  # no network, no access, a wrong id: the hub's client raises many kinds
        raise InputError(
            f"{weights or place}: cannot be downloaded ({first_line(error)}); give a local checkpoint file."
        ) from error
    return Path(file), tag


def text_part(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Picks the text tower's weights from a checkpoint: the entries under `text.`, or all but the image tower's."""
    if any(name.startswith("text.") for name in state):
        return stored_weights({name[5:]: value for name, value in state.items() if name.startswith("text.")})
    return stored_weights({name: value for name, value in state.items() if not name.startswith("visual.")})


def image_part(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Picks the image tower's weights from a checkpoint: the entries under `visual.`, or all if there are none."""
    part = {name.removeprefix("visual."): value for name, value in state.items() if name.startswith("visual.")}
    return stored_weights(part or state)


def stored_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leaves out what is stored beside the towers' weights."""
    # position_ids: a counting buffer that transformers stored before 4.31
    return {
        name: value for name, value in state.items() if name not in NOT_WEIGHTS and not name.endswith(".position_ids")
    }


def open_clip_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the entries of a transformers CLIPModel to open_clip's, which has one matrix for query, key and value.

    What is no such entry keeps its name, so that a strict load names it.
    """
    renamed = {_open_clip_name(name): value.T if name in TRANSPOSED else value for name, value in state.items()}
    for first in [name for name in renamed if ".attn.q_proj." in name]:
        names = [first.replace(".q_proj.", f".{letter}_proj.") for letter in "qkv"]
        parts = [renamed[name] for name in names if name in renamed]
        if len(parts) == 3 and len({part.shape for part in parts}) == 1:
            renamed[first.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
            for name in names:
                del renamed[name]
    return renamed


def _open_clip_name(name: str) -> str:
    for theirs, ours in OPEN_CLIP_NAMES.items():
        if name.startswith(theirs):
            name = ours + name.removeprefix(theirs)
            break
    if ".resblocks." in name:
        for theirs, ours in OPEN_CLIP_BLOCK.items():
            name = name.replace(theirs, ours)
    return name


def _with_quick_gelu(name: str) -> str:
    """Says how the model of `name` is had with QuickGELU."""
    import open_clip

    quick = f"{name}-quickgelu"
    if quick.removeprefix(OPEN_CLIP) in open_clip.list_models():
        return f"give them to {quick}."
    return f'{name} must say "quick_gelu": true in its configuration.'
