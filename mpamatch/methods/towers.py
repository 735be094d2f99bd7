"""The frozen towers that a method may have beside its network, and the settings that choose them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from torch import nn

from mpamatch.models.clip import OPEN_CLIP
from mpamatch.models.image_encoder import build_image_encoder
from mpamatch.models.prompt import TextPrototypes, load_descriptions
from mpamatch.models.published import CONCH, CONCH_ON_REQUEST
from mpamatch.models.text_encoders import build_text_encoder
from mpamatch.settings import OnlyIf, Share, Whole, settings


@dataclass(frozen=True)
class Tower:
    """A frozen encoder that a method has if its configuration chooses one.

    Attributes:
        name: the keyword of the method's constructor; checkpoints keep the weights' identity under it.
        field: the field of the method's configuration that names the encoder, or is "none".
        weights: the field that says where its weights come from.
        build: builds it from the configuration and the class names; its `identity` tells which weights it has.
    """

    name: str
    field: str
    weights: str
    build: Callable[[Any, Sequence[str]], nn.Module]

    def encoder(self, config: Any) -> str | None:
        """Returns the name of the encoder that `config` chooses; None if it chooses none."""
        name: str = getattr(config, self.field)
        return None if name == "none" else name

    def weights_given(self, config: Any) -> str | None:
        """Returns the file or tag of weights that `config` gives; None if it gives none."""
        weights: str | None = getattr(config, self.weights)
        return weights

    def missing(self, config: Any) -> str:
        """Says which weights the encoder that `config` chooses lacks and no network will bring; "" if none."""
        name, weights = self.encoder(config), self.weights_given(config)
        if name == CONCH and weights is None:
            return f"CONCH is chosen, and {CONCH_ON_REQUEST}"
        of_file = name is not None and not name.startswith(OPEN_CLIP)  # the others may have a published tag
        return f"{weights}: no such checkpoint file" if of_file and weights and not Path(weights).exists() else ""


@settings("method")
class TextSettings:
    """Settings of text prototypes: the frozen text encoder and the descriptions of the classes.

    Attributes:
        text_encoder: none, minilm, conch, plip, keep, quiltnet, biomedclip, or open_clip:MODEL; contrast with text
            prototypes.
        text_weights: checkpoint file (plip, keep, quiltnet, biomedclip are fetched without one), or the pretrained tag
            of an open_clip model.
        text_tokenizer: tokenizer file of conch, vocab.txt of keep or biomedclip, if it does not lie beside the
            checkpoint.
        prompts: pathology or generic descriptions of the classes, or a file of your own; pathology-similar and
            generic-distinct, the same with more or less wording in common between the classes; as controls, shuffled
            (each class gets another's pathology descriptions) or random (everyday words in their place).
        prompt_set: whose pathology descriptions; the recipe fills it in, or else the recipe for the data.
        prompt_noise: share of the words of all descriptions that everyday words replace, 0 to 1.
        prompt_seed: which draw of shuffled or random prompts, or of noise.
        context_tokens: learnable CoOp tokens before each description (0: none).
        class_context: context tokens of each class's own.
    """

    text_encoder: str = "none"
    text_weights: Annotated[str | None, OnlyIf("text_encoder")] = None
    text_tokenizer: Annotated[str | None, OnlyIf("text_encoder")] = None
    prompts: Annotated[str, OnlyIf("text_encoder")] = "pathology"
    prompt_set: Annotated[str | None, OnlyIf("text_encoder")] = None
    prompt_noise: Annotated[Share, OnlyIf("text_encoder")] = 0.0
    prompt_seed: Annotated[Whole, OnlyIf("prompts", ("shuffled", "random")) | OnlyIf("prompt_noise")] = 0
    context_tokens: Annotated[Whole, OnlyIf("text_encoder")] = 1
    class_context: Annotated[bool, OnlyIf("context_tokens")] = False


@settings("method")
class ImageSettings:
    """Settings of the frozen image encoder that embeds what the class maps cut out of an image.

    Attributes:
        image_encoder: none, conch, plip, keep, quiltnet, biomedclip, or open_clip:MODEL; contrast of what the maps cut
            out, seen by this frozen encoder.
        image_weights: checkpoint file (plip, keep, quiltnet, biomedclip are fetched without one), or the pretrained tag
            of an open_clip model.
    """

    image_encoder: str = "none"
    image_weights: Annotated[str | None, OnlyIf("image_encoder")] = None


def descriptions(config: TextSettings, class_names: Sequence[str]) -> list[list[str]]:
    """Loads the descriptions of each class that `config` chooses. Raises InputError as `load_descriptions` does."""
    return load_descriptions(
        config.prompts, config.prompt_set, class_names, config.prompt_seed, noise=config.prompt_noise
    )


def _text(config: TextSettings, class_names: Sequence[str]) -> nn.Module:
    found = descriptions(config, class_names)
    encoder = build_text_encoder(config.text_encoder, config.text_weights, config.text_tokenizer)
    return TextPrototypes(encoder, found, context_tokens=config.context_tokens, class_specific=config.class_context)


def _image(config: ImageSettings, class_names: Sequence[str]) -> nn.Module:
    return build_image_encoder(config.image_encoder, config.image_weights)


TEXT = Tower("text", "text_encoder", "text_weights", _text)
IMAGE = Tower("image", "image_encoder", "image_weights", _image)
