"""The checkpoint that predicts, RUN/checkpoints/best.safetensors: a network and the settings to use it with."""

import dataclasses
from pathlib import Path
from typing import Any

from mpamatch.device import choose_device
from mpamatch.errors import InputError
from mpamatch.inference.export.runtime import SUFFIX, load_onnx
from mpamatch.inference.segmenter import Segmenter, precision_on, to_predict
from mpamatch.inference.settings import SegmenterSettings
from mpamatch.models.adapters import merge_adapters
from mpamatch.models.build import build_model, network_config
from mpamatch.models.encoders import Preset, preset_of
from mpamatch.models.learned import check_identity, check_tensors, encoder_identity, learned_state, load_learned
from mpamatch.models.network import NetworkConfig
from mpamatch.tensors import as_written, read_tensors, write_tensors


def best_checkpoint(run: Path) -> Path:
    """Returns the path of the checkpoint that a run predicts with."""
    return run / "checkpoints" / "best.safetensors"


def save_segmenter(path: Path, segmenter: Segmenter) -> None:
    """Writes the network of `segmenter` and its settings; of a frozen encoder only the source and SHA-256."""
    network: Any = segmenter.model
    identity = encoder_identity(network)
    about = {
        "network": network.name,
        "model": dataclasses.asdict(network.config),
        "encoder": network.encoder.preset.record(),
        "segmenter": dataclasses.asdict(segmenter.settings),
        "frozen": {"encoder": identity} if identity else {},
    }
    write_tensors(path, learned_state(network), about)


def load_segmenter(run: Path, device: str = "auto") -> Segmenter:
    """Loads the trained network of a run folder (its best checkpoint), or of an ONNX file, ready to predict.

    Args:
        run: the folder that `mpamatch train` wrote, or a file of `mpamatch export`, which runs on the CPU.
        device: auto (the GPU if there is one), cpu or cuda.

    Raises:
        InputError: `run` is no run folder or has no checkpoint yet, a frozen encoder's file has changed or gone, or
            cuda was asked for and torch sees no GPU.
    """
    if run.suffix == SUFFIX and not run.is_dir():
        return load_onnx(run, device)
    path = best_checkpoint(run)
    if not run.is_dir():
        raise InputError(f"{run}: no such run folder.")
    if not path.is_file():
        raise InputError(f"{run}: is no run folder with a trained model (it has no checkpoints/best.safetensors).")
    tensors, about = read_tensors(path)
    if "model" not in about:
        raise InputError(f"{path}: holds no network to predict with; it was written for something else.")
    place = choose_device(device)
    with as_written(path):
        config, settings = network_config(about.get("network"), about["model"]), _settings(about)
        classes, built_from = len(settings.class_names), encoder_of(about, config)
        frozen = None if config.tuning == "full" else _identity(about)
    if frozen is None:
        with as_written(path):
            network = build_model(config, classes, built_from)
    else:
        check_identity(frozen, path)
        network = build_model(config, classes)
        check_tensors(frozen, network, path)
    if settings.precision == "64":
        network.double()
    load_learned(network, tensors, path)
    if config.tuning == "lora":
        merge_adapters(network.encoder)
    settings = dataclasses.replace(settings, precision=precision_on(place, settings.precision))
    return Segmenter(to_predict(network, place), settings)


def encoder_of(about: dict[str, Any], config: NetworkConfig) -> Preset:
    """Returns what the encoder of a checkpoint was built from; in one of version 0.1.0 its name tells that."""
    return Preset.from_record(about["encoder"]) if "encoder" in about else preset_of(config.encoder)


def _identity(about: dict[str, Any]) -> dict[str, str]:
    """Reads what a frozen encoder is known by. Raises TypeError or KeyError for other values."""
    identity = about["frozen"]["encoder"]
    if not all(isinstance(one, str) for one in (identity["weights"], *identity.values())):
        raise TypeError("a frozen encoder is known by words")
    return dict(identity)


def _settings(about: dict[str, Any]) -> SegmenterSettings:
    """Reads the settings from a checkpoint; in one of version 0.1.0 they stand beside the other entries."""
    known = [field.name for field in dataclasses.fields(SegmenterSettings)]
    values = about.get("segmenter") or {name: about[name] for name in known if name in about}
    return SegmenterSettings(**values)
