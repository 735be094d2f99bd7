"""The contract of a method: everything the one training loop asks of it."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from mpamatch.batch import Batch
from mpamatch.errors import InputError
from mpamatch.models.transunet import TransUNet


class Method(nn.Module, ABC):
    """A method is an nn.Module whose forward turns a batch into named losses; it knows no file, optimizer or device.

    Class attributes say what the feed must bring: `strong_views` (0, 1 or 2; 0 = no unlabelled images),
    `feature_dropout` (channel noise) and `image_labels` (image-level labels in place of labels: masks stay unseen).
    `head` is the model.head that it trains. All state is in parameters and buffers.
    """

    strong_views = 0
    feature_dropout = False
    image_labels = False
    head = "decoder"

    def __init__(self, model: TransUNet):
        super().__init__()
        if model.config.head != self.head:
            raise InputError(f"model.head: {model.config.head} is not what this method trains; take {self.head}.")
        self.model = model

    @abstractmethod
    def forward(self, batch: Batch, step: Tensor) -> dict[str, Tensor]:  # step: () i64
        """0-d tensors by name, `loss` among them; the others are for the log and carry no gradient that matters."""

    def after_step(self, step: Tensor) -> None:
        """What happens after the optimizer, such as an EMA teacher."""

    @property
    def deployed(self) -> TransUNet:
        """The network that predicts."""
        return self.model

    def diagnostics(self) -> dict[str, Tensor]:
        """0-d tensors about the method's state, asked for when metrics are written."""
        return {}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimizer: `params`, `lr_scale` and whether weight decay applies (`decay`; matrices and
        convolutions only, as norms and biases are not shrunk)."""
        config = self.model.config
        scale = config.encoder_lr_scale if config.encoder_weights else 1.0
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                of_encoder = name.startswith("model.encoder.")
                key = (scale if of_encoder else 1.0, parameter.ndim >= 2 and not name.endswith(".context"))
                groups.setdefault(key, []).append(parameter)
        return [{"params": params, "lr_scale": lr, "decay": decay} for (lr, decay), params in groups.items()]
