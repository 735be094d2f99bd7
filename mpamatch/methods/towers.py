"""The frozen towers that a method may have beside its network, and the settings that choose them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from torch import nn

from mpamatch.models.image_encoder import build_image_encoder
from mpamatch.models.prompt import TextPrototypes, load_descriptions
from mpamatch.models.text_encoders import build_text_encoder
from mpamatch.settings import OnlyIf, Whole, settings


@dataclass(frozen=True)
class Tower:
    """A frozen encoder that a method has if its configuration chooses one.

    Attributes:
        name: the keyword of the method's constructor; checkpoints keep the weights' identity under it.
        field: the field of the method's configuration that names the encoder, or is "none".
        build: builds it from the configuration and the class names; its `identity` tells which weights it has.
    """

    name: str
    field: str
    build: Callable[[Any, Sequence[str]], nn.Module]

    def encoder(self, config: Any) -> str | None:
        """Returns the name of the encoder that `config` chooses; None if it chooses none."""
        name: str = getattr(config, self.field)
        return None if name == "none" else name


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
        prompts: pathology or generic descriptions of the classes, or a file of your own; as controls, shuffled
            (each class gets another's pathology descriptions) or random (everyday words in their place).
        prompt_set: whose pathology descriptions; the recipe fills it in.
        prompt_seed: which draw of shuffled or random prompts.
        context_tokens: learnable CoOp tokens before each description (0: none).
        class_context: context tokens of each class's own.
    """

    text_encoder: str = "none"
    text_weights: Annotated[str | None, OnlyIf("text_encoder")] = None
    text_tokenizer: Annotated[str | None, OnlyIf("text_encoder")] = None
    prompts: Annotated[str, OnlyIf("text_encoder")] = "pathology"
    prompt_set: Annotated[str | None, OnlyIf("text_encoder")] = None
    prompt_seed: Annotated[Whole, OnlyIf("prompts", ("shuffled", "random"))] = 0
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
    return load_descriptions(config.prompts, config.prompt_set, class_names, config.prompt_seed)


def _text(config: TextSettings, class_names: Sequence[str]) -> nn.Module:
    found = descriptions(config, class_names)
    encoder = build_text_encoder(config.text_encoder, config.text_weights, config.text_tokenizer)
    return TextPrototypes(encoder, found, context_tokens=config.context_tokens, class_specific=config.class_context)


def _image(config: ImageSettings, class_names: Sequence[str]) -> nn.Module:
    return build_image_encoder(config.image_encoder, config.image_weights)


TEXT = Tower("text", "text_encoder", _text)
IMAGE = Tower("image", "image_encoder", _image)
