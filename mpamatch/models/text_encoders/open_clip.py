"""Text towers of open_clip: any of its models by name, and those of the published image–text models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpamatch.errors import InputError
from mpamatch.models import towers
from mpamatch.models.clip import OPEN_CLIP, open_clip_model, text_part
from mpamatch.models.published import PUBLISHED, cached, fetched
from mpamatch.models.text_encoders.base import KIND, Ids, TextEncoder, without_padding
from mpamatch.models.text_encoders.vocabulary import VOCABULARY, pubmedbert_ids
from mpamatch.models.towers import TEXT_OFFLINE, first_line, without_draws
from mpamatch.models.weights import load_checked, read_state_dict, sha256

BERT_LENGTH = 256  # tokens, as BiomedCLIP and KEEP were trained
CLIP_LENGTH = 77


class OpenClipText(TextEncoder):
    """A text tower of open_clip, pooled as its model pools.

    Args:
        tower: a TextTransformer, or an HFTextEncoder around a model of transformers.
        ids: its tokenizer.
        length: the most tokens that it takes.
        identity: name, source and sha256 of the weights.
    """

    def __init__(self, tower: Any, ids: Ids, *, length: int, identity: dict[str, str]):
        table = _use_embedding(tower)
        super().__init__(
            tower,
            table,
            ids,
            length=length,
            token_width=table.embedding_dim,
            width=tower.output_dim or table.embedding_dim,
            identity=identity,
        )
        _use_embedding(tower, self.embedding)

    def tokenize(self, descriptions: Sequence[str], context_tokens: int = 0) -> Tensor:
        tokens = super().tokenize(descriptions, context_tokens)
        # A TextTransformer's pooling may count places from the end.
        return without_padding(tokens, self.tower.config.pad_token_id) if _of_transformers(self.tower) else tokens

    def pooled(self, tokens: Tensor) -> Tensor:
        if not _of_transformers(self.tower):
            return self.tower(tokens)
        # Not through HFTextEncoder.forward: with its (S, L) mask transformers asks for mask.all(), a
        # host sync. A mask of four dimensions is used unchanged.
        keep = tokens != self.tower.config.pad_token_id
        dtype = next(self.embedding.parameters()).dtype
        hide = torch.zeros(keep.shape, dtype=dtype, device=keep.device).masked_fill(~keep, torch.finfo(dtype).min)
        hidden = self.tower.transformer(input_ids=tokens, attention_mask=hide[:, None, None, :])
        return self.tower.proj(self.tower.pooler(hidden, keep.long()))


def open_clip_text(name: str, weights: str | None) -> OpenClipText:
    """Builds the text tower of "open_clip:MODEL".

    Raises InputError for an unknown model and for weights that are missing or do not fit.
    """
    import open_clip
    from open_clip.model import _build_text_tower

    model = open_clip_model(name, weights, KIND)
    # hf_model_pretrained: the checkpoint brings the weights of a transformers tower too
    text = {**model.config["text_cfg"], "hf_model_pretrained": False, "output_tokens": False}
    try:
        tower = without_draws(lambda: _build_text_tower(model.config["embed_dim"], text, model.quick_gelu))
        tokenizer = open_clip.get_tokenizer(name.removeprefix(OPEN_CLIP))
    except (OSError, RuntimeError, ImportError, ValueError) as error:
        raise InputError(
            f"text encoder {name!r}: its tower or tokenizer cannot be built ({first_line(error)})."
        ) from error
    load_checked(tower, text_part(model.state), str(model.file))
    return OpenClipText(
        tower,
        lambda texts, length: tokenizer(texts, context_length=length),
        length=tokenizer.context_length,
        identity={"name": name, "source": str(weights or model.file), "sha256": sha256(model.file)},
    )


def published_text(name: str, weights: str | None, tokenizer: str | None) -> OpenClipText:
    """Builds the text tower of a published model, from files of the user or of its repository.

    Args:
        name: of the table `PUBLISHED`.
        weights: its checkpoint file; None: fetched.
        tokenizer: for towers of PubMedBERT its vocab.txt, or a folder that holds it; None: beside `weights` or fetched.

    Returns:
        The encoder.

    Raises:
        InputError: a package is missing, a file is missing, cannot be fetched, or does not fit.
    """
    model = PUBLISHED[name]
    if model.of_bert and not _bert_here():
        raise InputError(f"text encoder {name!r}: {TEXT_OFFLINE}.")
    file = Path(weights) if weights else fetched(name, model.files, f"{KIND} {name!r}", "--method.text_weights")
    if model.of_bert:
        vocabulary = _vocabulary(name, weights, tokenizer)
        ids, length, words = pubmedbert_ids(vocabulary), BERT_LENGTH, {"tokenizer": sha256(vocabulary)}
    else:
        ids, length, words = *_clip_ids(), {}
    tower = without_draws(model.text.build)
    load_checked(tower, model.text.part(read_state_dict(file)), str(file))
    identity = {"name": name, "source": weights or model.hub, "sha256": sha256(file), **words}
    return OpenClipText(tower, ids, length=length, identity=identity)


def published_missing(name: str) -> str:
    """Says what a published text tower needs before it can be built; "" if all is here. It asks no network."""
    model = PUBLISHED[name]
    if model.of_bert and not _bert_here():
        return TEXT_OFFLINE
    if cached(model.hub, model.files) and (not model.of_bert or cached(model.hub, (VOCABULARY,))):
        return ""
    return (
        f"weights not here: {model.hub} is fetched from Hugging Face on first use, or give --method.text_weights FILE"
    )


def _bert_here() -> bool:
    return towers.has("transformers") and towers.has("tokenizers")


def _vocabulary(name: str, weights: str | None, tokenizer: str | None) -> Path:
    if tokenizer is not None:
        given = Path(tokenizer)
        return given / VOCABULARY if given.is_dir() else given
    if weights is not None and (beside := Path(weights).with_name(VOCABULARY)).is_file():
        return beside
    return fetched(name, (VOCABULARY,), f"the vocabulary of {KIND} {name!r}", "--method.text_tokenizer")


def _clip_ids() -> tuple[Ids, int]:
    """Returns CLIP's own BPE, which open_clip brings, and the most tokens that CLIP takes."""
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    return lambda texts, length: tokenizer(texts, context_length=length), CLIP_LENGTH


def _of_transformers(tower: nn.Module) -> bool:
    """Tells whether an open_clip text tower wraps a model of transformers; else it is a TextTransformer."""
    return hasattr(tower, "pooler")


def _use_embedding(tower: Any, replacement: nn.Module | None = None) -> nn.Embedding:
    """Returns the token embedding of an open_clip text tower and puts `replacement`, if there is one, in its place."""
    if not _of_transformers(tower):
        table = tower.token_embedding
        tower.token_embedding = replacement or table
        return table
    table = tower.transformer.get_input_embeddings()
    tower.transformer.set_input_embeddings(replacement or table)
    return table
