"""The contract of a method: everything that the engine, the studies and the benchmarks ask of it."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn

from mpamatch.batch import Batch
from mpamatch.errors import InputError
from mpamatch.methods.towers import Tower
from mpamatch.models.network import Network
from mpamatch.models.transunet import TransUNet
from mpamatch.registry import Registry


class Method(nn.Module, ABC):
    """An nn.Module whose forward turns a batch into named losses; it knows no file, optimizer or device.

    A subclass declares, as class attributes:

    - `name`: what --method.name says; `@METHODS.register` or an entry point of the group `mpamatch.methods` makes it
      known.
    - `configuration`: its settings, a class made by `@settings("method")` with the field `name`.
    - `network`: the class of networks that it trains.
    - `towers`: the frozen encoders that its settings may choose; it is called with each as a keyword, None if the
      settings choose none.
    - What the feed must bring: `strong_views` (0, 1 or 2; 0: no unlabelled images), `feature_dropout` (channel noise),
      `image_labels` (image-level labels in place of labels: masks stay unseen).
    - `mixes`: whether it mixes neighbouring unlabelled images (CutMix).
    - What it logs beside `loss`: `losses`, the parts of the loss, unweighted, which the curves show; `progress`, those
      of them that the progress line shows too (all if None); `shares`, fractions 0 to 1 such as that of confident
      pixels. `diagnostics` may add more.

    All state is in parameters and buffers.
    """

    name: ClassVar[str]
    configuration: ClassVar[type]
    network: ClassVar[type[Network]] = TransUNet
    towers: ClassVar[tuple[Tower, ...]] = ()
    strong_views: ClassVar[int] = 0
    feature_dropout: ClassVar[bool] = False
    image_labels: ClassVar[bool] = False
    mixes: ClassVar[bool] = False
    losses: ClassVar[tuple[str, ...]] = ()
    progress: ClassVar[tuple[str, ...] | None] = None
    shares: ClassVar[tuple[str, ...]] = ()
    model: Any  # a network of the class `network`
    config: Any  # settings of the class `configuration`

    def __init__(self, model: Network, config: Any, **towers: nn.Module | None):
        """Args: the network, the settings, and of `towers` those that the settings choose.

        Raises InputError for a network of another class.
        """
        super().__init__()
        if not isinstance(model, self.network):
            raise InputError(
                f"method.name: {self.name} trains a {self.network.__name__}, got a {type(model).__name__}."
            )
        self.model = model
        self.config = config
        built = {name: tower for name, tower in towers.items() if tower is not None}
        self.identities: dict[str, dict[str, str]] = {name: dict(tower.identity) for name, tower in built.items()}  # type: ignore[arg-type]

    @abstractmethod
    def forward(self, batch: Batch, step: Tensor) -> dict[str, Tensor]:  # step: () i64
        """0-d tensors by name: `loss`, and what `losses` and `shares` announce, without a gradient that matters."""

    def after_step(self, step: Tensor) -> None:
        """What happens after the optimizer, such as an EMA teacher."""

    @property
    def deployed(self) -> Network:
        """The network that predicts."""
        return self.model

    @classmethod
    def settled(cls, config: Any) -> int:
        """The step from which every term of the loss is there in full, for benchmarks that time a step."""
        return 0

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


METHODS: Registry[type[Method]] = Registry(Method, "method.name", "mpamatch.methods")  # type: ignore[type-abstract]
