"""Tokenizers from a file of the user: words become padded ids."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mpamatch.errors import InputError
from mpamatch.models.text_encoders.base import Ids

VOCABULARY = "vocab.txt"
PUBMEDBERT_TOKENS = 30522
BERT_CLS = 101  # of bert-base-uncased, whose vocabulary has as many tokens: its ids would be read as other words


def padded(tokenizer: Any, pad: str) -> Ids:
    """Makes ids of a tokenizer of the package tokenizers; `pad`: its padding token."""
    pad_id = tokenizer.token_to_id(pad)

    def ids(texts: list[str], length: int) -> Tensor:
        tokenizer.enable_truncation(length)
        tokenizer.enable_padding(length=length, pad_id=pad_id, pad_token=pad)
        return torch.tensor([tokenizer.encode(text).ids for text in texts])  # encode_batch would start threads

    return ids


def pubmedbert_ids(file: Path) -> Ids:
    """Reads PubMedBERT's vocabulary, lower-case WordPiece. Raises InputError if the file is missing or another's."""
    from tokenizers import BertWordPieceTokenizer

    if not file.is_file():
        raise InputError(f"{file}: no such vocabulary; PubMedBERT's is the file {VOCABULARY} beside the weights.")
    try:
        tokenizer = BertWordPieceTokenizer(str(file), lowercase=True)
    except Exception as error:  # tokenizers raises Exception itself
        raise InputError(f"{file}: is no vocabulary of WordPiece ({error}).") from error
    tokens, first = tokenizer.get_vocab_size(), tokenizer.token_to_id("[CLS]")
    if tokens != PUBMEDBERT_TOKENS or tokenizer.token_to_id("[PAD]") != 0 or first in (None, BERT_CLS):
        raise InputError(
            f"{file}: is not PubMedBERT's vocabulary of {PUBMEDBERT_TOKENS} tokens: it has {tokens}, [PAD] is "
            f"{tokenizer.token_to_id('[PAD]')} and [CLS] is {first}" + (", as BERT's." if first == BERT_CLS else ".")
        )
    return padded(tokenizer, "[PAD]")
