"""Exact match and F1 of answers, by the definition of SQuAD's official evaluation."""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vleff.data.span_features import SpanExample

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)
_RESAMPLES = 2000


@dataclass(frozen=True)
class SpanScores:
    """The scores of answers, each 0 to 100.

    Attributes:
        exact_match, f1: by question.
    """

    exact_match: np.ndarray
    f1: np.ndarray

    def interval(self, metric: str = "f1", seed: int = 0) -> tuple[float, float]:
        """The 95 % interval of a metric's mean, by bootstrap over questions."""
        values = getattr(self, metric)
        generator = np.random.default_rng(seed)
        means = [values[generator.integers(0, len(values), len(values))].mean() for _ in range(_RESAMPLES)]
        low, high = np.quantile(means, [0.025, 0.975])
        return float(low), float(high)

    def __str__(self) -> str:
        (low, high), count = self.interval(), len(self.f1)
        return f"EM {self.exact_match.mean():.1f}, F1 {self.f1.mean():.1f} ({low:.1f} to {high:.1f}), {count} questions"


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation, articles and superfluous white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split())


def exact_match(prediction: str, answer: str) -> float:
    """100 if the normalized texts are equal, else 0."""
    return 100.0 * (normalize_answer(prediction) == normalize_answer(answer))


def f1(prediction: str, answer: str) -> float:
    """The harmonic mean of precision and recall of the normalized words, times 100."""
    predicted, wanted = normalize_answer(prediction).split(), normalize_answer(answer).split()
    if not predicted or not wanted:
        return 100.0 * (predicted == wanted)
    shared = sum((Counter(predicted) & Counter(wanted)).values())
    return 200.0 * shared / (len(predicted) + len(wanted))


def score_answers(predictions: Mapping[str, str], examples: Sequence[SpanExample]) -> SpanScores:
    """Scores answers against the best of the accepted ones; an unanswerable question accepts the empty answer only.

    Args:
        predictions: answers by the id of the question.

    Raises:
        KeyError: a question has no prediction.
        ValueError: there are no questions.
    """
    if not examples:
        raise ValueError("argument 'examples': expected at least one question, got none")
    exact, overlap = [], []
    for example in examples:
        if example.id not in predictions:
            raise KeyError(f"argument 'predictions': expected an answer to question {example.id!r}, got none")
        accepted = [answer.text for answer in example.answers if normalize_answer(answer.text)] or [""]
        exact.append(max(exact_match(predictions[example.id], answer) for answer in accepted))
        overlap.append(max(f1(predictions[example.id], answer) for answer in accepted))
    return SpanScores(np.array(exact), np.array(overlap))
