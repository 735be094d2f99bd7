"""The table of text encoders: how each is built, on what terms, and what it lacks."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mpamatch.errors import InputError, unknown
from mpamatch.models.clip import OPEN_CLIP
from mpamatch.models.published import CONCH, CONCH_LICENCE, PUBLISHED
from mpamatch.models.text_encoders.base import KIND, TextEncoder
from mpamatch.models.text_encoders.conch import Conch, conch_missing
from mpamatch.models.text_encoders.minilm import MINILM, MiniLM, minilm_missing
from mpamatch.models.text_encoders.open_clip import open_clip_text, published_missing, published_text

ANY_OPEN_CLIP = f"{OPEN_CLIP}MODEL"


@dataclass(frozen=True)
class Entry:
    """A text encoder, or all models of open_clip.

    Attributes:
        build: builds it from its name, a checkpoint file or tag, and a tokenizer file, if they are given.
        licence: of its weights, in a word or two.
        missing: says what is to be installed, given or fetched before it can be built; "" if nothing is.
        takes_weights: whether the user may give weights.
        takes_tokenizer: whether the user may give a tokenizer.
    """

    build: Callable[[str, str | None, str | None], TextEncoder]
    licence: str
    missing: Callable[[], str]
    takes_weights: bool = True
    takes_tokenizer: bool = False


ENTRIES = {
    MINILM: Entry(lambda *_: MiniLM(), "Apache-2.0", minilm_missing, takes_weights=False),
    CONCH: Entry(lambda _, weights, words: Conch(weights, words), CONCH_LICENCE, conch_missing, takes_tokenizer=True),
    **{
        name: Entry(published_text, model.licence, partial(published_missing, name), takes_tokenizer=model.of_bert)
        for name, model in PUBLISHED.items()
    },
    ANY_OPEN_CLIP: Entry(lambda name, weights, _: open_clip_text(name, weights), "each model's own", lambda: ""),
}


def build_text_encoder(
    name: str, weights: str | Path | None = None, tokenizer: str | Path | None = None
) -> TextEncoder:
    """Builds a frozen text encoder; never one with random weights.

    Args:
        name: "minilm" (the sentence encoder of the extra text-offline), "conch" (Nature Medicine 2024), "plip", "keep",
            "quiltnet", "biomedclip", "open_clip:MODEL", or "open_clip:hf-hub:ORG/REPO" and
            "open_clip:local-dir:FOLDER", which bring their weights.
        weights: the checkpoint file (whole or text tower); for a model of open_clip a file or a pretrained tag. None:
            plip, keep, quiltnet and biomedclip are fetched from Hugging Face once. A file with OpenAI's weights needs
            the model's -quickgelu name.
        tokenizer: CONCH's tokenizer file; for keep and biomedclip PubMedBERT's vocab.txt or a folder with it. None:
            conch_byte_level_bpe_uncased.json or vocab.txt beside the checkpoint; vocab.txt is fetched otherwise.

    Returns:
        The encoder, on the CPU.

    Raises:
        InputError: an unknown name, a missing package, missing weights, or weights that do not fit (the first
            differences are listed), want another activation or cannot be fetched; weights or a tokenizer for an
            encoder that brings its own.
    """
    entry = ENTRIES.get(ANY_OPEN_CLIP if name.startswith(OPEN_CLIP) else name)
    if entry is None:
        raise unknown(KIND, name, {*ENTRIES, f"{OPEN_CLIP}ViT-B-32"} - {ANY_OPEN_CLIP})
    if tokenizer is not None and not entry.takes_tokenizer:
        those = ", ".join(known for known, entry in ENTRIES.items() if entry.takes_tokenizer)
        raise InputError(f"text_tokenizer: goes with {those}; {name} brings its own, leave out {str(tokenizer)!r}.")
    if weights is not None and not entry.takes_weights:
        raise InputError(f"text encoder {name!r} brings its own weights: leave out {str(weights)!r}.")
    return entry.build(name, None if weights is None else str(weights), None if tokenizer is None else str(tokenizer))


def text_encoders() -> dict[str, str]:
    """Lists the text encoders and what each lacks here. It asks no network.

    Returns:
        Name → what is to be installed, given or fetched before it can be built; "" if nothing is.
    """
    return {name: entry.missing() for name, entry in ENTRIES.items()}


def text_licences() -> dict[str, str]:
    """Lists the text encoders with the licence of their weights, in a word or two."""
    return {name: entry.licence for name, entry in ENTRIES.items()}
