"""CONCH's text tower, from the user's files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mpamatch.errors import InputError
from mpamatch.models import towers
from mpamatch.models.clip import text_part
from mpamatch.models.published import CONCH, CONCH_NEEDED
from mpamatch.models.text_encoders.base import Ids, TextEncoder
from mpamatch.models.text_encoders.vocabulary import padded
from mpamatch.models.towers import TEXT_OFFLINE, first_line, without_draws
from mpamatch.models.weights import load_checked, read_state_dict, sha256

# CONCH's published model_configs/conch_ViT-B-16.json. Its 128 places are 127 tokens and the class token; open_clip
# counts the class token apart.
CONCH_TEXT = {
    "context_length": 127,
    "vocab_size": 32007,
    "width": 768,
    "heads": 12,
    "layers": 12,
    "output_dim": 512,
    "embed_cls": True,
}
CONCH_TOKENIZER = "conch_byte_level_bpe_uncased.json"
CONCH_SPECIAL = {"<pad>": 0, "<start_of_text>": 1, "<end_of_text>": 2}


class Conch(TextEncoder):
    """The text tower of CONCH (Nature Medicine 2024) on open_clip's TextTransformer, from the user's files.

    Pooled as published: a learned class token stands at the last place, behind the padding, and attends to one place
    more than the text has (its padding mask is off by one; the weights were trained so). Raises InputError for a file
    that is missing or does not fit.
    """

    def __init__(self, weights: str | None, tokenizer: str | None):
        if not towers.has("tokenizers"):
            raise InputError(f"text encoder 'conch': {TEXT_OFFLINE}.")
        if weights is None:
            raise InputError(f"text encoder 'conch' needs text_weights: {CONCH_NEEDED}")
        from open_clip.transformer import TextTransformer

        file = Path(weights)
        state = text_part(read_state_dict(file))
        words = Path(tokenizer) if tokenizer is not None else file.with_name(CONCH_TOKENIZER)
        ids = _conch_ids(words)
        tower: Any = without_draws(lambda: TextTransformer(**CONCH_TEXT))
        load_checked(tower, state, str(file))
        super().__init__(
            tower,
            tower.token_embedding,
            ids,
            length=tower.context_length,
            token_width=tower.width,
            width=tower.output_dim,
            identity={"name": CONCH, "source": weights, "sha256": sha256(file), "tokenizer": sha256(words)},
        )
        tower.token_embedding = self.embedding

    def tokenize(self, descriptions: Sequence[str], context_tokens: int = 0) -> Tensor:
        tokens = super().tokenize(descriptions, context_tokens)
        longest = int((tokens != CONCH_SPECIAL["<pad>"]).sum(dim=1).max())
        return tokens[:, : longest + 1]  # the class token sees one place of padding and nothing of the others

    def pooled(self, tokens: Tensor) -> Tensor:
        # Not through TextTransformer.forward, which would give the class token the place behind the last column here.
        tower, columns = self.tower, tokens.shape[1]
        x = torch.cat([self.embedding(tokens), tower.cls_emb.expand(len(tokens), 1, -1)], dim=1)
        x = x + torch.cat([tower.positional_embedding[:columns], tower.positional_embedding[-1:]])
        keep = torch.cat([tokens.new_ones(len(tokens), 1), tokens], dim=1) != CONCH_SPECIAL["<pad>"]
        hide = torch.zeros_like(keep, dtype=x.dtype).masked_fill(~keep, float("-inf"))
        mask = tower.attn_mask[: columns + 1, : columns + 1] + hide[:, None]
        x = tower.transformer(x, attn_mask=mask.repeat_interleave(tower.heads, dim=0))
        return tower.ln_final(x[:, -1]) @ tower.text_projection


def _conch_ids(file: Path) -> Ids:
    """Reads CONCH's tokenizer: texts, L → ids (S, L). Raises InputError if the file is missing or another's."""
    from tokenizers import Tokenizer

    if not file.is_file():
        raise InputError(
            f"{file}: no such tokenizer file; CONCH's is {CONCH_TOKENIZER} of mahmoodlab/CONCH on GitHub: "
            "put it beside the checkpoint or give it as text_tokenizer."
        )
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises Exception itself
        raise InputError(f"{file}: is no tokenizer file ({first_line(error)}).") from error
    special = {word: tokenizer.token_to_id(word) for word in CONCH_SPECIAL}
    ends = [CONCH_SPECIAL["<start_of_text>"], CONCH_SPECIAL["<end_of_text>"]]
    if special != CONCH_SPECIAL or tokenizer.get_vocab_size() > CONCH_TEXT["vocab_size"]:
        raise InputError(
            f"{file}: is not CONCH's tokenizer: it has {tokenizer.get_vocab_size()} tokens with {special}, "
            f"CONCH's has {CONCH_TEXT['vocab_size']} with {CONCH_SPECIAL}."
        )
    if tokenizer.encode("").ids != ends:
        raise InputError(f"{file}: is not CONCH's tokenizer: it does not put {list(CONCH_SPECIAL)[1:]} around a text.")
    return padded(tokenizer, "<pad>")


def conch_missing() -> str:
    """Says what CONCH needs before it can be built: packages, then the file that is given on request."""
    if not towers.has("tokenizers"):
        return TEXT_OFFLINE
    return "give --method.text_weights FILE, which is had on request (MahmoodLab/conch on Hugging Face)"
