"""Image–text models by a short name: where their weights lie, on what terms, and how each becomes two towers."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mpamatch.errors import InputError
from mpamatch.models.clip import OPEN_CLIP_FILES, image_part, open_clip_names, stored_weights, text_part
from mpamatch.models.towers import first_line

CONCH = "conch"
CONCH_ON_REQUEST = "its checkpoint is given on request (MahmoodLab/conch on Hugging Face, CC BY-NC-ND 4.0)"
CONCH_NEEDED = f"{CONCH_ON_REQUEST}; download it and give the file."
CONCH_LICENCE = "CC BY-NC-ND 4.0"
CONCH_TERMS = (
    "CONCH weights: CC BY-NC-ND 4.0, for non-commercial academic research only (Mahmood Lab); "
    "do not redistribute them or models tuned from them."
)
TRANSFORMERS_FILES = ("model.safetensors", "pytorch_model.bin")
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# config.json of microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract, which was called PubMedBERT.
PUBMEDBERT: dict[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}
BIOMEDCLIP_IMAGE = "vit_base_patch16_224"  # of timm
# timm's arguments of KEEP's image tower (modeling_keep.py of Astaxanthin/KEEP).
KEEP_IMAGE: dict[str, Any] = {"model_name": "vit_large_patch16_224", "init_values": 1e-5}


@dataclass(frozen=True)
class Half:
    """One tower of a model.

    Attributes:
        build: builds it with random weights.
        part: picks its weights from the whole checkpoint, under the tower's own names.
    """

    build: Callable[[], nn.Module]
    part: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True)
class Published:
    """An image–text model as its authors publish it.

    Attributes:
        hub: its repository on Hugging Face.
        files: what its weights may be called there; the first that is there is taken.
        licence: of the weights, in a word or two.
        text: the text tower of open_clip: a TextTransformer, or PubMedBERT in an HFTextEncoder.
        image: the image tower: (B, 3, side, side) -> (B, width).
        width: size of the vectors of both towers.
        of_bert: whether the text tower is PubMedBERT, with its vocabulary; else it takes CLIP's own tokens.
        terms: one sentence, shown when training begins, if not everybody may use the weights.
        side: height and width of the images that it takes, in pixels.
        mean: of R, G and B in 0..1, which the images are normalised by.
        std: as `mean`.
    """

    hub: str
    files: tuple[str, ...]
    licence: str
    text: Half
    image: Half
    width: int
    of_bert: bool = False
    terms: str | None = None
    side: int = 224
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD


def clip_text(model: str) -> nn.Module:
    """Builds the text tower of a model of open_clip."""
    import open_clip
    from open_clip.model import _build_text_tower

    config: Any = open_clip.get_model_config(model)
    return _build_text_tower(config["embed_dim"], config["text_cfg"], config.get("quick_gelu", False))


def clip_image(model: str) -> nn.Module:
    """Builds the image tower of a model of open_clip."""
    import open_clip
    from open_clip.model import _build_vision_tower

    config: Any = open_clip.get_model_config(model)
    return _build_vision_tower(config["embed_dim"], config["vision_cfg"], config.get("quick_gelu", False))


def biomedclip_text() -> nn.Module:
    """Builds BiomedCLIP's: PubMedBERT at its first token, without BERT's own pooling, then two layers without bias."""
    from open_clip.hf_model import HFTextEncoder
    from transformers import BertConfig

    config = BertConfig(**PUBMEDBERT)
    tower = HFTextEncoder("", 512, config, pooler_type="cls_last_hidden_state_pooler", proj_type="mlp")
    tower.transformer.pooler = None
    return tower


def biomedclip_image() -> nn.Module:
    """Builds BiomedCLIP's: a ViT of timm and one layer without bias (its open_clip_config.json)."""
    from open_clip.timm_model import TimmModel

    return TimmModel(BIOMEDCLIP_IMAGE, 512, pool="", proj="linear")


