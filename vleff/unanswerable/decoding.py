"""The steps of a search: rows of words so far, and the log-probabilities of words that follow."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from vleff.unanswerable.vocabulary import END_NUMBER, START_NUMBER, UNKNOWN_NUMBER


class Steps(Protocol):
    """A decoder that has read a batch of sources. The rows that it works on are ordered by source."""

    def first(self, per_source: Tensor) -> Tensor:
        """Log-probabilities of first words.

        Args:
            per_source: int64 [sources], rows of each.

        Returns:
            float32 [rows, words], which the caller may change.
        """
        ...

    def next(self, parents: Tensor, words: Tensor, per_source: Tensor) -> Tensor:
        """Log-probabilities of words that follow.

        Args:
            parents: int64 [rows], which of the rows before each row goes on.
            words: int64 [rows], and with what word.
            per_source: int64 [sources], rows of each.

        Returns:
            float32 [rows, words], which the caller may change.
        """
        ...


class Rules:
    """What may not be written, whatever its probability.

    Args:
        sources: the words of each source's question, as numbers of its extended vocabulary; None where they may be
            copied.
        longest: how many words each source's questions may have.
        no_repeat: size of n-grams that are not there twice; 0 allows all.
        end: the word that ends a question.
        never: words that are in none.
    """

    def __init__(
        self,
        sources: Sequence[Sequence[int]] | None,
        longest: Sequence[int],
        no_repeat: int,
        end: int = END_NUMBER,
        never: Sequence[int] = (UNKNOWN_NUMBER, START_NUMBER),
    ) -> None:
        self.longest = torch.tensor(longest)
        self.end = end
        self.never = list(never)
        self.no_repeat = no_repeat
        self.sources = self.lengths = None
        if sources is not None:
            rows = [torch.tensor(words, dtype=torch.int64) for words in sources]
            self.sources = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)
            self.lengths = torch.tensor([len(words) for words in sources])

    def apply(self, log_probs: Tensor, history: Tensor, sources: Tensor) -> None:
        """Sets the log-probabilities of what may not follow to -inf, in place.

        Args:
            log_probs: [rows, words].
            history: int64 [rows, words so far].
            sources: int64 [rows], whose each row is.
        """
        log_probs[:, self.never] = -torch.inf
        written = history.shape[1]
        if written == 0:  # a question has a word
            log_probs[:, self.end] = -torch.inf
        if self.sources is not None and self.lengths is not None:
            ends = self.lengths[sources] == written
            if ends.any():
                copied = ends & (self.sources[sources, :written] == history).all(1)
                log_probs[copied, self.end] = -torch.inf
        if 0 < self.no_repeat <= written:
            self._forbid_repetition(log_probs, history)
        full = self.longest[sources] == written
        if full.any():
            ends = log_probs[:, self.end].clone()
            log_probs[full] = -torch.inf
            log_probs[:, self.end] = ends

    def _forbid_repetition(self, log_probs: Tensor, history: Tensor) -> None:
        size = self.no_repeat
        n_grams = history.unfold(1, size, 1)  # [rows, n-grams, size]
        last = history[:, history.shape[1] - size + 1 :]
        rows, places = (n_grams[:, :, :-1] == last[:, None]).all(2).nonzero(as_tuple=True)
        log_probs[rows, n_grams[rows, places, -1]] = -torch.inf
