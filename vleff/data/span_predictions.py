"""From a reader's logits to answers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vleff.data.span_features import SpanExample, Window


def best_spans(
    start_logits: Tensor, end_logits: Tensor, windows: Sequence[Window], longest: int = 30
) -> list[tuple[float, int, int]]:
    """The best span of each window.

    Args:
        start_logits, end_logits: [windows, tokens].
        longest: most tokens of a span.

    Returns:
        for each window, the sum of the logits and the span's first and last token.
    """
    length = start_logits.shape[1]
    in_context = torch.zeros(start_logits.shape, dtype=torch.bool)
    for row, window in enumerate(windows):
        in_context[row, : len(window.offsets)] = window.offsets[:, 0] >= 0
    scores = start_logits.float()[:, :, None] + end_logits.float()[:, None, :]
    band = torch.ones(length, length, dtype=torch.bool).triu().tril(longest - 1)
    allowed = band & in_context[:, :, None] & in_context[:, None, :]
    best = scores.masked_fill(~allowed, -torch.inf).flatten(1).max(1)
    return [
        (score, position // length, position % length)
        for score, position in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


class AnswerCollector:
    """Gathers the best answer of each question from its windows.

    Args:
        examples: the questions.
        null_threshold: by how much the best span has to beat "no answer", the score of the first token, where
            questions may be unanswerable; None always answers.
        longest: most tokens of an answer.
    """

    def __init__(self, examples: Sequence[SpanExample], null_threshold: float | None = None, longest: int = 30) -> None:
        self.examples, self.null_threshold, self.longest = examples, null_threshold, longest
        self._best: dict[int, tuple[float, str]] = {}
        self._null: dict[int, float] = {}

    def add(self, windows: Sequence[Window], start_logits: Tensor, end_logits: Tensor) -> None:
        """Takes the logits [windows, tokens] of some windows, in any order."""
        start_logits, end_logits = start_logits.cpu(), end_logits.cpu()
        null = (start_logits[:, 0].float() + end_logits[:, 0].float()).tolist()
        spans = best_spans(start_logits, end_logits, windows, self.longest)
        for window, none, (score, first, last) in zip(windows, null, spans, strict=True):
            number = window.example
            text = self.examples[number].context[int(window.offsets[first, 0]) : int(window.offsets[last, 1])]
            if score > -torch.inf and (number not in self._best or score > self._best[number][0]):
                self._best[number] = score, text
            self._null[number] = min(none, self._null.get(number, none))

    def answers(self) -> dict[str, str]:
        """By the id of the question; empty where there is none."""
        found = {}
        for number, example in enumerate(self.examples):
            score, text = self._best.get(number, (-torch.inf, ""))
            if self.null_threshold is not None and score - self._null.get(number, 0.0) < self.null_threshold:
                text = ""
            found[example.id] = text
        return found

    def null_margins(self) -> list[float]:
        """For each question by how much "no answer" beats the best span: above 0, the reader finds none."""
        numbers = range(len(self.examples))
        return [self._null[number] - self._best.get(number, (-torch.inf, ""))[0] for number in numbers]
