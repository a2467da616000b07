"""The steps of a search: rows of words so far, and what may follow with what probability."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from vleff.ops.top_words import top_words
from vleff.unanswerable.vocabulary import END_NUMBER, START_NUMBER, UNKNOWN_NUMBER

NO_WORD = -1


class NextWords(Protocol):
    """Probabilities of the words that follow on each of some rows."""

    def likeliest(self, count: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
        """The likeliest words.

        Args:
            count: of words of each row.
            end: a word whose probability is wanted in any case.

        Returns:
            log-probabilities [rows, count], the largest first, of equal ones the smallest words; -inf where there are
            no more. Words int64 [rows, count]. Log-probabilities of the end [rows]. All are the caller's.
        """
        ...

    def all(self) -> Tensor:
        """Log-probabilities of all words, [rows, words], which are the caller's."""
        ...


class DenseWords:
    """NextWords of log-probabilities [rows, words] that are there."""

    def __init__(self, log_probs: Tensor) -> None:
        self._log_probs = log_probs

    def likeliest(self, count: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
        """As of NextWords."""
        return (*top_words(self._log_probs, count), self._log_probs[:, end])

    def all(self) -> Tensor:
        """As of NextWords."""
        return self._log_probs


class Steps(Protocol):
    """A decoder that has read a batch of sources. The rows that it works on are ordered by source."""

    def first(self, per_source: Tensor) -> NextWords:
        """First words.

        Args:
            per_source: int64 [sources], rows of each.
        """
        ...

    def next(self, parents: Tensor, words: Tensor, per_source: Tensor) -> NextWords:
        """Words that follow.

        Args:
            parents: int64 [rows], which of the rows before each row goes on.
            words: int64 [rows], and with what word.
            per_source: int64 [sources], rows of each.
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
        self.never = torch.tensor(never, dtype=torch.int64)
        self.no_repeat = no_repeat
        self.sources = self.lengths = None
        if sources is not None:
            rows = [torch.tensor(words, dtype=torch.int64) for words in sources]
            self.sources = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=NO_WORD)
            self.lengths = torch.tensor([len(words) for words in sources])

    def forbidden(self, history: Tensor, sources: Tensor) -> Tensor:
        """Words that may not follow.

        Args:
            history: int64 [rows, words so far].
            sources: int64 [rows], whose each row is.

        Returns:
            int64 [rows, any number], with NO_WORD where a row has no more.
        """
        rows, written = history.shape
        words = [self.never.expand(rows, -1)]
        no_end = self._may_not_end(history, sources)
        if no_end is not None:
            words.append(torch.where(no_end, self.end, NO_WORD)[:, None])
        if 0 < self.no_repeat <= written:
            n_grams = history.unfold(1, self.no_repeat, 1)  # [rows, n-grams, size]
            last = history[:, written - self.no_repeat + 1 :]
            is_again = (n_grams[:, :, :-1] == last[:, None]).all(2)
            words.append(torch.where(is_again, n_grams[:, :, -1], NO_WORD))
        return torch.cat(words, 1)

    def must_end(self, history: Tensor, sources: Tensor) -> Tensor:
        """bool [rows]: whether only the end may follow."""
        return self.longest[sources] == history.shape[1]

    def apply(self, log_probs: Tensor, history: Tensor, sources: Tensor) -> None:
        """Sets log-probabilities [rows, words] of what may not follow to -inf, in place."""
        words = self.forbidden(history, sources)
        rows, places = (words != NO_WORD).nonzero(as_tuple=True)
        log_probs[rows, words[rows, places]] = -torch.inf
        must_end = self.must_end(history, sources)
        if must_end.any():
            of_end = log_probs[:, self.end].clone()
            log_probs[must_end] = -torch.inf
            log_probs[:, self.end] = of_end

    def _may_not_end(self, history: Tensor, sources: Tensor) -> Tensor | None:
        """bool [rows], or None where all may: a question has a word, and is not the source's."""
        rows, written = history.shape
        if written == 0:
            return torch.ones(rows, dtype=torch.bool)
        if self.sources is None or self.lengths is None:
            return None
        ends = self.lengths[sources] == written
        return ends & (self.sources[sources, :written] == history).all(1) if ends.any() else None
