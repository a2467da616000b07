"""The decoder of a pair-to-sequence model: an LSTM that reads both memories, and copies from them."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from vleff.nn.copy_attention import CopyAttention
from vleff.nn.fused_linear import FusedLinear
from vleff.nn.ragged import RaggedBatch
from vleff.nn.ragged_lstm import RaggedLSTM
from vleff.ops.copy_attention import CopyMemory
from vleff.unanswerable.batches import Batch
from vleff.unanswerable.config import PairToSequenceConfig
from vleff.unanswerable.encoders import attend, by_heads


class DecoderMemory(NamedTuple):
    """What a decoder needs of sources, made once for all steps.

    Attributes:
        question, paragraph: the memories.
        keys, values: of their attention, [words, heads, width / heads] for question and paragraph.
        copied: what is copied from.
        extended_size: of the extended vocabulary.
    """

    question: RaggedBatch
    paragraph: RaggedBatch
    keys: tuple[Tensor, Tensor]
    values: tuple[Tensor, Tensor]
    copied: tuple[CopyMemory, CopyMemory]
    extended_size: int


class Decoder(nn.Module):
    """Words so far -> probabilities of the next word.

        hidden  = LSTM(words), which begins with initial([mean of the question's memory; mean of the answer's])
        hidden of place n, and the question's memory of word n, get places[n] added
        context = attention of query(hidden) to the question's memory and, apart, to the paragraph's
        output  = tanh(output([hidden; context of question; context of paragraph]))
        P(word) = CopyAttention(output)

    Reconstruction: the paper says that the decoder attends to both texts and copies from both. The LSTM reads words
    only, and not what was attended to before, so that a whole target is read at once in training; places, which the
    paper has not, make up for that.
    """

    def __init__(self, config: PairToSequenceConfig) -> None:
        super().__init__()
        width = config.width
        self.heads, self.dropout = config.heads, config.dropout
        self.initial = FusedLinear(2 * width, 2 * width)
        self.lstm = RaggedLSTM(width, width)
        self.places = nn.Embedding(config.places, width) if config.places else None
        if self.places is not None:
            nn.init.normal_(self.places.weight, std=0.5)
        self.query = FusedLinear(width, 2 * width)
        self.question = FusedLinear(width, 2 * width)
        self.paragraph = FusedLinear(width, 2 * width)
        self.output = FusedLinear(3 * width, width)
        self.copy = CopyAttention(width, config.generated_words, coverage=config.coverage > 0)

    def start(self, question: RaggedBatch, paragraph: RaggedBatch, batch: Batch) -> tuple[Tensor, Tensor]:
        """The first hidden state [batch, width], and the first cell state, float32 [batch, width]."""
        everything = torch.arange(question.values.shape[0], device=question.values.device)
        means = [
            functional.embedding_bag(rows, memory.values, starts.to(rows.dtype), mode="mean")
            for rows, memory, starts in (
                (everything, question, question.offsets[:-1]),
                (batch["answer_rows"], paragraph, batch["answer_offsets"]),
            )
        ]
        hidden, cell = self.initial(torch.cat(means, 1)).tanh().chunk(2, 1)
        return hidden, cell.float()

    def remember(self, question: RaggedBatch, paragraph: RaggedBatch, batch: Batch) -> DecoderMemory:
        """Projects both memories."""
        question = question.replace(self._placed(question.values, question.positions))
        of_question = by_heads(self.question(question.values), 2, self.heads)
        of_paragraph = by_heads(self.paragraph(paragraph.values), 2, self.heads)
        return DecoderMemory(
            question,
            paragraph,
            (of_question[0], of_paragraph[0]),
            (of_question[1], of_paragraph[1]),
            self.copy.memories(question, batch["question_ids"], paragraph, batch["paragraph_ids"]),
            batch["extended_size"],
        )

    def decode(self, words: RaggedBatch, hidden: Tensor, cell: Tensor, memory: DecoderMemory) -> RaggedBatch:
        """Outputs for whole targets.

        Args:
            words: values [targets, width], vectors of the words before each target.
            hidden, cell: as `start` makes them.

        Returns:
            values [targets, width].
        """
        states, _ = self.lstm(words, hidden, cell)
        return self._read(states.replace(self._placed(states.values, words.positions)), memory)

    def step(
        self, words: Tensor, hidden: Tensor, cell: Tensor, beams: RaggedBatch, memory: DecoderMemory, place: int
    ) -> tuple[RaggedBatch, Tensor, Tensor]:
        """One more word for each beam. Without gradient.

        Args:
            words: [beams, width], vectors of the last words.
            hidden, cell: [beams, width], the states that they follow on; `cell` is float32.
            beams: which rows are a sample's; its values do not count.
            place: how many words were written before.

        Returns:
            outputs [beams, width]; the next hidden and cell states.
        """
        each = torch.arange(words.shape[0] + 1, dtype=torch.int32, device=words.device)
        states, cell = self.lstm(RaggedBatch(words, each, 1), hidden, cell)
        placed = self._placed(states.values, torch.full_like(each[:-1], place))
        outputs = self._read(RaggedBatch(placed, beams.offsets, beams.max_length), memory)
        return outputs, states.values, cell

    def _placed(self, rows: Tensor, places: Tensor) -> Tensor:
        """[rows, width]; places int [rows], of which the last known one stands for further ones."""
        if self.places is None:
            return rows
        return rows + self.places(places.clamp(max=self.places.num_embeddings - 1))

    def _read(self, states: RaggedBatch, memory: DecoderMemory) -> RaggedBatch:
        queries = self.query(states.values).chunk(2, 1)
        contexts = [
            attend(query, states, keys, values, text, self.heads)
            for query, keys, values, text in zip(
                queries, memory.keys, memory.values, (memory.question, memory.paragraph), strict=True
            )
        ]
        outputs = self.output(torch.cat([states.values, *contexts], 1)).tanh()
        return states.replace(functional.dropout(outputs, self.dropout, self.training))
