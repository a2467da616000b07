"""CopyAttention: the output of a decoder that generates words or copies them from two memories."""

import torch
from torch import Tensor, nn

from vleff.nn.fused_linear import FusedLinear
from vleff.nn.ragged import RaggedBatch
from vleff.ops.copy_attention import CopyMemory, copy_attention, copy_attention_rows
from vleff.ops.copy_attention_top import copy_attention_top
from vleff.ops.vocabulary_log_probs import vocabulary_log_probs


class CopyAttention(nn.Module):
    """The last layer of a pair-to-sequence decoder: from its outputs to the probabilities of words.

        P(word) = gate_0 * softmax(vocabulary(x))[word] + gate_1 * (attention to the question's positions that hold
                  the word) + gate_2 * (attention to the paragraph's positions that hold the word)

    with gate = softmax(gate(x)) and attention of query(x) to question_key(question) and paragraph_key(paragraph);
    see `vleff.ops.copy_attention`. In training the probabilities of the targets alone are computed, and no tensor
    has the size of the vocabulary; `rows` gives those of all words. What the decoder reads from the memories is no
    part of this layer: `TokenGatherAttention` serves for that.

    Attributes:
        query, question_key, paragraph_key, gate: projections, `FusedLinear`.
        vocabulary: `FusedLinear` to the decoder's own words; its weight may be an embedding's.

    Args:
        width: of the decoder's outputs, and of queries and keys.
        words: size of the decoder's own vocabulary.
        memory_width: of the memories; `width` if None.
        coverage: whether `forward` returns the coverage loss.
    """

    def __init__(
        self,
        width: int,
        words: int,
        *,
        memory_width: int | None = None,
        coverage: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        memory_width = width if memory_width is None else memory_width
        self.coverage = coverage
        self.query = FusedLinear(width, width, bias=False, device=device, dtype=dtype)
        self.question_key = FusedLinear(memory_width, width, bias=False, device=device, dtype=dtype)
        self.paragraph_key = FusedLinear(memory_width, width, bias=False, device=device, dtype=dtype)
        self.gate = FusedLinear(width, 3, device=device, dtype=dtype)
        self.vocabulary = FusedLinear(width, words, device=device, dtype=dtype)

    def memories(
        self, question: RaggedBatch, question_ids: Tensor, paragraph: RaggedBatch, paragraph_ids: Tensor
    ) -> tuple[CopyMemory, CopyMemory]:
        """What `forward` and `rows` copy from; made once for all steps of a beam search.

        Args:
            question, paragraph: values [tokens, memory_width], with equal numbers of samples.
            question_ids, paragraph_ids: int32 [tokens], the words at the positions, in the extended vocabulary.
        """
        return (
            CopyMemory(self.question_key(question.values), question_ids, question.offsets, question.max_length),
            CopyMemory(self.paragraph_key(paragraph.values), paragraph_ids, paragraph.offsets, paragraph.max_length),
        )

    def forward(
        self, decoded: RaggedBatch, memories: tuple[CopyMemory, CopyMemory], targets: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities of target words.

        Args:
            decoded: values [targets, width], the decoder's outputs.
            memories: as from `memories`.
            targets: int32 or int64 [targets], numbers of the extended vocabulary.

        Returns:
            log_probs: float32 [targets], -inf for words that can neither be generated nor copied.
            coverage_loss: float32 [targets]; None unless the module was made for it.

        Raises:
            RuntimeError: as `vleff.ops.copy_attention` and `vleff.ops.vocabulary_log_probs`.
        """
        outputs = decoded.values
        log_probs, coverage_loss = copy_attention(
            self.query(outputs),
            decoded.offsets,
            decoded.max_length,
            *memories,
            self.gate(outputs),
            vocabulary_log_probs(outputs, self.vocabulary.weight, self.vocabulary.bias, targets),
            targets,
            coverage=self.coverage,
        )
        return log_probs, coverage_loss if self.coverage else None

    def rows(self, decoded: RaggedBatch, memories: tuple[CopyMemory, CopyMemory], extended_size: int) -> Tensor:
        """Log-probabilities of all words, for beam search: the rows of a sample are its beams.

        Args:
            decoded: values [rows, width], the decoder's outputs.
            memories: as from `memories`.
            extended_size: size of the extended vocabulary.

        Returns:
            float32 [rows, extended_size], without gradient.

        Raises:
            RuntimeError: as `vleff.ops.copy_attention_rows`.
        """
        outputs = decoded.values
        return copy_attention_rows(
            self.query(outputs),
            decoded.offsets,
            decoded.max_length,
            *memories,
            self.gate(outputs),
            self.vocabulary(outputs),
            extended_size,
        )

    def likeliest(
        self,
        decoded: RaggedBatch,
        memories: tuple[CopyMemory, CopyMemory],
        extended_size: int,
        count: int,
        watched: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The likeliest words of `rows`, which are not made: a step of beam search.

        Args:
            decoded, memories, extended_size: as of `rows`.
            count: of words of each row; few.
            watched: a word of the decoder's own vocabulary whose probability is wanted in any case.

        Returns:
            log_probs: float32 [rows, count], the largest first; -inf where a row has no more.
            words: int64 [rows, count].
            watched_log_probs: float32 [rows]. All without gradient.

        Raises:
            RuntimeError: as `vleff.ops.copy_attention_top`.
        """
        outputs = decoded.values
        return copy_attention_top(
            self.query(outputs),
            decoded.offsets,
            decoded.max_length,
            *memories,
            self.gate(outputs),
            outputs,
            self.vocabulary.weight,
            self.vocabulary.bias,
            extended_size,
            count,
            watched,
        )

    def extra_repr(self) -> str:
        return f"coverage={self.coverage}"
