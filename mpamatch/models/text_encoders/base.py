"""What every text encoder does: descriptions are tokenized once, tokens and context are embedded in each step."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mpamatch.errors import InputError

KIND = "text encoder"  # as messages call it
# Texts, L -> (S, L) int64, padded, cut to L with the end token kept.
Ids = Callable[[list[str], int], Tensor]


class ContextEmbedding(nn.Module):
    """A tower's frozen token embedding; `context` (S, n, token_width), if set, replaces n tokens from `start` on.

    It takes the place of the tower's own table, so one class serves every tower (context tokens as in CoOp,
    arXiv 2109.01134). `words` maps ids (S, L) to (S, L, token_width).
    """

    def __init__(self, words: nn.Module, start: int):
        super().__init__()
        self.words = words
        self.start = start
        self.context: Tensor | None = None

    def forward(self, ids: Tensor) -> Tensor:  # (S, L) -> (S, L, token_width)
        """Looks up the ids and puts the context in."""
        embedding = self.words(ids)
        if self.context is None:
            return embedding
        after = self.start + self.context.shape[1]
        context = self.context.to(embedding.dtype)
        return torch.cat([embedding[:, : self.start], context, embedding[:, after:]], dim=1)


class TextEncoder(nn.Module, ABC):
    """A frozen text tower with its tokenizer; always in eval mode.

    A subclass builds the tower, passes its parts to `__init__`, puts `self.embedding` in the place of the tower's own
    token embedding, and implements `pooled`.

    Args:
        tower: the text tower; its parameters are frozen.
        words: its token embedding.
        ids: its tokenizer.
        length: the most tokens that it takes.
        token_width: size of a token embedding, and so of a context token.
        width: size of the vectors that `encode` returns.
        identity: name, source and sha256 of the weights, which is all that a checkpoint keeps of a frozen tower.
    """

    tower: Any  # a module of another library, with that library's own attributes

    def __init__(
        self,
        tower: nn.Module,
        words: nn.Module,
        ids: Ids,
        *,
        length: int,
        token_width: int,
        width: int,
        identity: dict[str, str],
    ):
        super().__init__()
        self.ids = ids
        self.length, self.token_width, self.width, self.identity = length, token_width, width, identity
        # Context goes behind the token that opens every text; if there is none (SigLIP), it goes first.
        gland, stroma, filler = ids(["gland", "stroma", "x"], length)
        start = 1 if gland[0] == stroma[0] else 0
        self.filler = int(filler[start])
        self.tower = tower
        self.embedding = ContextEmbedding(words, start)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "TextEncoder":
        """Keeps eval mode, whatever is asked for.

        Args:
            mode: ignored.

        Returns:
            The encoder itself.
        """
        return super().train(False)

    def tokenize(self, descriptions: Sequence[str], context_tokens: int = 0) -> Tensor:  # -> (S, L) int64
        """Tokenizes descriptions and leaves room for context tokens.

        Args:
            descriptions: S texts.
            context_tokens: n, the number of places, filled with an ordinary token, that `encode` puts context into.
                They are inserted before the words, so no word is lost.

        Returns:
            The ids (S, L) int64, padded.

        Raises:
            InputError: a description with its context is too long for the tower.
        """
        room = self.length - context_tokens
        if room < 3:  # start, one word, end
            raise InputError(
                f"context_tokens is {context_tokens}: {self.identity['name']} takes {self.length} tokens "
                "in all, choose fewer."
            )
        ids = self.ids(list(descriptions), room)
        # A text was cut if its ids change once there is room for one token more.
        cut = (ids != self.ids(list(descriptions), room + 1)[:, :room]).any(dim=1).tolist()
        if any(cut):
            raise InputError(
                f"the description {descriptions[cut.index(True)]!r} is longer than the {room} tokens that "
                f"{self.identity['name']} takes beside {context_tokens} context tokens: shorten it."
            )
        start = self.embedding.start
        filler = ids.new_full((len(ids), context_tokens), self.filler)
        return torch.cat([ids[:, :start], filler, ids[:, start:]], dim=1)

    def encode(
        self,
        tokens: Tensor,  # (S, L) int64, from `tokenize`
        context: Tensor | None = None,  # (n, token_width) or (S, n, token_width)
    ) -> Tensor:  # (S, width)
        """Embeds descriptions. It reads no value back to the host, so a training step does not wait.

        Args:
            tokens: ids with n context tokens, of `tokenize`.
            context: embeddings of the n context tokens, shared or of each text its own; None: no context.

        Returns:
            The tower's pooled output (S, width) in its dtype, not of unit length. Its gradient reaches `context`, not
            the tower.
        """
        # expand also makes a Parameter a plain tensor, which the module does not register as its own
        self.embedding.context = None if context is None else context.expand(len(tokens), -1, -1)
        try:
            return self.pooled(tokens)
        finally:
            self.embedding.context = None

    @abstractmethod
    def pooled(self, tokens: Tensor) -> Tensor:  # (S, L) -> (S, width)
        """Runs the tower on tokens and pools as the tower was trained; `encode` calls it.

        Args:
            tokens: ids (S, L) int64.

        Returns:
            The pooled output (S, width).
        """


def without_padding(
    tokens: Tensor,  # (S, L) int64, padded at the end
    pad: int,
) -> Tensor:  # (S, l)
    """Cuts tokens to the longest text: 256 places for some 30 tokens would cost eight times the work."""
    longest = int((tokens != pad).sum(dim=1).max())
    return tokens[:, :longest]