def keep_text() -> nn.Module:
    """Builds KEEP's: PubMedBERT with BERT's own pooling, a layer and tanh at the first token."""
    from open_clip.hf_model import HFTextEncoder
    from transformers import BertConfig

    config = BertConfig(**PUBMEDBERT)
    return HFTextEncoder("", config.hidden_size, config, pooler_type="cls_pooler")


def keep_image() -> nn.Module:
    """Builds KEEP's: timm's ViT-L/16 with layer scale and two layers into the text tower's width."""
    import timm

    vit: Any = timm.create_model(**KEEP_IMAGE, num_classes=0)
    width = PUBMEDBERT["hidden_size"]
    head = nn.Sequential(nn.Linear(vit.num_features, width), nn.GELU(), nn.Linear(width, width))
    return nn.Sequential(OrderedDict(visual=vit, visual_head=head))


def keep_text_part(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Picks KEEP's BertModel."""
    part = {name.removeprefix("text."): value for name, value in state.items() if name.startswith("text.")}
    return {f"transformer.{name}": value for name, value in stored_weights(part).items()}


def keep_image_part(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Picks KEEP's ViT and its head, whose names are the tower's."""
    return {name: value for name, value in state.items() if name.startswith(("visual.", "visual_head."))}


PUBLISHED = {
    "plip": Published(
        hub="vinid/plip",
        files=TRANSFORMERS_FILES,
        licence="none published",
        terms="PLIP weights: published without a licence; their card names research as the intended use and calls any "
        "deployment out of scope.",
        text=Half(partial(clip_text, "ViT-B-32-quickgelu"), lambda state: text_part(open_clip_names(state))),
        image=Half(partial(clip_image, "ViT-B-32-quickgelu"), lambda state: image_part(open_clip_names(state))),
        width=512,
    ),
    "keep": Published(
        hub="Astaxanthin/KEEP",
        files=TRANSFORMERS_FILES,
        licence="MIT",
        text=Half(keep_text, keep_text_part),
        image=Half(keep_image, keep_image_part),
        width=768,
        of_bert=True,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    ),
    # Tuned from OpenAI's weights, yet its open_clip_config.json names no QuickGELU: run as it is published.
    "quiltnet": Published(
        hub="wisdomik/QuiltNet-B-32",
        files=OPEN_CLIP_FILES,
        licence="MIT",
        text=Half(partial(clip_text, "ViT-B-32"), text_part),
        image=Half(partial(clip_image, "ViT-B-32"), image_part),
        width=512,
    ),
    "biomedclip": Published(
        hub="microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
        files=OPEN_CLIP_FILES,
        licence="MIT",
        text=Half(biomedclip_text, text_part),
        image=Half(biomedclip_image, image_part),
        width=512,
        of_bert=True,
    ),
}
# Terms of weights that not everybody may use, by the name of their tower.
TERMS = {CONCH: CONCH_TERMS, **{name: model.terms for name, model in PUBLISHED.items()}}


def cached(repository: str, files: tuple[str, ...]) -> Path | None:
    """Finds the first of `files` that was fetched before, without asking the network; None if none was."""
    from huggingface_hub import try_to_load_from_cache

    found = (try_to_load_from_cache(repository, file) for file in files)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def fetched(name: str, files: tuple[str, ...], what: str, flag: str) -> Path:
    """Fetches the first of `files` that the model's repository has, once; later it lies in Hugging Face's cache.

    Args:
        name: of the model.
        files: what it may be called.
        what: is fetched, for messages.
        flag: the option that takes a file in its place, for messages.

    Returns:
        The file.

    Raises:
        InputError: it cannot be fetched; the message says which file to download and how to give it.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    hub = PUBLISHED[name].hub
    if here := cached(hub, files):
        return here
    for file in files:
        try:
            return Path(hf_hub_download(hub, file))
        except Exception as error:  # the hub's client raises many kinds
            reason = error
            if isinstance(error, LocalEntryNotFoundError):
                break  # no network: the next name would be tried for as long, some 20 s
    raise InputError(
        f"{what}: cannot be fetched ({first_line(reason)}); download {' or '.join(files)} of {hub} from Hugging Face "
        f"and give it as {flag} FILE."
    ) from reason
