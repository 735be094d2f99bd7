"""The contract of a method: all that the engine, the studies and the benchmarks ask of it."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn

from mpamatch.batch import Batch, Labelled
from mpamatch.errors import InputError
from mpamatch.methods.losses import border_loss, labelled_loss
from mpamatch.methods.towers import Tower
from mpamatch.models.network import Network, Prediction
from mpamatch.models.transunet import TransUNet
from mpamatch.registry import Registry


class Method(nn.Module, ABC):
    """The base class of methods: an nn.Module whose forward turns a batch into a loss and what is logged.

    It knows no file, optimizer or device. All its state is in parameters and buffers, so that a checkpoint holds it.
    `@register`, or an entry point of the group `mpamatch.methods`, makes a subclass known. What a subclass declares are
    class attributes, from `name` to `shares`.

    Args:
        model: the network to train.
        config: its settings, an instance of `configuration`.
        towers: by name, the frozen towers that the settings choose; None or left out if they choose none.

    Attributes:
        name: what --method.name says.
        configuration: its settings, a class made by `@settings("method")` with the field `name`.
        network: the class of networks that it trains.
        towers: frozen encoders that its settings may choose; the constructor takes each by its name.
        strong_views: 0, 1 or 2 strongly augmented views of each unlabelled image; 0: no unlabelled images.
        feature_dropout: whether the batch brings uniform draws for dropping channels.
        image_labels: whether it learns from image-level labels; masks are not read then.
        mixes: whether it mixes neighbouring unlabelled images (CutMix).
        losses: the parts of the loss that it logs, unweighted; the curves show them.
        progress: those of `losses` that the progress line shows; None: all.
        shares: the fractions, 0 to 1, that it logs, such as that of confident pixels.
        borders: whether its labelled loss is that of `supervised`, so that a network learns borders by it.
        model: the network that is trained, a `network`.
        config: its settings, a `configuration`.
        identities: of each tower, name, source and sha256 of its weights, which a checkpoint keeps in their place.

    Raises:
        InputError: `model` is no `network`, or learns borders and the method does not.
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
    borders: ClassVar[bool] = False
    model: Any
    config: Any

    def __init__(self, model: Network, config: Any, **towers: nn.Module | None):
        super().__init__()
        if not isinstance(model, self.network):
            raise InputError(
                f"method.name: {self.name} trains a {self.network.__name__}, got a {type(model).__name__}."
            )
        if model.border_width and not self.borders:
            raise InputError(f"model.boundary: {self.name} does not learn the borders of objects; leave it off.")
        self.model = model
        self.config = config
        built = {name: tower for name, tower in towers.items() if tower is not None}
        self.identities: dict[str, dict[str, str]] = {name: dict(tower.identity) for name, tower in built.items()}  # type: ignore[arg-type]

    @abstractmethod
    def forward(self, batch: Batch, step: Tensor) -> dict[str, Tensor]:  # step: () i64
        """Computes the loss of one step; it asks the device for no value, so that a step does not wait.

        Args:
            batch: what the feed brought, on the device of the method.
            step: steps done before, a 0-d tensor on the same device.

        Returns:
            0-d tensors by name: `loss`, whose gradient trains, and all of `losses` and `shares`, detached.
        """

    def supervised(self, prediction: Prediction, labelled: Labelled) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes what every method learns from masks: `labelled_loss`, and the border's term if the network has one.

        Args:
            prediction: of the labelled images.
            labelled: their labels and, for a network that learns borders, these.

        Returns:
            The loss, (), and what is to be logged of it: {} or the border's term, unweighted.
        """
        loss = labelled_loss(prediction.logits, labelled.label, self.config.labelled_loss)
        if prediction.border is None or labelled.border is None:
            return loss, {}
        border = border_loss(prediction.border, labelled.border)
        return loss + self.model.border_weight * border, {"border": border.detach()}

    def after_step(self, step: Tensor) -> None:
        """Does what follows the optimizer's step, such as moving an EMA teacher; nothing unless overridden.

        Args:
            step: as in `forward`.
        """

    @property
    def deployed(self) -> Network:
        """The network that validation, evaluation and prediction use; the trained one unless overridden."""
        return self.model

    @classmethod
    def settled(cls, config: Any) -> int:
        """Returns the step from which every term of the loss counts in full; benchmarks time steps after it.

        Args:
            config: settings of the method.

        Returns:
            A number of steps; 0 unless overridden.
        """
        return 0

    def diagnostics(self) -> dict[str, Tensor]:
        """Measures the method's state; called when metrics are written.

        Returns:
            0-d tensors by name; none unless overridden.
        """
        return {}

    def prototype_cosines(self, image: Tensor) -> Tensor | None:
        """Computes the cosine of every pixel embedding with every prototype; for pictures, after training.

        Args:
            image: (B, 3, H, W), normalised by the encoder's mean and std.

        Returns:
            (B, F, K, h, w), −1 to 1, in cells of the embedding's grid: K prototypes of each of the last F of the C
            classes, all of them or those but for the background; None, unless overridden: there are no prototypes.
        """
        return None

    def prototype_vectors(self) -> Tensor | None:
        """Returns the prototypes that `prototype_cosines` compares with; for reports, after training.

        Returns:
            (F, K, D), of any length; None, unless overridden: there are no prototypes.
        """
        return None

    def prototype_text_cosines(self) -> Tensor | None:
        """Computes the cosine of every prototype with the text prototype of every class; for reports, after training.

        Returns:
            (F, K, C), −1 to 1; None, unless overridden: there are no text prototypes, or no others.
        """
        return None

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups the trainable parameters for the optimizer.

        Returns:
            Groups with `params`, `lr_scale` (a factor of the learning rate: for a pretrained encoder `encoder_lr_scale`
            of the network's settings, else 1) and `decay` (whether weight decay applies: to matrices and convolutions,
            not to norms, biases and context tokens).
        """
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
"""Every method by name; `METHODS["mpamatch"].configuration` is the class of its settings."""
