"""Encoders of a pair-to-sequence model: words become states, and question and paragraph see each other."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel

from vleff.nn.fused_linear import FusedLinear
from vleff.nn.ragged import RaggedBatch
from vleff.nn.ragged_lstm import RaggedLSTM
from vleff.ops.token_gather_attention import token_gather_attention
from vleff.unanswerable.batches import Batch
from vleff.unanswerable.config import PairToSequenceConfig
from vleff.unanswerable.vocabulary import UNKNOWN_NUMBER

SIDES = ("question", "paragraph")
TYPES = 3
_INITIAL_DEVIATION = 0.1


class WordEmbedding(nn.Module):
    """Words as vectors, by their numbers and by their letters.

    The vector of a word's letters is the maximum, over its letters, of a convolution of width 3 over one-hot characters
    (reconstruction: the paper says that there are character embeddings). Its product with one-hot vectors is a sum of
    three rows of a table.

    Attributes:
        words: [vocabulary_size, width].
        letters: [3 * character_numbers, width].
    """

    def __init__(self, config: PairToSequenceConfig) -> None:
        super().__init__()
        self.words = nn.Embedding(config.vocabulary_size, config.width)
        self.letters = nn.EmbeddingBag(3 * config.character_numbers, config.width, mode="sum")
        for table in (self.words, self.letters):
            nn.init.normal_(table.weight, std=_INITIAL_DEVIATION)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Vectors of the batch's distinct words.

        Returns:
            what encoders read, word and letters: [distinct, width].
            what the decoder reads, [distinct, width]: the letters only of words that the vocabulary lacks.
        """
        words = self.words(batch["words"])
        of_letters = self.letters(batch["letters"])
        # without the size, repeat_interleave waits for the device
        owners = torch.repeat_interleave(batch["word_lengths"], output_size=len(of_letters))
        owners = owners[:, None].expand_as(of_letters)
        spelled = torch.zeros_like(words).scatter_reduce(0, owners, of_letters, "amax", include_self=False)
        is_unknown = (batch["words"] == UNKNOWN_NUMBER)[:, None]
        return words + spelled, words + spelled * is_unknown


class LstmEncoder(nn.Module):
    """The paper's encoders: a bidirectional LSTM for questions, and another one for paragraphs."""

    def __init__(self, config: PairToSequenceConfig) -> None:
        super().__init__()
        width = config.width
        self.lstms = nn.ModuleDict({side: RaggedLSTM(width, width // 2, bidirectional=True) for side in SIDES})

    def forward(self, side: str, embedded: RaggedBatch, batch: Batch) -> RaggedBatch:
        """[words, width] -> [words, width]"""
        return self.lstms[side](embedded)[0]


class TransformerEncoder(nn.Module):
    """Any encoder of transformers, for questions and for paragraphs.

    A word's state is that of its first token, projected; the embeddings of the word are added, as the encoder knows
    nothing of answers (reconstruction: the paper's encoders are LSTMs).

    Attributes:
        model: the encoder, an AutoModel that takes input_ids and attention_mask.
    """

    def __init__(self, config: PairToSequenceConfig) -> None:
        super().__init__()
        self.model = AutoModel.from_config(config.encoder_config)
        self.projection = FusedLinear(config.encoder_config.hidden_size, config.width)

    def forward(self, side: str, embedded: RaggedBatch, batch: Batch) -> RaggedBatch:
        """[words, width] -> [words, width]"""
        mask = batch[f"{side}_attention_mask"]
        states = self.model(input_ids=batch[f"{side}_input_ids"], attention_mask=mask).last_hidden_state
        first = states.flatten(0, 1).index_select(0, batch[f"{side}_first"])
        return embedded.replace(self.projection(first, embedded.values))


class Fusion(nn.Module):
    """One text's states, with what they find in the other text.

        attended = attention of query(states) to key(other), value(other)
        gate, new = sigmoid and tanh of mix([states; attended])
        fused = gate * new + (1 - gate) * states

    Reconstruction: the paper says that both texts attend to each other, and that the results are fused.
    """

    def __init__(self, config: PairToSequenceConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.query = FusedLinear(width, width)
        self.key_value = FusedLinear(width, 2 * width)
        self.mix = FusedLinear(2 * width, 2 * width)

    def forward(self, states: RaggedBatch, other: RaggedBatch) -> RaggedBatch:
        """states [words, width], other [words of the other text, width] -> [words, width]"""
        keys, values = by_heads(self.key_value(other.values), 2, self.heads)
        attended = attend(self.query(states.values), states, keys, values, other, self.heads)
        gate, new = self.mix(torch.cat([states.values, attended], 1)).chunk(2, 1)
        return states.replace(torch.lerp(states.values, new.tanh(), gate.sigmoid()))


class PairEncoder(nn.Module):
    """From a batch of sources to the memories that a decoder attends to and copies from."""

    def __init__(self, config: PairToSequenceConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.types = nn.Embedding(TYPES, config.width)
        nn.init.normal_(self.types.weight, std=_INITIAL_DEVIATION)
        self.encoder = LstmEncoder(config) if config.encoder == "lstm" else TransformerEncoder(config)
        self.fusions = nn.ModuleDict({side: Fusion(config) for side in SIDES})

    def forward(self, words: Tensor, batch: Batch) -> tuple[RaggedBatch, RaggedBatch]:
        """Memories of questions and of paragraphs.

        Args:
            words: [distinct, width], vectors of the batch's distinct words.
            batch: as `SourceCollator` makes it.
        """
        question, paragraph = (self._encode(side, words, batch) for side in SIDES)
        fused = self.fusions["question"](question, paragraph), self.fusions["paragraph"](paragraph, question)
        return tuple(memory.replace(self._drop(memory.values)) for memory in fused)

    def _encode(self, side: str, words: Tensor, batch: Batch) -> RaggedBatch:
        embedded = functional.embedding(batch[f"{side}_words"], words)
        types = self.types.weight[0] if side == "question" else self.types(batch["paragraph_types"])
        ragged = RaggedBatch(self._drop(embedded + types), batch[f"{side}_offsets"], batch[f"max_{side}"])
        return self.encoder(side, ragged, batch)

    def _drop(self, values: Tensor) -> Tensor:
        return functional.dropout(values, self.dropout, self.training)


def by_heads(rows: Tensor, parts: int, heads: int) -> list[Tensor]:
    """[rows, parts * width] -> parts times [rows, heads, width / heads]"""
    return list(rows.unflatten(1, (parts, heads, -1)).unbind(1))


def attend(
    queries: Tensor, of_queries: RaggedBatch, keys: Tensor, values: Tensor, of_keys: RaggedBatch, heads: int
) -> Tensor:
    """Multi-head attention of [rows, width] to the same sample's keys and values: [rows, width]."""
    context, _, _ = token_gather_attention(
        by_heads(queries, 1, heads)[0],
        keys,
        values,
        of_queries.offsets,
        of_keys.offsets,
        of_queries.max_length,
        of_keys.max_length,
    )
    return context.flatten(1)
