"""From a configuration to the objects of a run."""

from dataclasses import replace
from pathlib import Path

import torch

from mpamatch.data.feeds import Feed, feed_class
from mpamatch.data.prepared import Prepared, load_prepared, training_lists, weak_training_lists
from mpamatch.engine.config import Config
from mpamatch.errors import InputError
from mpamatch.inference.segmenter import Segmenter, SegmenterSettings
from mpamatch.methods import Method, build_method
from mpamatch.models.build import build_model
from mpamatch.models.learned import encoder_identity
from mpamatch.models.licences import licence_of
from mpamatch.models.network import Network


def open_data(config: Config) -> Prepared:
    """The prepared set of the configuration. Raises InputError where data.root is not given or not prepared."""
    if not config.data.root:
        raise InputError("data.root: no data set given; add --data.root FOLDER (mpamatch prepare makes one).")
    return load_prepared(Path(config.data.root))


def build_training(config: Config, prepared: Prepared, *, fresh: bool = True) -> Method:
    """Builds the method on its network, from the seed. The network comes first, so that runs of different methods with
    one seed start from the same weights. `fresh=False` (resuming) leaves out weights that a checkpoint brings."""
    torch.manual_seed(config.engine.seed)
    brought = not fresh and config.model.tuning == "full"
    model = build_model(replace(config.model, encoder_weights=None) if brought else config.model, len(prepared.classes))
    model.config = config.model
    return build_method(config.method, model, prepared.class_names)


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


def build_segmenter(config: Config, prepared: Prepared, model: Network) -> Segmenter:
    """The model ready for whole images, as the configuration scales and tiles them."""
    settings = SegmenterSettings(
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
    return Segmenter(model, settings)


def licence_notes(config: Config) -> list[str]:
    """Terms of the weights in use that not everybody may use, to be printed once."""
    used = [config.model.encoder] if config.model.encoder_weights else []
    used += [name for tower in config.trains.towers if (name := tower.encoder(config.method))]
    return [note for name in dict.fromkeys(used) if (note := licence_of(name))]


def frozen_identity(method: Method) -> dict[str, dict[str, str]]:
    """What a checkpoint leaves out because it never changes: which weights, from where, with which SHA-256."""
    encoder = encoder_identity(method.model)
    return ({"encoder": encoder} if encoder else {}) | method.identities
