"""Networks and what they are made of, usable alone: encoders, frozen text and image encoders, prototypes.

`build_model(TransUNetConfig(encoder="small_hybrid"), classes=3)` builds a network whose forward takes images
(B, 3, H, W) and returns a Prediction.
"""

from mpamatch.models.build import build_model
from mpamatch.models.encoders import Encoder, Preset, build_encoder, presets
from mpamatch.models.image_encoder import ImageEncoder, build_image_encoder
from mpamatch.models.network import NETWORKS, Network, NetworkConfig, Prediction
from mpamatch.models.prompt import TextPrototypes, load_descriptions
from mpamatch.models.prototype_maps import PrototypeMaps, PrototypeMapsConfig
from mpamatch.models.prototypes import PrototypeBank
from mpamatch.models.text_encoders import TextEncoder, build_text_encoder, text_encoders
from mpamatch.models.transunet import TransUNet, TransUNetConfig

__all__ = [
    "NETWORKS",
    "Encoder",
    "ImageEncoder",
    "Network",
    "NetworkConfig",
    "Prediction",
    "Preset",
    "PrototypeBank",
    "PrototypeMaps",
    "PrototypeMapsConfig",
    "TextEncoder",
    "TextPrototypes",
    "TransUNet",
    "TransUNetConfig",
    "build_encoder",
    "build_image_encoder",
    "build_model",
    "build_text_encoder",
    "load_descriptions",
    "presets",
    "text_encoders",
]
