"""Builders of the objects of a run from its configuration."""

from dataclasses import replace
from pathlib import Path

import torch

from mpamatch.data.feeds import Feed, feed_class
from mpamatch.data.kinds import kinds
from mpamatch.data.prepared import Prepared, chosen_split, load_prepared, training_lists, weak_training_lists
from mpamatch.engine.config import Config, load_config
from mpamatch.errors import InputError, shown
from mpamatch.inference.segmenter import Segmenter
from mpamatch.inference.settings import SegmenterSettings
from mpamatch.methods import Method, build_method
from mpamatch.methods.towers import TEXT
from mpamatch.models.build import build_model, settled_model
from mpamatch.models.encoders import Preset, missing, weights_line
from mpamatch.models.learned import encoder_identity
from mpamatch.models.licences import licence_of
from mpamatch.models.network import Network

LONGEST_PATH = 4096  # letters, of Linux


def open_data(config: Config) -> Prepared:
    """Loads the prepared set of the configuration. Raises InputError if data.root is not given or not prepared."""
    if not config.data.root:
        raise InputError("data.root: no data set given; add --data.root FOLDER (mpamatch prepare makes one).")
    if len(config.data.root) > LONGEST_PATH:
        raise InputError(f"data.root: {shown(config.data.root)} is no path of a folder.")
    return load_prepared(Path(config.data.root))


def moved(run: Path, config: Config, data: Path | None) -> Config:
    """Returns the configuration of a run with the folder that its data lie in now.

    Args:
        run: its folder, for the sentence.
        config: as it was saved.
        data: the prepared set; None: where it lay in training.

    Raises:
        InputError: no folder is given, and it no longer lies there.
    """
    if data is not None:
        return replace(config, data=replace(config.data, root=str(data.absolute())))
    if config.data.root and not Path(config.data.root).is_dir():
        raise InputError(
            f"{run}: was trained on {config.data.root} (data.root in its config.yaml), where no folder is now: "
            "give the prepared set by --data FOLDER."
        )
    return config


def settled(config: Config, set_name: str) -> Config:
    """Replaces what the configuration leaves to this machine and to the data by what is found.

    "auto" becomes the weights that are at hand, and pathology descriptions of no set those of the recipe for the data.

    Args:
        config: of `load_config`.
        set_name: the name of the prepared set.

    Raises:
        InputError: weights that are missing, as `check_weights` says, or as `settled_model` does.
    """
    check_weights(config)
    method = config.method
    if TEXT in config.trains.towers and TEXT.encoder(method) and method.prompt_set is None:
        method = replace(method, prompt_set=prompt_set_for(set_name))
    return replace(config, model=settled_model(config.model), method=method)


def placed(config: Config, prepared: Prepared) -> Config:
    """Writes out which folder and which split are meant, so that a run finds them from anywhere and later too.

    Raises InputError if the split is unknown, or none is named and there are several.
    """
    split = config.data.split
    if split is not None or not config.trains.image_labels:  # without one such a method takes all that have labels
        split = chosen_split(prepared, split)
    return replace(config, data=replace(config.data, root=str(prepared.root.absolute()), split=split))


def check_weights(config: Config) -> None:
    """Raises InputError if the encoder or a tower lacks weights that only the user can bring.

    The sentence names what is missing, the option that takes each file, and the terms of the weights.
    """
    model, method = config.model, config.method
    found = [("model.encoder_weights", model.encoder, missing(model.encoder, model.encoder_weights))]
    for tower in config.trains.towers:
        found.append((f"method.{tower.weights}", tower.encoder(method) or "", tower.missing(method)))
    lacking = [(field, name, reason) for field, name, reason in found if reason]
    if lacking:
        wanted = [f"{field}: {reason}; give --{field.partition('.')[2]} FILE" for field, _, reason in lacking]
        terms = [text.rstrip(".") for _, name, _ in lacking if (text := licence_of(name))]
        raise InputError("; ".join([*wanted, *dict.fromkeys(terms)]) + ".")


def prompt_set_for(set_name: str) -> str | None:
    """Finds the pathology descriptions for a prepared set: those of the recipe for it; None if there is no recipe."""
    recipe = next((kind.recipes[set_name] for kind in kinds().values() if set_name in kind.recipes), None)
    return None if recipe is None else load_config(recipe, None, ["--method.name", "mpamatch"]).method.prompt_set


def build_training(config: Config, prepared: Prepared, built_from: Preset | None = None) -> Method:
    """Builds the method on its network, with initial weights from engine.seed.

    The network is built first, so that runs of different methods with one seed start from the same weights.

    Args:
        built_from: what the encoder is built from, if a checkpoint is loaded afterwards that brings its weights.
    """
    torch.manual_seed(config.engine.seed)
    model = build_model(config.model, len(prepared.classes), built_from)
    return build_method(config.method, model, prepared.class_names)


def build_feed(
    config: Config, prepared: Prepared, method: Method, *, rank: int, ranks: int, device: torch.device
) -> Feed:
    """Builds the feed of this rank's share of every global batch, for steps on `device`."""
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
        border_width=method.model.border_width,
        device=device,
    )


def build_segmenter(config: Config, prepared: Prepared, model: Network) -> Segmenter:
    """Wraps the network for whole images, scaled and cut into windows as the configuration says."""
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


def encoder_line(config: Config) -> str:
    """Says which weights the encoder starts from, and how to get better ones."""
    return weights_line(config.model.encoder, config.model.encoder_weights)


def licence_notes(config: Config, method: Method) -> list[str]:
    """Lists the terms of the pretrained weights in use, each once."""
    own = method.model.encoder.preset.licence if config.model.encoder_weights else None
    towers = [licence_of(name) for tower in config.trains.towers if (name := tower.encoder(config.method))]
    return [note for note in dict.fromkeys([own, *towers]) if note]


def frozen_identity(method: Method) -> dict[str, dict[str, str]]:
    """Names the frozen weights, which no checkpoint holds: tower → where they came from and their SHA-256."""
    encoder = encoder_identity(method.model)
    return ({"encoder": encoder} if encoder else {}) | method.identities
