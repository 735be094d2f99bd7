"""From a configuration to the objects of a run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mpamatch.data.feeds import Feed, feed_class
from mpamatch.data.prepared import Prepared, load_prepared, training_lists, weak_training_lists
from mpamatch.engine.config import Config
from mpamatch.errors import InputError
from mpamatch.inference.segmenter import Segmenter
from mpamatch.methods import Method, build_method
from mpamatch.models.build import build_model
from mpamatch.models.image import ImageEncoder, build_image_encoder
from mpamatch.models.prompt import TextPrototypes, load_descriptions
from mpamatch.models.text import build_text_encoder
from mpamatch.models.transunet import ModelConfig, TransUNet
from mpamatch.models.weights import LICENCES, sha256


def open_data(config: Config) -> Prepared:
    """The prepared set of the configuration. Raises InputError where data.root is not given or not prepared."""
    if not config.data.root:
        raise InputError("data.root: no data set given; add --data.root FOLDER (mpamatch prepare makes one).")
    return load_prepared(Path(config.data.root))


def build_training(config: Config, prepared: Prepared, *, fresh: bool = True) -> Method:
    """The method on its model, from the seed. The model comes first, so that runs of different methods with one seed
    start from the same weights. `fresh=False` (resuming) leaves out weights that a checkpoint brings."""
    torch.manual_seed(config.engine.seed)
    model = build_model(_without_weights(config.model) if not fresh else config.model, len(prepared.classes))
    model.config = config.model
    return build_method(config.method, model, _text(config.method, prepared), _image(config.method))


def _without_weights(config: ModelConfig) -> ModelConfig:
    return config if config.tuning != "full" else replace(config, encoder_weights=None)


def _text(method: Any, prepared: Prepared) -> TextPrototypes | None:
    name = getattr(method, "text_encoder", "none")
    if name == "none":
        return None
    descriptions = load_descriptions(method.prompts, method.prompt_set, prepared.class_names, method.prompt_seed)
    encoder = build_text_encoder(name, method.text_weights, method.text_tokenizer)
    return TextPrototypes(
        encoder, descriptions, context_tokens=method.context_tokens, class_specific=method.class_context
    )


def _image(method: Any) -> ImageEncoder | None:
    name = getattr(method, "image_encoder", "none")
    return None if name == "none" else build_image_encoder(name, method.image_weights)


def build_feed(
    config: Config, prepared: Prepared, method: Method, *, rank: int, ranks: int, device: torch.device
) -> Feed:
    """The feed of this rank's share of every global batch, for a step on `device`."""
    lists = weak_training_lists if method.image_labels else training_lists
    labelled, unlabelled = lists(prepared, config.data.split)
    encoder = method.model.encoder
    return feed_class(config.data.feed, device)(
        prepared,
        labelled,
        unlabelled,
        config.data,
        seed=config.engine.seed,
        strong_views=method.strong_views,
        channels=sum(encoder.channels) if method.feature_dropout else 0,
        mean=encoder.mean,
        std=encoder.std,
        rank=rank,
        ranks=ranks,
        image_labels=method.image_labels,
        device=device,
    )


def build_segmenter(config: Config, prepared: Prepared, model: TransUNet) -> Segmenter:
    """The model ready for whole images, as the configuration scales and tiles them."""
    return Segmenter(
        model,
        class_names=prepared.class_names,
        colours=prepared.colours,
        mean=model.encoder.mean,
        std=model.encoder.std,
        window=config.data.crop,
        scale=config.data.scale,
        microns_per_pixel=prepared.microns_per_pixel,
        overlap=config.engine.overlap,
        precision=config.engine.precision,
    )


def licence_notes(config: Config) -> list[str]:
    """Terms of the weights in use that not everybody may use, to be printed once."""
    used = [config.model.encoder] if config.model.encoder_weights else []
    used += [getattr(config.method, field, "none") for field in ("text_encoder", "image_encoder")]
    return [LICENCES[name] for name in dict.fromkeys(used) if name in LICENCES]


def frozen_identity(config: Config, method: Method) -> dict[str, dict[str, str]]:
    """What a checkpoint leaves out because it never changes: which weights, from where, with which SHA-256."""
    identity: dict[str, dict[str, str]] = {}
    if method.model.keeps_encoder:
        weights = str(config.model.encoder_weights)
        found = {"sha256": sha256(Path(weights))} if Path(weights).is_file() else {}
        identity["encoder"] = {"name": config.model.encoder, "weights": weights, **found}
    text = getattr(method, "text", None)
    if text is not None:
        identity["text"] = dict(text.identity)
    image = getattr(method, "image", None)
    if image is not None:
        identity["image"] = dict(image.identity)
    return identity
