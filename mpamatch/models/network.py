"""The base class of networks: an encoder, how it is tuned, and what a network predicts."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import field
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mpamatch.errors import InputError
from mpamatch.models.adapters import add_adapters
from mpamatch.models.encoders import Encoder
from mpamatch.registry import Registry
from mpamatch.settings import Count, NonNegative, OnlyIf, Whole, settings


@settings("model")
class NetworkConfig:
    """Which encoder a network has and how it is tuned.

    Attributes:
        encoder: a preset (`mpamatch info` lists them: tf_efficientnet_lite0, uni, kaiko-s16, small_hybrid, …), or any
            backbone of timm by name, such as resnet50, vit_base_patch16_224 (TransUNi) or vit_base_r50_s16_224
            (TransUNet).
        encoder_weights: nothing (random); auto (what is at hand: a package, a cache, else random); a checkpoint file;
            offline (packages of the extra pretrained-offline); timm or smp (published by them); hub (the preset's
            repository); or hf-hub:ID.
        skips: blocks of a plain ViT, counted from 0 in rising order, whose maps come before the last one; the decoder
            takes the deepest of them at stride 8, the one before at stride 4. None: TransUNi as published.
        encoder_norm: batch norms of a pretrained encoder, if it has some: frozen, running (by the statistics that it
            brings, factors trained) or trained (by each batch's statistics).
        frozen_stages: shallow feature maps of a pretrained encoder whose layers are not trained.
        tuning: full, lora (adapters in the attention of a ViT) or frozen; the last two need encoder_weights.
        lora_rank: rank of the adapters.
        encoder_lr_scale: learning rate of a pretrained encoder as a factor of the other layers'.
        norm: batch or group; group if a step sees one image.
        checkpointing: whether backward computes the activations of encoder and decoder blocks again instead of keeping
            them: less memory for more time.

    Raises:
        InputError: a value out of its range, or a tuning that needs encoder_weights without them.
    """

    encoder: str = "small_hybrid"
    encoder_weights: str | None = None
    skips: list[Whole] = field(default_factory=list)
    encoder_norm: Annotated[Literal["trained", "running", "frozen"], OnlyIf("encoder_weights")] = "frozen"
    frozen_stages: Annotated[Whole, OnlyIf("encoder_weights")] = 0
    tuning: Literal["full", "lora", "frozen"] = "full"
    lora_rank: Annotated[Count, OnlyIf("tuning", ("lora",))] = 8
    encoder_lr_scale: Annotated[NonNegative, OnlyIf("encoder_weights")] = 0.1
    norm: Literal["batch", "group"] = "batch"
    checkpointing: bool = False

    @property
    def deepest(self) -> int:
        """Stride of the encoder's map that the network begins with, if the encoder has several: 16."""
        return 16

    def __post_init__(self) -> None:
        if self.tuning != "full" and self.encoder_weights is None:
            raise InputError(
                f"model.tuning: {self.tuning} needs model.encoder_weights; the weights of a random encoder never learn."
            )


class Prediction(NamedTuple):
    """What a network predicts for a batch of images.

    Attributes:
        logits: unnormalised class scores, at the images' size.
        embedding: the map that methods take pixel embeddings from: of TransUNet the output of the second ×2 block, at
            stride 4 if the encoder's deepest map has stride 16; of PrototypeMaps the class maps.
        border: unnormalised score of a pixel being on the border of an object, at the images' size; None for a network
            that does not learn it (`model.boundary`).
    """

    logits: Tensor  # (B, C, H, W)
    embedding: Tensor  # (B, D, h, w)
    border: Tensor | None = None  # (B, 1, H, W)

    def split(self, sizes: Sequence[int]) -> list["Prediction"]:
        """Splits what is predicted for a batch into that for parts of it.

        Args:
            sizes: how many images each part has, in order; B in all.

        Returns:
            A Prediction for each part.
        """
        border = [None] * len(sizes) if self.border is None else self.border.split(list(sizes))
        parts = zip(self.logits.split(list(sizes)), self.embedding.split(list(sizes)), border, strict=True)
        return [Prediction(*part) for part in parts]


class Network(nn.Module, ABC):
    """The base class of networks: an encoder and what turns its maps into a Prediction.

    A subclass calls `tune` at the end of its constructor, and `NETWORKS.register` makes it known.

    Args:
        encoder: the encoder, which the network changes as `config` says (frozen, adapters).
        classes: C, the number of classes, the background among them.
        config: settings of the class `configuration`.

    Attributes:
        name: class attribute: name of the network in checkpoints.
        configuration: class attribute: its settings, a subclass of NetworkConfig.
        takes_image_labels: class attribute: whether `forward` also takes image-level labels, `present`.
        frozen: whether the encoder is frozen; it stays in eval mode then.
        mixed_layout: whether the encoder alone works channels-last.
        border_width: width of the borders that it learns, in pixels of the image it sees; 0: it learns none.
        border_weight: of their term beside the labelled loss.
    """

    name: ClassVar[str]
    configuration: ClassVar[type[NetworkConfig]]
    takes_image_labels: ClassVar[bool] = False

    def __init__(self, encoder: Encoder, classes: int, config: NetworkConfig):
        super().__init__()
        self.encoder, self.classes, self.config = encoder, classes, config
        self.frozen = config.tuning == "frozen"
        self.mixed_layout = False
        self.border_width, self.border_weight = 0, 0.0
        # what stays in eval mode; a tuple, so that these are no submodules a second time
        self.still: tuple[nn.Module, ...] = (encoder,) if self.frozen else ()

    def tune(self) -> None:
        """Freezes the encoder or adds adapters to it, as the configuration says; the last step of construction.

        Raises:
            InputError: the encoder does not take adapters, or PEFT is not installed.
        """
        if self.frozen:
            self.encoder.requires_grad_(False)
        self._keep_still()
        if self.config.tuning == "lora":
            add_adapters(self.encoder, self.config.lora_rank)
        if self.config.checkpointing:
            self.encoder.recompute()
        self.train()

    def train(self, mode: bool = True) -> "Network":
        """Sets training or eval mode; a frozen encoder stays in eval mode.

        Args:
            mode: True: training mode, False: eval mode.

        Returns:
            The network itself.
        """
        super().train(mode)
        for module in self.still:
            module.train(False)
        return self

    def _keep_still(self) -> None:
        """Freezes the batch norms and shallow stages that the configuration names.

        Raises InputError if the encoder has none, so that the field would do nothing.
        """
        config = self.config
        if config.encoder_weights is None:
            return
        norms = self.encoder.norms()
        if not norms and config.encoder_norm != "frozen":
            raise InputError(f"model.encoder_norm: {config.encoder} has no batch norms.")
        if config.encoder_norm != "trained":
            self.still += tuple(norms)
        if config.encoder_norm == "frozen":
            for norm in norms:
                norm.requires_grad_(False)
        if config.frozen_stages:
            stages = self.encoder.layers_by_map()
            if config.frozen_stages > len(stages):
                has = f"has {len(stages)}" if stages else "takes none"
                raise InputError(f"model.frozen_stages: {config.frozen_stages} of {config.encoder}, which {has}.")
            still = [module for stage in stages[: config.frozen_stages] for module in stage]
            for module in still:
                module.requires_grad_(False)
            self.still += tuple(still)

    @property
    def keeps_encoder(self) -> bool:
        """Whether the encoder's own weights never change, so that no checkpoint needs to hold them."""
        return self.config.tuning != "full"

    def encode(self, image: Tensor) -> tuple[Tensor, ...]:
        """Computes the encoder's feature maps.

        An image whose sides the encoder's patch does not divide is resized (bilinear) to the nearest size that it does,
        such as 256 to 252 for a patch of 14, so that every map covers the image and nothing else.

        Args:
            image: (B, 3, H, W), normalised by the encoder's mean and std; any H and W.

        Returns:
            The maps, shallow to deep; their channels and strides are those of the encoder.
        """
        multiple = self.encoder.multiple
        size = [max(1, (side + multiple // 2) // multiple) * multiple for side in image.shape[-2:]]
        if size != list(image.shape[-2:]):
            image = functional.interpolate(image, size=size, mode="bilinear", align_corners=False)
        if self.mixed_layout:
            image = image.contiguous(memory_format=torch.channels_last)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            maps = self.encoder(image)
        return tuple(x.contiguous() for x in maps) if self.mixed_layout else maps

    def use_channels_last(self, *, encoder_alone: bool = False) -> None:
        """Lays out the weights channels-last: of the whole network, or of the encoder alone, whose maps become NCHW.

        Args:
            encoder_alone: for CPUs, where convolutions want channels-last and group norms do not.
        """
        module = self.encoder if encoder_alone else self
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.mixed_layout = encoder_alone

    @abstractmethod
    def forward(self, image: Tensor) -> Prediction:
        """Predicts a batch of images.

        Args:
            image: (B, 3, H, W), normalised by the encoder's mean and std; any H and W.

        Returns:
            The logits (B, C, H, W) and the embedding.
        """


NETWORKS: Registry[type[Network]] = Registry(Network, "network", "mpamatch.networks")  # type: ignore[type-abstract]
"""Every network class by name; other packages add theirs by the entry-point group `mpamatch.networks`."""
